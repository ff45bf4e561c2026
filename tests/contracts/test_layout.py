"""The house as DESIGN draws it: who imports whom, what lies at the top, and a README that keeps its word."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from nnunet_ext.cli import VERBS

CATALOGUES = ("nnunet_ext.trainers", "nnunet_ext.dataset_conversion")
FIXED = {"pyproject.toml", "nnunet_ext", "dataset_conversion", "trainers", "tests", "README.md"}
ALLOWED = FIXED | {"LICENSE", "CHANGELOG.md", "benchmarks"}
MADE_BY_TOOLS = {"build", "dist", "nnunet_data", "nnunet_ext.egg-info"}


def imported_modules(file: Path) -> Iterator[str]:
    """Every module that a file imports statically, wherever the statement stands."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def table_of(readme: str, heading: str) -> set[str]:
    """First column of the table below a heading, without the code marks and the arguments."""
    section = readme.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return set(re.findall(r"^\| `([\w-]+)[^`]*` \|", section, flags=re.MULTILINE))


@pytest.fixture(scope="module")
def readme(root) -> str:
    return str((root / "README.md").read_text(encoding="utf-8"))


def test_nobody_imports_the_two_catalogues(root):
    for file in (root / "nnunet_ext").rglob("*.py"):
        guilty = [name for name in imported_modules(file) if name.startswith(CATALOGUES)]
        assert not guilty, f"{file.relative_to(root)} imports {guilty}"


def test_nothing_else_lies_at_the_top(root):
    entries = {path.name for path in root.iterdir() if not path.name.startswith(".")} - MADE_BY_TOOLS
    assert entries <= ALLOWED
    assert entries >= FIXED


def test_every_package_on_disk_is_packaged(root, packages):
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    assert sorted(project["tool"]["setuptools"]["packages"]) == packages


def test_every_folder_with_code_is_a_package(root):
    for folder in ("nnunet_ext", "trainers", "dataset_conversion"):
        for file in (root / folder).rglob("*.py"):
            assert (file.parent / "__init__.py").is_file(), f"{file.parent} has no __init__.py"


def test_no_package_is_an_empty_placeholder(root, packages):
    for package in packages:
        folder = root / package.removeprefix("nnunet_ext.").replace(".", "/")
        folder = folder if folder.is_dir() else root / package.replace(".", "/")
        assert len([file for file in folder.iterdir() if file.name not in ("__init__.py", "__pycache__")]) > 0, package


def test_readme_table_of_trainers_equals_the_folder(readme, trainer_names):
    assert table_of(readme, "Trainers") == set(trainer_names)


def test_readme_table_of_verbs_equals_the_command_line(readme):
    assert table_of(readme, "Verbs") == set(VERBS)


def test_readme_names_every_published_recipe(readme, root):
    for recipe in (root / "nnunet_ext/recipe/published").glob("*.yaml"):
        assert recipe.stem in readme


def test_readme_lists_every_dependency(readme, root):
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = project["dependencies"] + [d for extra in project["optional-dependencies"].values() for d in extra]
    listed = table_of(readme, "Dependencies")
    names = {re.split(r"[<>=!~\[; ]", requirement)[0] for requirement in wanted}
    assert names == listed


def test_ci_runs_the_readmes_test_command(readme, root):
    command = "python -m pytest"
    assert command in readme
    assert command in (root / ".ci/run").read_text(encoding="utf-8")
