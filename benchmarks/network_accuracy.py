"""Which network gets furthest on real patients for the same cost of training?

Every network is planned by the cpu preset on the same data, the processor time of one of its iterations is measured,
and it trains for as many iterations as fit the budget; its learning rate falls to zero at exactly that length. Then
the patients that the fold holds out are predicted and judged. Times are processor time of one thread, so a busy
machine costs patience and nothing else. What is finished is not done again; a killed training continues.

    python benchmarks/network_accuracy.py -d 111 --budget 600
    python benchmarks/network_accuracy.py -d 111 --budget 600 --seeds 0 1 --at-once 2 --csv accuracy.csv
    python benchmarks/network_accuracy.py -d 111 --budget 20 --networks PlainConvUNet RASUNet --optimizer AdamW:2e-3
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.update(nnUNet_n_proc_DA="0", nnUNet_compile="f", nnUNet_def_n_proc="1", CUDA_VISIBLE_DEVICES="")

from nnunet_ext.evaluation.dataset import read_organs
from nnunet_ext.evaluation.folder import score_folder
from nnunet_ext.evaluation.metrics import OrganScore
from nnunet_ext.io.atomic import read_json, write_json
from nnunet_ext.locations import expose_trainers, nnunet_folder

CONFIGURATION = "3d_fullres"
DATA = "nnUNetPlansNetworks"
"""All networks read the data that were preprocessed under this name."""
EPOCHS = 10
WARM_UP, TIMED = 5, 20
COST = "seconds_per_iteration"
"""Key of the plans."""
MEASURES = ("dsc", "hd95_mm", "assd_mm", "rve")
RESIDUAL_ENCODER = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"
RESIDUAL_BLOCKS = (1, 3, 4, 6)
"""Blocks per stage of nnU-Net's ResEnc planners, as deep as the cpu preset."""


@dataclass(frozen=True)
class Variant:
    """A network of ``nnunet-ext plan``, keywords that differ from its plans, and how it trains."""

    network: str
    keywords: dict[str, Any] = field(default_factory=dict)
    trainer: str = "nnUNetTrainerExtNoMirror"
    optimizer: str = "SGD:1e-2"


VARIANTS: dict[str, Variant] = {
    "PlainConvUNet": Variant("plain"),
    "ResidualEncoderUNet": Variant("plain"),
    "RASUNet": Variant("ras", optimizer="Adam:1e-3"),
    "RASUNet-reduction4": Variant("ras", {"attention_reduction": 4}, optimizer="Adam:1e-3"),
    "RASUNet-no-attention": Variant("ras", {"attention": False}, optimizer="Adam:1e-3"),
    "SEUNet3D": Variant("se"),
    "SEResUNet": Variant("se-res"),
    "RefinementUNet": Variant("refine:se-res", trainer="nnUNetTrainerExtRefine"),
    "DeepResUNet": Variant("deep-res"),
}
"""Widths and convolutions per stage are the cpu preset's. SGD is nnU-Net's; RASUNet's first steps are rough with it."""


@dataclass(frozen=True)
class Run:
    """One training: a network under an optimiser, a budget and a seed."""

    network: str
    optimizer: str
    options: argparse.Namespace
    seed: int

    @property
    def variant(self) -> Variant:
        return VARIANTS[self.network]

    @property
    def plans(self) -> str:
        """Name of its plans; another budget, optimiser or seed is another training."""
        how = f"{self.optimizer.replace(':', '-')}-{self.options.budget:g}s-seed{self.seed}"
        return f"{DATA}-{self.network}-{how}"

    @property
    def plans_file(self) -> Path:
        return preprocessed(self.options.dataset) / f"{self.plans}.json"

    @property
    def folder(self) -> Path:
        """Results of its fold."""
        model = f"{self.variant.trainer}__{self.plans}__{CONFIGURATION}"
        dataset = preprocessed(self.options.dataset).name
        return nnunet_folder("nnUNet_results") / dataset / model / f"fold_{self.options.fold}"

    @property
    def result_file(self) -> Path:
        return self.folder / "network_accuracy.json"


def preprocessed(dataset: int) -> Path:
    from nnunet_ext.planning.plan import dataset_name

    return nnunet_folder("nnUNet_preprocessed") / dataset_name(dataset)


# --- plans and data --------------------------------------------------------------------------------------------------


