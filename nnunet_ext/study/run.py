"""A study from its page to its table, in one command that can be repeated: what is done is kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from nnunet_ext.conversion.noise import structures_of
from nnunet_ext.errors import InputError, some_of
from nnunet_ext.io.lock import locked
from nnunet_ext.locations import trainers_folder
from nnunet_ext.recipe.jobs import Job, check_device, run_jobs
from nnunet_ext.study.data import noise_of, prepare
from nnunet_ext.study.page import Study
from nnunet_ext.study.tables import Table, table_of, weight_rows, write_table, write_weights
from nnunet_ext.study.worker import is_judged, reads_settings, scores_of
from nnunet_ext.study.world import Run, World

Say = Callable[[str], None]


def run_study(study: Study, where: str, at_once: int, say: Say) -> tuple[Path, Table]:
    """Train and judge every row, method and seed of a study, and write its tables.

    Finished runs are kept, an interrupted one is continued; the tables are written from what is finished even when a
    run fails.

    Args:
        study: The page.
        where: Its file or published name, for the processes that train.
        at_once: Trainings side by side.
        say: Receives one line per event.

    Returns:
        The folder with table.md, table.csv and weights.csv, and the table.

    Raises:
        InputError: dataset, trainers, device or finished runs do not fit the page.
        BusyError: another process works on this study.
    """
    world = World.of(study)
    if not all(is_judged(world, run) for run in world.trainings()):
        check_device(study.device)
    _check_trainers(study)
    world.root.mkdir(parents=True, exist_ok=True)
    with locked(world.root / ".lock"):
        runs = world.runs()
        prepare(world, runs, say)
        trainings = world.trainings()
        left = [run for run in trainings if scores_of(world, run) is None]
        say(f"{len(trainings)} trainings, {len(trainings) - len(left)} are done")
        try:
            if left:
                jobs: list[Job] = [_Worker(world, left, where, number) for number in range(min(at_once, len(left)))]
                run_jobs(jobs, at_once, study.device, say)
        finally:
            table = _write(world, runs)
    return world.root, table


def _write(world: World, runs: Sequence[Run]) -> Table:
    structures = list(world.study.structures or structures_of(world.source))
    table = table_of(runs, lambda run: scores_of(world, run), structures)
    write_table(world.root, table, structures, world.study.title)
    rows = [row for run in runs for row in weight_rows(run, run.folder(world), noise_of(world, run.dataset))]
    if rows:
        write_weights(world.root, rows)
    return table


def _check_trainers(study: Study) -> None:
    """Now, not when their turn comes after hours: nnU-Net's own trainers would not read the settings."""
    ours = {path.stem for path in trainers_folder().glob("nnUNetTrainer*.py")}
    trainers = {name: method.trainer for name, method in study.methods.items()}
    refused = [f"{name} ({t})" for name, t in trainers.items() if t not in ours and not reads_settings(t)]
    if refused:
        raise InputError(
            f"study {study.name} has methods whose trainers do not exist or ignore its settings, even epochs and seed: "
            f"{some_of(refused)}; name one of ours, such as nnUNetTrainerExtNoMirror, or one derived from them."
        )


class _Worker(Job):
    """A process that works on whatever is left of a study."""

    def __init__(self, world: World, left: Sequence[Run], where: str, number: int) -> None:
        super().__init__(
            name=f"worker {number}",
            command=["nnunet_ext.study.worker", where],
            log=world.root / "logs" / f"worker{number}.log",
            fold_folder=world.root,
        )
        self.world, self.left = world, left

    def progress(self) -> str:
        """How many of the runs are done, by whomever."""
        done = sum(scores_of(self.world, run) is not None for run in self.left)
        return f"{self.name}: {done} of {len(self.left)} trainings done"
