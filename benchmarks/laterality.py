"""Left and right with and without mirroring: stock's trainer and ours, same plans, iterations and patients.

    nnunet-ext train openkbp_han_cpu            # trains nnUNetTrainerExtNoMirror and the plans
    python benchmarks/laterality.py -d 102 -c 2d -f 0 -tr nnUNetTrainer nnUNetTrainerExt nnUNetTrainerExtNoMirror

A fold that is trained already is only scored. ``nnUNetTrainer`` is stock's own class with its own optimiser (SGD 0.01,
deep supervision), ``nnUNetTrainerExt`` has stock's mirroring and the optimiser of the plans; both get the plans' number
of epochs. No model averages over mirrors at prediction.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

os.environ.update(nnUNet_n_proc_DA="0", nnUNet_compile="f", nnUNet_def_n_proc="1")


def train(folder: Path, plans_name: str, configuration: str, fold: int, trainer: str) -> Path:
    """Train and validate one fold unless that was done; returns its validation folder."""
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    from nnunet_ext.training.base import nnUNetTrainerExt
    from nnunet_ext.training.mirroring import nnUNetTrainerExtMirrorSwap, nnUNetTrainerExtNoMirror

    results = Path(os.environ["nnUNet_results"]) / folder.name / f"{trainer}__{plans_name}__{configuration}"
    validation = results / f"fold_{fold}" / "validation"
    if (validation / "summary.json").exists():
        return validation
    classes = (nnUNetTrainer, nnUNetTrainerExt, nnUNetTrainerExtNoMirror, nnUNetTrainerExtMirrorSwap)
    kind = next(c for c in classes if c.__name__ == trainer)
    plans = json.loads((folder / f"{plans_name}.json").read_text())
    settings = plans["configurations"][configuration]["nnunet_ext"]
    dataset_json = json.loads((folder / "dataset.json").read_text())
    run = kind({**plans, "continue_training": False}, configuration, fold, dataset_json, torch.device("cpu"))
    torch.set_num_threads(1)
    run.num_epochs = settings["num_epochs"]
    run.num_val_iterations_per_epoch = settings["num_val_iterations_per_epoch"]
    run.run_training()
    if trainer == "nnUNetTrainer":
        run.inference_allowed_mirroring_axes = None  # the same test-time effort for all
    run.perform_actual_validation()
    return validation


def judge(validation: Path, folder: Path) -> dict[str, Any]:
    """Dice per organ and voxels on the wrong side, over the fold's held-out patients."""
    from nnunet_ext.evaluation.laterality import side_confusion
    from nnunet_ext.evaluation.metrics import score_case
    from nnunet_ext.evaluation.report import summarise
    from nnunet_ext.io.nifti import read_labels
    from nnunet_ext.labels import swap_pairs

    labels = {k: v for k, v in json.loads((folder / "dataset.json").read_text())["labels"].items() if v}
    scores, wrong, swapped = {}, 0, 0
    for path in sorted(validation.glob("*.nii.gz")):
        truth, grid = read_labels(folder / "gt_segmentations" / path.name)
        predicted, _ = read_labels(path)
        scores[path.name] = score_case(predicted, truth, labels, grid.spacing_mm, distances=False)
        for side in side_confusion(predicted, truth, grid, swap_pairs(labels)):
            wrong += (side.left_on_right or 0) + (side.right_on_left or 0)
            swapped += side.left_as_right + side.right_as_left
    organs = {organ: row.dsc.mean for organ, row in summarise(scores).items()}
    return {"organs": organs, "mean": sum(organs.values()) / len(organs), "wrong_side": wrong, "swapped": swapped}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-d", type=int, required=True)
    parser.add_argument("-c", default="3d_fullres")
    parser.add_argument("-p", default="nnUNetPlansExtCPU")
    parser.add_argument("-f", type=int, nargs="+", default=[0])
    parser.add_argument("-tr", dest="trainers", nargs="+", required=True)
    arguments = parser.parse_args()
    folder = next(Path(os.environ["nnUNet_preprocessed"]).glob(f"Dataset{arguments.d:03d}_*"))
    print("| configuration | fold | trainer | mean | organs | >5 mm on the wrong side | truth taken for its partner |")
    for trainer in arguments.trainers:
        for fold in arguments.f:
            found = judge(train(folder, arguments.p, arguments.c, fold, trainer), folder)
            organs = ", ".join(f"{organ} {dsc:.3f}" for organ, dsc in found["organs"].items())
            print(
                f"| {arguments.c} | {fold} | {trainer} | {found['mean']:.3f} | {organs} | {found['wrong_side']} | "
                f"{found['swapped']} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
