from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nnunet_ext.planning import plan


@pytest.fixture
def planned(world: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Plans the tiny world in a folder of the test and returns the plans file."""
    for name, value in world.environment.items():
        if name.startswith("nnUNet_"):
            monkeypatch.setenv(name, value)
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    folder = tmp_path / world.dataset
    folder.mkdir()
    for name in ("dataset_fingerprint.json", "dataset.json"):
        shutil.copy(world.preprocessed / name, folder / name)

    def make(network: str, preset: str = "cpu", **options: Any) -> Path:
        return folder / f"{plan.make_plans(901, preset, network=network, **options)}.json"

    return make
