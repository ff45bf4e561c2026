"""A wheel in a fresh environment holds everything that the checkout holds."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SHIPPED = (".py", ".yaml", ".typed")
FOLDERS = {
    "nnunet_ext": "nnunet_ext",
    "trainers": "nnunet_ext/trainers",
    "dataset_conversion": "nnunet_ext/dataset_conversion",
}

LOOK = """
import importlib.util, json, sys
from importlib.resources import files
import nnunet_ext
from nnunet_ext.locations import expose_trainers, trainers_folder

published = files("nnunet_ext.recipe.published")
packages, trainers = (argument.split(",") for argument in sys.argv[1:3])
expose_trainers()
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
print(json.dumps({
    "file": nnunet_ext.__file__,
    "trainers_folder": str(trainers_folder()),
    "packages": {name: importlib.util.find_spec(name).origin for name in packages},
    "trainers": {name: recursive_find_trainer_class_by_name(name).__module__ for name in trainers},
    "recipes": sorted(f.name for f in published.iterdir() if f.name.endswith(".yaml")),
}))
"""


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy so that the checkout stays clean."""
    source = tmp_path_factory.mktemp("source")
    skip = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for folder in FOLDERS:
        shutil.copytree(root / folder, source / folder, ignore=skip)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, source / name)
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", cwd=source)
    (built,) = (source / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def fresh(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel; the heavy dependencies are lent by the running one.

    A path file lends them: it adds the folder, but does not run the path files inside. So an editable install
    of the running environment stays invisible, and only the wheel's own copy can be imported.
    """
    folder = tmp_path_factory.mktemp("fresh") / "env"
    venv.create(folder, with_pip=False)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    run(
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "--no-deps",
        "--no-index",
        wheel,
        cwd=folder,
    )
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    ours = Path(run(python, "-I", "-c", code, cwd=folder).strip())
    lent = [entry for entry in sys.path if entry.endswith(("site-packages", "dist-packages"))]
    (ours / "lent.pth").write_text("\n".join(lent) + "\n")
    return python


def test_the_wheel_holds_every_file_of_the_checkout(root, wheel):
    shipped = set(zipfile.ZipFile(wheel).namelist())
    for folder, target in FOLDERS.items():
        for file in (root / folder).rglob("*"):
            if file.suffix in SHIPPED:
                assert f"{target}/{file.relative_to(root / folder).as_posix()}" in shipped


def test_the_wheel_holds_nothing_but_the_library_and_its_licence(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"nnunet_ext"}
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_a_foreign_folder_finds_every_package_trainer_and_recipe(root, fresh, probe, packages, trainer_names):
    seen = probe(fresh, LOOK, ",".join(packages), ",".join(trainer_names))
    home = str(fresh.parents[1])
    assert seen["file"].startswith(home)
    assert seen["trainers_folder"].startswith(home)
    assert {name: origin for name, origin in seen["packages"].items() if not origin.startswith(home)} == {}
    assert set(seen["trainers"]) == set(trainer_names)
    assert all(module.startswith("nnunet_ext.training.") for module in seen["trainers"].values())
    recipes = sorted(file.name for file in (root / "nnunet_ext/recipe/published").glob("*.yaml"))
    assert seen["recipes"] == recipes


def test_the_command_is_installed_and_shows_its_own_trainers(fresh, tmp_path):
    command = fresh.with_name("nnunet-ext" + fresh.suffix)
    line = run(command, "env", cwd=tmp_path)
    assert line.startswith(f"export nnUNet_extTrainer={fresh.parents[1]}")
