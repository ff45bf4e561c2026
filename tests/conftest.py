"""A tiny nnU-Net world: six drawn patients, planned with the cpu preset and preprocessed, once per session."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

DATASET = "Dataset901_Drawn"
PLANS = "nnUNetPlansExtCPU"
ORGANS = {"Parotid_L": 1, "Parotid_R": 2, "Bone_Mandible": 3}
CASES = [f"case_{i}" for i in range(6)]
SETTINGS = {
    "num_epochs": 3,
    "num_iterations_per_epoch": 2,
    "num_val_iterations_per_epoch": 1,
    "batch_size": 2,
    "mirror_at_prediction": True,
}

PREPARE = """
import json, sys
from nnunet_ext.planning import plan

settings = json.loads(sys.argv[1])
plan.make_fingerprint(901, 1)
name = plan.make_plans(901, "cpu")
for configuration in ("2d", "3d_fullres"):
    plan.override(901, name, configuration, {"base_features": 4})
    plan.write_settings(901, name, configuration, settings)
plan.preprocess(901, name, ["2d", "3d_fullres"], 1)
"""


def draw_patient(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """CT and labels (Z, Y, X) in LPS: a body with a left (larger x) and a right parotid and a mandible in front."""
    rng = np.random.default_rng(seed)
    image = np.full((20, 40, 40), -1000.0)
    image[1:19, 4:36, 4:36] = 40.0
    labels = np.zeros(image.shape, np.uint8)
    z, y = rng.integers(6, 9), rng.integers(16, 20)
    labels[z : z + 6, y : y + 8, 28:33] = ORGANS["Parotid_L"]
    labels[z : z + 6, y : y + 8, 7:12] = ORGANS["Parotid_R"]
    labels[z : z + 4, 6:11, 14:26] = ORGANS["Bone_Mandible"]
    image[labels == 3] = 700.0
    image[(labels == 1) | (labels == 2)] = -20.0
    return image + rng.normal(0, 10, image.shape), labels


def save(path: Path, array: np.ndarray, spacing_mm: tuple[float, float, float] = (3.0, 1.0, 1.0)) -> None:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing_mm[::-1])
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path), True)


def world_environment(root: Path) -> dict[str, str]:
    """nnU-Net's variables for processes that work in this world: one process, one thread, no GPU."""
    folders = {name: str(root / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    clean = {k: v for k, v in os.environ.items() if not k.startswith("nnUNet_")}
    return {
        **clean,
        **folders,
        "nnUNet_def_n_proc": "1",
        "nnUNet_n_proc_DA": "0",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }


def run_python(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """A fresh Python process in a foreign folder; fails with its output."""
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, cwd="/", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The folders of the tiny world, its names, and how to run a process in it. Do not write into its raw data."""
    root = tmp_path_factory.mktemp("world")
    raw = root / "nnUNet_raw" / DATASET
    for seed, case in enumerate(CASES):
        image, labels = draw_patient(seed)
        save(raw / "imagesTr" / f"{case}_0000.nii.gz", image.astype(np.int16))
        save(raw / "labelsTr" / f"{case}.nii.gz", labels)
    dataset = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, **ORGANS},
        "numTraining": len(CASES),
        "file_ending": ".nii.gz",
    }
    (raw / "dataset.json").write_text(json.dumps(dataset))
    splits = [{"train": CASES[2:], "val": CASES[:2]}, {"train": CASES[:4], "val": CASES[4:]}]
    (raw / "splits_final.json").write_text(json.dumps(splits))
    environment = world_environment(root)
    run_python(environment, "-c", PREPARE, json.dumps(SETTINGS))
    return SimpleNamespace(
        root=root,
        raw=raw,
        preprocessed=root / "nnUNet_preprocessed" / DATASET,
        results=root / "nnUNet_results" / DATASET,
        dataset=DATASET,
        plans=PLANS,
        settings=SETTINGS,
        organs=ORGANS,
        cases=CASES,
        splits=splits,
        environment=environment,
        run=lambda *arguments, **more: run_python({**environment, **more}, *arguments),
    )


@pytest.fixture
def in_world(world: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """Makes a trainer in this process on the tiny world; its results go to a folder of the test.

    Call it with a trainer class, a configuration, and changes to the configuration and dataset.json.
    """
    import torch

    for name, value in world.environment.items():
        if name.startswith("nnUNet_"):
            monkeypatch.setenv(name, value)
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)  # other tests keep their threads

    def make(trainer: type, configuration: str, dataset: dict[str, Any] | None = None, **changes: Any) -> Any:
        plans = json.loads((world.preprocessed / f"{world.plans}.json").read_text())
        block = changes.pop("nnunet_ext", {})
        plans["configurations"][configuration].update(changes)
        plans["configurations"][configuration]["nnunet_ext"].update(block)
        plans["continue_training"] = False
        dataset_json = {**json.loads((world.preprocessed / "dataset.json").read_text()), **(dataset or {})}
        return trainer(plans, configuration, 0, dataset_json, torch.device("cpu"))

    return make
