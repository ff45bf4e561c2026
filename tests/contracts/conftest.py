from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = {
    "nnunet_ext": "nnunet_ext",
    "trainers": "nnunet_ext.trainers",
    "dataset_conversion": "nnunet_ext.dataset_conversion",
}
"""Folder of the checkout to the package that it becomes."""


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def trainer_names() -> list[str]:
    """Every trainer that the folder promises."""
    return sorted(file.stem for file in (ROOT / "trainers").glob("*.py") if file.stem != "__init__")


@pytest.fixture(scope="session")
def packages() -> list[str]:
    """Every package of the checkout by its import name."""
    found = []
    for folder, package in SOURCES.items():
        for init in (ROOT / folder).rglob("__init__.py"):
            found.append(".".join([package, *init.parent.relative_to(ROOT / folder).parts]))
    return sorted(found)


@pytest.fixture(scope="session")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Runs a script in a fresh process in a foreign folder and returns what its last line says, as JSON."""

    def run(python: str | Path, script: str, *arguments: str) -> Any:
        foreign = tmp_path_factory.mktemp("foreign")
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "nnUNet_"))}
        done = subprocess.run(
            [str(python), "-c", script, *arguments], cwd=foreign, env=clean, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run
