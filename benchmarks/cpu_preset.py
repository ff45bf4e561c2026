"""Which small network and which training settings get furthest in a fixed time on one core?

Every variant changes the plans that ``nnunet-ext plan --preset cpu`` wrote, trains fold 0 for the same number of CPU
seconds (iterations are chosen after timing twenty steps) and is validated on the fold's held-out patients.

    nnunet-ext plan -d 102 --preset cpu
    python benchmarks/cpu_preset.py -d 102 -c 3d_fullres --seconds 100 "12f 2c" "16f 1c" ...
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import time
from pathlib import Path
from typing import Any

os.environ.update(nnUNet_n_proc_DA="0", nnUNet_compile="f", nnUNet_def_n_proc="1")

ARCHITECTURE = "arch_kwargs"
BASE = {
    "optimizer": "AdamW",
    "initial_lr": 2e-3,
    "oversample_foreground_percent": 0.67,
    "deep_supervision": False,
    "mirror_at_prediction": False,
}

SMALL: dict[str, Any] = {"features": 16, "convs": 1}

VARIANTS: dict[str, dict[str, Any]] = {
    "stock training, 12 features, 2 convolutions": {
        "features": 12, "settings": {"optimizer": "SGD", "initial_lr": 1e-2, "oversample_foreground_percent": 0.33,
                                     "deep_supervision": True}},
    "12f 2c": {"features": 12},
    "8f 2c": {"features": 8},
    "8f 1c": {"features": 8, "convs": 1},
    "24f 1c": {"features": 24, "convs": 1},
    "16f 1c": SMALL,
    "16f 1c batch dice": {**SMALL, "batch_dice": True},
    "16f 1c sample dice": {**SMALL, "batch_dice": False},
    "16f 1c rotation 15": {**SMALL, "settings": {"limit_rotation": True}},
    "16f 1c lr 4e-3": {**SMALL, "settings": {"initial_lr": 4e-3}},
    "16f 1c lr 1e-3": {**SMALL, "settings": {"initial_lr": 1e-3}},
    "16f 1c deep supervision": {**SMALL, "settings": {"deep_supervision": True}},
    "16f 1c small patch": {**SMALL, "patch": {3: [32, 32, 32], 2: [48, 48]}},
    "16f 1c large patch": {**SMALL, "patch": {3: [64, 48, 48], 2: [96, 96]}},
    "16f 1c half batch": {**SMALL, "settings": {"batch_size": {2: 4, 3: 1}}},
    "16f 1c SGD 1e-2": {**SMALL, "settings": {"optimizer": "SGD", "initial_lr": 1e-2}},
}  # fmt: skip


def vary(plans: dict[str, Any], configuration: str, variant: dict[str, Any]) -> dict[str, Any]:
    """The plans of one variant."""
    plans = copy.deepcopy(plans)
    conf = plans["configurations"][configuration]
    kwargs = conf["architecture"][ARCHITECTURE]
    stages = kwargs["n_stages"]
    if "features" in variant:
        kwargs["features_per_stage"] = [variant["features"] * 2**i for i in range(stages)]
    if "convs" in variant:
        kwargs["n_conv_per_stage"] = [variant["convs"]] * stages
        kwargs["n_conv_per_stage_decoder"] = [variant["convs"]] * (stages - 1)
    if "patch" in variant:
        conf["patch_size"] = variant["patch"][len(conf["patch_size"])]
    if "batch_dice" in variant:
        conf["batch_dice"] = variant["batch_dice"]
    conf["nnunet_ext"] = {**BASE, "cpu_threads": 1, "num_epochs": 4, "num_val_iterations_per_epoch": 2,
                          **variant.get("settings", {})}  # fmt: skip
    if isinstance(conf["nnunet_ext"].get("batch_size"), dict):
        conf["nnunet_ext"]["batch_size"] = conf["nnunet_ext"]["batch_size"][len(conf["patch_size"])]
    return plans


def run(plans: dict[str, Any], configuration: str, dataset_json: dict[str, Any], seconds: float, fold: int) -> dict:
    """Train for a fixed time, validate, and return mean Dice per organ."""
    import torch

    from nnunet_ext.training.mirroring import nnUNetTrainerExtNoMirror

    plans = {**plans, "continue_training": False}
    trainer = nnUNetTrainerExtNoMirror(plans, configuration, fold, dataset_json, torch.device("cpu"))
    trainer.disable_checkpointing = True
    trainer.initialize()
    trainer.on_train_start()
    trainer.set_deep_supervision_enabled(trainer.enable_deep_supervision)
    for _ in range(5):
        trainer.train_step(next(trainer.dataloader_train))
    start = time.process_time()
    for _ in range(20):
        trainer.train_step(next(trainer.dataloader_train))
    step_s = (time.process_time() - start) / 20
    trainer.num_iterations_per_epoch = max(1, int(seconds / step_s / trainer.num_epochs))
    trainer.run_training()
    trainer.perform_actual_validation()
    summary = json.loads(Path(trainer.output_folder, "validation", "summary.json").read_text())
    dice = {label: round(entry["Dice"], 3) for label, entry in summary["mean"].items()}
    return {"step_ms": round(1000 * step_s), "iterations": 4 * trainer.num_iterations_per_epoch,
            "mean": round(summary["foreground_mean"]["Dice"], 3), "dice": dice}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-d", type=int, required=True)
    parser.add_argument("-c", default="3d_fullres")
    parser.add_argument("-p", default="nnUNetPlansExtCPU")
    parser.add_argument("-f", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("variants", nargs="+", choices=sorted(VARIANTS))
    arguments = parser.parse_args()
    folder = next(Path(os.environ["nnUNet_preprocessed"]).glob(f"Dataset{arguments.d:03d}_*"))
    plans = json.loads((folder / f"{arguments.p}.json").read_text())
    dataset_json = json.loads((folder / "dataset.json").read_text())
    for name in arguments.variants:
        varied = vary(plans, arguments.c, VARIANTS[name])
        varied["plans_name"] = f"{arguments.p}-{name.replace(' ', '-')}"
        result = run(varied, arguments.c, dataset_json, arguments.seconds, arguments.f)
        print(f"| {arguments.c} | {name} | {result['step_ms']} | {result['iterations']} | {result['mean']} | "
              f"{result['dice']} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
