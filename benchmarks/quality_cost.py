"""What does a training step cost with quality weighting, beside nnU-Net's trainer and ours without it?

Takes a preprocessed dataset and its plans, draws one batch, and runs training steps of nnU-Net's own trainer, of ours
and of nnUNetTrainerExtQuality in turn, each in a process of its own so that peak memory is its own; prints the time per
step (of the thread on a CPU, of the device on CUDA) and the peak memory, as a ratio to nnU-Net's trainer.

    nnunet-ext plan -d 304 --network plain
    python benchmarks/quality_cost.py -d 304 -c 3d_fullres
    python benchmarks/quality_cost.py -d 304 -c 3d_fullres --device cuda --batch 1
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from typing import Any

from nnunet_ext.io.atomic import read_json
from nnunet_ext.locations import nnunet_folder
from nnunet_ext.planning.plan import dataset_name

TRAINERS = ("nnUNetTrainer", "nnUNetTrainerExt", "nnUNetTrainerExtQuality")
WEIGHING = {"burn_in": 0.0, "ramp": 0.0, "driver": "displacement", "min_foreground": 1}
WARM = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-d", type=int, required=True)
    parser.add_argument("-c", default="3d_fullres")
    parser.add_argument("-p", default="nnUNetPlans")
    parser.add_argument("--batch", type=int, help="instead of the planned batch size")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=2, help="the trainers take turns this often")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--one", choices=TRAINERS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measured(given)))
        return
    found: dict[str, list[dict[str, float]]] = {name: [] for name in TRAINERS}
    for _ in range(given.rounds):
        for name in TRAINERS:
            done = subprocess.run(
                [sys.executable, "-W", "ignore", __file__, *sys.argv[1:], "--one", name],
                env={**os.environ, "nnUNet_n_proc_DA": "0", "nnUNet_compile": "f"}, check=True, stdout=subprocess.PIPE,
                text=True,
            )  # fmt: skip
            found[name].append(json.loads(done.stdout.splitlines()[-1]))
    best = {name: {key: min(run[key] for run in runs) for key in runs[0]} for name, runs in found.items()}
    stock = best[TRAINERS[0]]
    print("| trainer | s per step | ratio | peak memory (MB) | ratio |\n|---|---|---|---|---|")
    for name, run in best.items():
        time_ratio, memory_ratio = run["seconds"] / stock["seconds"], run["megabytes"] / stock["megabytes"]
        print(f"| {name} | {run['seconds']:.3f} | {time_ratio:.2f} | {run['megabytes']:.0f} | {memory_ratio:.2f} |")


def measured(given: argparse.Namespace) -> dict[str, float]:
    """Mean time of a step, and what the steps needed beyond what was there before them."""
    import torch
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    from nnunet_ext.locations import expose_trainers

    expose_trainers()
    torch.set_num_threads(1)
    device = torch.device(given.device)
    folder = nnunet_folder("nnUNet_preprocessed") / dataset_name(given.d)
    plans: dict[str, Any] = {**read_json(folder / f"{given.p}.json"), "continue_training": False}
    configuration = plans["configurations"][given.c]
    configuration["batch_size"] = given.batch or configuration["batch_size"]
    configuration["nnunet_ext"] = {"quality": WEIGHING}
    trainer = recursive_find_trainer_class_by_name(given.one)(
        plans, given.c, 0, read_json(folder / "dataset.json"), device
    )
    trainer.initialize()
    trainer.set_deep_supervision_enabled(trainer.enable_deep_supervision)
    trainer.dataloader_train, _ = trainer.get_dataloaders()
    trainer.on_train_epoch_start()
    batch = next(trainer.dataloader_train)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    for step in range(WARM + given.steps):
        if step == WARM:
            started = clock(device)
        trainer.train_step(dict(batch))
    seconds = (clock(device) - started) / given.steps
    cuda = device.type == "cuda"
    peak = torch.cuda.max_memory_allocated() / 2**20 if cuda else (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before
    )  # fmt: skip
    return {"seconds": seconds, "megabytes": peak}


def clock(device: Any) -> float:
    """Time of this process on a CPU, which other processes do not lengthen; wall time on a GPU that has finished."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


if __name__ == "__main__":
    main()
