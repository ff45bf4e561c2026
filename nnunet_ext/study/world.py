"""A study's own nnU-Net folders: its noisy datasets take no number of the user's, and one folder removes them all."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_ext.conversion.noise import read_clean_dataset, structures_of
from nnunet_ext.errors import InputError, some_of
from nnunet_ext.io.atomic import read_json
from nnunet_ext.io.numbered import dataset_numbered, splits_in_use
from nnunet_ext.locations import DATA_VARIABLES, FILE_ENDING, nnunet_folder
from nnunet_ext.study.page import Row, Study

ALL, CLEAN = 0, 1
"""The folds of a study's datasets: all training cases, or those without noise; both are judged on the test cases."""
PLANS = "nnUNetPlansStudy"
MEAN = "mean"
"""The column beside those of the structures."""


@dataclass(frozen=True)
class Run:
    """One training of a study.

    Args:
        row: Noise.
        method: Name of the method.
        seed: Of noise and training.
        dataset: Folder name of its dataset.
        trainer: Trainer flag.
        configuration: Such as "2d".
        fold: ``ALL`` or ``CLEAN``.
    """

    row: Row
    method: str
    seed: int
    dataset: str
    trainer: str
    configuration: str
    fold: int

    @property
    def plans(self) -> str:
        """Name of its plans."""
        return f"{self.method}_s{self.seed}"

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.row.folder} {self.method} seed {self.seed}"

    def folder(self, world: World) -> Path:
        """nnU-Net's folder of this training."""
        model = f"{self.trainer}__{self.plans}__{self.configuration}"
        return world.results / self.dataset / model / f"fold_{self.fold}"


@dataclass(frozen=True)
class World:
    """Folders of a study.

    Args:
        study: The page.
        root: ``nnUNet_results/studies/<name>``.
        source: Raw folder of the user's clean dataset.
        training: Cases to train on.
        test: Cases to judge.
    """

    study: Study
    root: Path
    source: Path
    training: tuple[str, ...]
    test: tuple[str, ...]

    @classmethod
    def of(cls, study: Study) -> World:
        """The folders as the environment and the page say.

        Raises:
            InputError: dataset, fold or test cases are missing, the dataset is noisy or no NIfTI, or a structure is
                none of the dataset's or has a name that is taken.
        """
        source = dataset_numbered(nnunet_folder("nnUNet_raw"), study.dataset)
        read_clean_dataset(source)
        organs = structures_of(source)
        unknown = {organ for group in study.structures.values() for organ in group} - set(organs)
        if unknown:
            raise InputError(f"{source.name} has no {', '.join(sorted(unknown))}, which study {study.name} scores.")
        if MEAN in (study.structures or organs):
            raise InputError(
                f"study {study.name} scores a structure named {MEAN}, which is what its table calls the mean of all; "
                "give it another name under structures."
            )
        training, test = _split(study, source)
        return cls(study, nnunet_folder("nnUNet_results") / "studies" / study.name, source, training, test)

    @property
    def raw(self) -> Path:
        """The study's nnUNet_raw."""
        return self.root / "raw"

    @property
    def preprocessed(self) -> Path:
        """The study's nnUNet_preprocessed."""
        return self.root / "preprocessed"

    @property
    def results(self) -> Path:
        """The study's nnUNet_results."""
        return self.root / "results"

    @property
    def clean(self) -> str:
        """Folder name of the clean dataset, test cases included."""
        return f"Dataset001_{self.source.name.partition('_')[2]}"

    @property
    def dataset_json(self) -> dict[str, Any]:
        """Of the clean dataset."""
        return dict(read_json(self.source / "dataset.json"))

    def datasets(self) -> dict[tuple[Row, int], str]:
        """Folder name of the dataset of every row and seed; new ones get the next free numbers."""
        there = sorted(path.name for path in self.raw.glob("Dataset*")) if self.raw.is_dir() else []
        named = {name.partition("_")[2]: name for name in there if name != self.clean}
        free = itertools.count(1 + max([1, *(int(name[len("Dataset") :][:3]) for name in there)]))
        found = {}
        for seed, row in itertools.product(self.study.seeds, self.study.rows):
            name = f"{row.folder}_s{seed}"
            if row.level is None:
                found[row, seed] = self.clean
            else:
                found[row, seed] = named[name] if name in named else f"Dataset{next(free):03d}_{name}"
        return found

    def runs(self) -> list[Run]:
        """A training per row, method and seed, seed by seed, so that a study that is stopped early has whole tables.

        Rows that differ by their level alone have the same clean cases, so methods that see no others share a training.
        """
        study, datasets, found = self.study, self.datasets(), []
        for (row, seed), dataset in datasets.items():
            alike = next(other for other in study.rows if other.ratio == row.ratio)
            for name in study.methods_of(row):
                method = study.methods[name]
                sees, fold = (datasets[alike, seed], CLEAN) if method.cases == "clean" else (dataset, ALL)
                found.append(Run(row, name, seed, sees, method.trainer, study.configuration, fold))
        return found

    def trainings(self) -> list[Run]:
        """The runs without those that share the training of an earlier one."""
        found: dict[Path, Run] = {}
        for run in self.runs():
            found.setdefault(run.folder(self), run)
        return list(found.values())

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Let nnU-Net, in this process and those that it starts, see these folders."""
        before = {name: os.environ.get(name) for name in DATA_VARIABLES}
        for name, folder in zip(DATA_VARIABLES, (self.raw, self.preprocessed, self.results), strict=True):
            folder.mkdir(parents=True, exist_ok=True)
            os.environ[name] = str(folder)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


def cases_in(folder: Path) -> list[str]:
    """Names of the label maps of a folder."""
    return sorted(path.name.removesuffix(FILE_ENDING) for path in folder.glob(f"*{FILE_ENDING}"))


def _split(study: Study, source: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Cases to train on and cases to judge."""
    training: Sequence[str]
    test: Sequence[str]
    if study.held_out == "test":
        training, test = cases_in(source / "labelsTr"), cases_in(source / "labelsTs")
        if not test:
            raise InputError(f"{source} has no labelsTs to judge by; give a fold as held_out, such as held_out: 0.")
    else:
        splits = splits_in_use(source.name) or []
        if study.held_out >= len(splits):
            raise InputError(f"{source.name} has {len(splits)} folds, study {study.name} holds out {study.held_out}.")
        training, test = splits[study.held_out]["train"], splits[study.held_out]["val"]
    both = sorted(set(training) & set(test))
    if both or not training:
        what = f"trains and tests on {some_of(both)}" if both else "has no training case"
        raise InputError(f"{source.name} {what}; correct its folds or test cases.")
    return tuple(training), tuple(test)