def write_plans(run: Run) -> None:
    """Plans of the cpu preset for one training, with the data of all."""
    from nnunet_ext.planning.plan import make_plans

    with contextlib.redirect_stdout(sys.stderr):
        make_plans(run.options.dataset, "cpu", network=run.variant.network, plans_name=run.plans)
    plans = read_json(run.plans_file)
    settings = plans["configurations"][CONFIGURATION]
    settings["data_identifier"] = f"{DATA}_{CONFIGURATION}"
    architecture = settings["architecture"]
    if run.network == "ResidualEncoderUNet":
        architecture["network_class_name"] = RESIDUAL_ENCODER
        del architecture["arch_kwargs"]["n_conv_per_stage"]
        architecture["arch_kwargs"]["n_blocks_per_stage"] = list(
            RESIDUAL_BLOCKS[: architecture["arch_kwargs"]["n_stages"]]
        )
    architecture["arch_kwargs"].update(run.variant.keywords)
    kind, rate = run.optimizer.split(":")
    settings["nnunet_ext"].update(
        optimizer=kind, initial_lr=float(rate), seed=run.seed, mirror="auto", num_epochs=EPOCHS,
        num_val_iterations_per_epoch=1, cpu_threads=run.options.threads,
    )  # fmt: skip
    write_json(run.plans_file, plans)


def prepare(runs: Sequence[Run]) -> None:
    """Plans that are missing, and the data that all of them share."""
    from nnunet_ext.planning.plan import make_fingerprint, make_plans, preprocess

    dataset = runs[0].options.dataset
    make_fingerprint(dataset, 1)
    for run in runs:
        if not run.plans_file.exists():
            write_plans(run)
    done = preprocessed(dataset) / f"{DATA}_{CONFIGURATION}.done"
    if not done.exists():
        with contextlib.redirect_stdout(sys.stderr):
            make_plans(dataset, "cpu", plans_name=DATA)
            preprocess(dataset, DATA, [CONFIGURATION], 1)
        done.touch()


# --- one training ----------------------------------------------------------------------------------------------------


def make_trainer(run: Run, *, continued: bool) -> Any:
    import torch
    from nnunetv2.run.run_training import get_trainer_from_args

    return get_trainer_from_args(str(run.options.dataset), CONFIGURATION, run.options.fold, run.variant.trainer,
                                 run.plans, continued, torch.device("cpu"))  # fmt: skip


def seconds_per_iteration(run: Run) -> float:
    """Processor time of a training step with its batch.

    The step is the same work every time, so its shortest time is the one that nothing else on the machine lengthened;
    batches are augmented by chance, so theirs is the median.
    """
    trainer = make_trainer(run, continued=False)
    trainer.disable_checkpointing = True
    trainer.initialize()
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    batches, steps = [], []
    for _ in range(WARM_UP + TIMED):
        start = time.process_time()
        batch = next(trainer.dataloader_train)
        loaded = time.process_time()
        trainer.train_step(batch)
        batches.append(loaded - start)
        steps.append(time.process_time() - loaded)
    return statistics.median(batches) + min(steps[WARM_UP:])


def measure(runs: Sequence[Run]) -> None:
    """Write into the plans what an iteration costs and how many fit the budget; before, not beside, the trainings."""
    expose_trainers()
    os.environ["nnUNet_n_proc_DA"] = "0"  # planning needs a process for batches, whose time would not be seen here
    costs: dict[tuple[str, str], float] = {}
    for run in sorted(runs, key=lambda run: COST not in read_json(run.plans_file)):  # what is known first
        plans = read_json(run.plans_file)
        cost = plans.get(COST) or costs.get((run.network, run.optimizer))
        if cost is None:
            with contextlib.redirect_stdout(sys.stderr):
                cost = seconds_per_iteration(run)
        costs[run.network, run.optimizer] = plans[COST] = cost
        iterations = max(1, round(run.options.budget / cost / EPOCHS))
        plans["configurations"][CONFIGURATION]["nnunet_ext"]["num_iterations_per_epoch"] = iterations
        write_json(run.plans_file, plans)


def train(run: Run) -> None:
    """Train, validate and judge one network, from wherever it stands."""
    from nnunetv2.run.run_training import maybe_load_checkpoint

    expose_trainers()
    plans = read_json(run.plans_file)
    trainer = make_trainer(run, continued=True)
    maybe_load_checkpoint(trainer, True, False)
    start, first_epoch = time.process_time(), trainer.current_epoch
    if not (run.folder / "checkpoint_final.pth").exists():
        trainer.run_training()
    spent = time.process_time() - start
    trainer.perform_actual_validation()
    dataset = preprocessed(run.options.dataset)
    judged = score_folder(run.folder / "validation", dataset / "gt_segmentations",
                          read_organs(dataset / "dataset.json").organs, quiet=True)  # fmt: skip
    judged.raise_failed()
    result = {
        "network": run.network,
        "optimizer": run.optimizer,
        "seed": run.seed,
        "parameters": sum(p.numel() for p in trainer.bare_network.parameters()),
        "features": plans["configurations"][CONFIGURATION]["architecture"]["arch_kwargs"]["features_per_stage"][0],
        "seconds_per_iteration": plans[COST],
        "iterations": EPOCHS * trainer.num_iterations_per_epoch,
        "training_seconds": spent if first_epoch == 0 else None,  # of a continued training nobody knows them
        "cases": {case: [judged_organ(score) for score in scores] for case, scores in judged.scores.items()},
    }
    write_json(run.result_file, result)


