"""Short CPU trainings of whole datasets, for benchmarks that compare what was trained on. Nothing is measured here."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nnunet_ext.locations import nnunet_folder
from nnunet_ext.planning import plan
from nnunet_ext.planning.plan import dataset_name

CONFIGURATION = "3d_fullres"
EPOCH = 50


def trained(
    number: int,
    folds: Sequence[int],
    iterations: int,
    *,
    trainer: str = "nnUNetTrainerExtNoMirror",
    name: str = "nnUNetPlansExtCPU",
    settings: dict[str, Any] | None = None,
) -> Path:
    """The model folder of a raw dataset with splits, planned by the cpu preset and trained fold by fold; what is
    finished is kept."""
    dataset = dataset_name(number)
    folder = nnunet_folder("nnUNet_results") / dataset / f"{trainer}__{name}__{CONFIGURATION}"
    left = [fold for fold in folds if not (folder / f"fold_{fold}" / "validation" / "summary.json").exists()]
    if left and not (nnunet_folder("nnUNet_preprocessed") / dataset / f"{name}_{CONFIGURATION}").exists():
        plan.make_fingerprint(number, 1)
        plan.make_plans(number, "cpu", plans_name=name)
        block = {"num_epochs": iterations // EPOCH, "num_iterations_per_epoch": EPOCH,
                 "num_val_iterations_per_epoch": 2, "cpu_threads": 1, **(settings or {})}  # fmt: skip
        plan.write_settings(number, name, CONFIGURATION, block)
        plan.preprocess(number, name, [CONFIGURATION], 1)
        splits = nnunet_folder("nnUNet_raw") / dataset / "splits_final.json"
        shutil.copy(splits, nnunet_folder("nnUNet_preprocessed") / dataset)
    environment = {"nnUNet_n_proc_DA": "0", "nnUNet_compile": "f", "nnUNet_def_n_proc": "1"}
    for fold in left:
        command = [sys.executable, "-m", "nnunet_ext.training.run", str(number), CONFIGURATION, str(fold),
                   "-tr", trainer, "-p", name, "-device", "cpu"]  # fmt: skip
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, **environment})
    return folder
