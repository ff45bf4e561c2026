"""Trains and judges the runs of a study, one after another in one process, so that nnU-Net is imported once.

Several workers share a study: each takes the next run that nobody works on.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import io
import time
from collections.abc import Mapping
from typing import Any

import click

from nnunet_ext.errors import BusyError, InputError
from nnunet_ext.io.atomic import read_json, write_json
from nnunet_ext.io.lock import locked
from nnunet_ext.locations import expose_trainers
from nnunet_ext.roi.raw_data import contoured_in, digest_of
from nnunet_ext.study.data import noise_of
from nnunet_ext.study.page import Study, load_page
from nnunet_ext.study.world import Run, World

RESULT = "study_run.json"
"""In the folder of a training: what it was made from, and when it is done its scores."""


@click.command()
@click.argument("page")
def main(page: str) -> None:
    """Work on the study of PAGE until every run is done or taken."""
    study = load_page(page)
    if not isinstance(study, Study):
        raise InputError(f"{page} is no study.")
    world = World.of(study)
    expose_trainers()
    for name in sorted({method.trainer for method in study.methods.values()}):
        _trainer_class(name)  # all now: one that is missing is not to be found after hours
    with world.entered():
        for run in world.trainings():
            work_on(world, run)


def work_on(world: World, run: Run) -> None:
    """Train and judge one run, unless it is done or another worker has it.

    Raises:
        InputError: it was trained with other settings or data before.
        BusyError: the disk is full.
    """
    if scores_of(world, run) is not None:
        return
    folder = run.folder(world)
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(locked(folder / ".study_lock"))
        except BusyError:  # another worker has it; a full disk further down is none of this
            return
        if scores_of(world, run) is not None:
            return
        started = time.monotonic()
        content = {"digest": run_digest(world, run), "structures": _structures(world), "scores": None}
        write_json(folder / RESULT, content)
        scores = _train_and_judge(world, run)
        write_json(folder / RESULT, {**content, "seconds": round(time.monotonic() - started, 1), "scores": scores})


def is_judged(world: World, run: Run) -> bool:
    """Whether a run was trained and judged by these structures, with whatever settings and data."""
    path = run.folder(world) / RESULT
    content = read_json(path) if path.exists() else {"scores": None}
    return content["scores"] is not None and content["structures"] == _structures(world)


def scores_of(world: World, run: Run) -> dict[str, dict[str, float | None]] | None:
    """Case to structure to DSC of a finished run; None while it is not finished, or was judged by other structures.

    Raises:
        InputError: it was trained with other settings or data than the page has now.
    """
    path = run.folder(world) / RESULT
    if not path.exists():
        return None
    content: dict[str, Any] = read_json(path)
    if content["digest"] != run_digest(world, run):
        raise InputError(f"{path.parent} was trained with other settings or data than the study has now; delete it.")
    scores: dict[str, dict[str, float | None]] | None = content["scores"]
    return scores if content["structures"] == _structures(world) else None


def run_digest(world: World, run: Run) -> str:
    """Hash of what decides a training: trainer, plans with settings, labels, which are contoured, cases and noise."""
    folder = world.preprocessed / run.dataset
    return digest_of([
        run.trainer,
        read_json(folder / f"{run.plans}.json"),
        read_json(folder / "dataset.json")["labels"],
        read_json(folder / "splits_final.json")[run.fold],
        noise_of(world, run.dataset).get("cases"),
        contoured_in(world.raw / run.dataset),
    ])  # fmt: skip


def _structures(world: World) -> dict[str, list[str]]:
    return {name: list(organs) for name, organs in world.study.structures.items()}


def _train_and_judge(world: World, run: Run) -> Mapping[str, Mapping[str, float | None]]:
    import torch
    from nnunetv2.run.run_training import maybe_load_checkpoint

    from nnunet_ext.study.scores import judge

    folder = world.preprocessed / run.dataset
    plans = {**read_json(folder / f"{run.plans}.json"), "continue_training": True}
    device = torch.device(world.study.device)
    trainer = _trainer_class(run.trainer)(
        plans, run.configuration, run.fold, read_json(folder / "dataset.json"), device
    )
    try:
        maybe_load_checkpoint(trainer, continue_training=True, validation_only=False)
        trainer.run_training()
        return judge(world, trainer)
    finally:
        del trainer
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def reads_settings(trainer: str) -> bool:
    """Whether nnU-Net finds a trainer of this name, and it reads the settings of a study."""
    from nnunet_ext.training.base import nnUNetTrainerExt

    with contextlib.redirect_stdout(io.StringIO()):
        try:
            return issubclass(_trainer_class(trainer), nnUNetTrainerExt)
        except RuntimeError:  # there is none
            return False


@functools.cache
def _trainer_class(name: str) -> Any:
    """Looked up once per process: nnU-Net imports every trainer that it has for it."""
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    return recursive_find_trainer_class_by_name(name)


if __name__ == "__main__":
    main()