def judged_organ(score: OrganScore) -> dict[str, Any]:
    return {"organ": score.organ, "status": str(score.status), **{m: getattr(score, m) for m in MEASURES}}


def start(run: Run) -> None:
    """One training in a process of its own; its output goes to a log beside the results."""
    if run.result_file.exists():
        return
    run.folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, __file__, *sys.argv[1:], "--one", run.network, run.optimizer, str(run.seed)]
    threads = {name: str(run.options.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    log = run.folder / "network_accuracy.log"
    with log.open("a") as stream:
        done = subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, env={**os.environ, **threads})
    print(f"{run.plans}: {'done' if done.returncode == 0 else f'failed, see {log}'}", file=sys.stderr, flush=True)


# --- the table -------------------------------------------------------------------------------------------------------


def lines(results: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """One line per training, patient and organ."""
    for result in results:
        for case, organs in result["cases"].items():
            for organ in organs:
                yield {**{k: v for k, v in result.items() if k != "cases"}, "case": case, **organ}


def table(results: Sequence[dict[str, Any]]) -> str:
    """One row per network: means over patients, organs and seeds; patients without a surface have no distance."""
    rows = ["| network | optimiser | features | parameters (10⁶) | s per iteration | iterations | seeds | DSC "
            "| DSC per seed | HD95 mm | ASSD mm | abs. RVE | not found |", "|" + "---|" * 13]  # fmt: skip
    for key in dict.fromkeys((r["network"], r["optimizer"]) for r in results):
        same = [r for r in results if (r["network"], r["optimizer"]) == key]
        all_lines = list(lines(same))
        per_seed = [statistics.fmean(line["dsc"] for line in lines([r])) for r in same]
        mean = {m: finite_mean([line[m] for line in all_lines]) for m in MEASURES[:-1]}
        volume = statistics.fmean(abs(line["rve"]) for line in all_lines)
        cost = statistics.fmean(r["seconds_per_iteration"] for r in same)
        rows.append(
            f"| {key[0]} | {key[1]} | {same[0]['features']} | {same[0]['parameters'] / 1e6:.2f} | {cost:.3f} "
            f"| {', '.join(str(r['iterations']) for r in same)} | {len(same)} | {mean['dsc']:.3f} "
            f"| {', '.join(f'{v:.3f}' for v in per_seed)} | {mean['hd95_mm']:.1f} | {mean['assd_mm']:.1f} "
            f"| {volume:.2f} | {sum(line['dsc'] == 0 for line in all_lines)} of {len(all_lines)} |"
        )
    return "\n".join(rows)


def finite_mean(values: Sequence[float]) -> float:
    finite = [v for v in values if v is not None and v == v]  # a distance without a surface is null in the file
    return statistics.fmean(finite) if finite else float("nan")


def chosen_optimizers(choices: Sequence[str]) -> dict[str, str]:
    """Network to KIND:RATE; a choice is KIND:RATE for all, or NETWORK=KIND:RATE."""
    chosen = {name: variant.optimizer for name, variant in VARIANTS.items()}
    for choice in sorted(choices, key=lambda text: "=" in text):  # what names a network wins
        name, _, optimizer = choice.rpartition("=")
        chosen.update({name: optimizer} if name else dict.fromkeys(chosen, optimizer))
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-d", dest="dataset", type=int, required=True)
    parser.add_argument("--budget", type=float, default=600, help="seconds of one thread per training")
    parser.add_argument("--networks", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), metavar="NETWORK")
    parser.add_argument("--optimizer", nargs="+", default=[], metavar="[NETWORK=]KIND:RATE")
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int, default=1, help="of one training")
    parser.add_argument("--at-once", type=int, default=1, help="trainings side by side")
    parser.add_argument("--csv", type=Path, help="write one line per training, patient and organ here")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        network, optimizer, seed = options.one
        train(Run(network, optimizer, options, int(seed)))
        return
    optimizers = chosen_optimizers(options.optimizer)
    runs = [Run(name, optimizers[name], options, seed) for seed in options.seeds for name in options.networks]
    prepare(runs)
    measure(runs)
    with ThreadPoolExecutor(options.at_once) as pool:
        list(pool.map(start, runs))
    results = [json.loads(run.result_file.read_text()) for run in runs if run.result_file.exists()]
    if options.csv and results:
        with options.csv.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, list(next(lines(results))))
            writer.writeheader()
            writer.writerows(lines(results))
    print(table(results))
    if len(results) < len(runs):
        sys.exit(1)


if __name__ == "__main__":
    main()
