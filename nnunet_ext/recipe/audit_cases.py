"""Held-out cases for an audit: what somebody drew beside what a model found that never saw the case."""

from __future__ import annotations

import csv
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nnunet_ext.errors import InputError, some_of
from nnunet_ext.evaluation.caveats import noise_warning, overlap_warning
from nnunet_ext.evaluation.dataset import (
    DATASET_FILE,
    DatasetOrgans,
    check_same_labels,
    read_file_ending,
    read_first_channel,
    read_organs,
)
from nnunet_ext.evaluation.suspicion import Quality, qualities
from nnunet_ext.fusion.rules import FusionTable
from nnunet_ext.geometry import Grid, grid_difference
from nnunet_ext.io.nifti import read_labels
from nnunet_ext.io.numbered import SPLITS_FILE, Split, splits_in_use
from nnunet_ext.locations import FILE_ENDING, nnunet_folder
from nnunet_ext.recipe.places import Places
from nnunet_ext.recipe.selection import HeldOutCase, held_out_cases
from nnunet_ext.roi.provenance import HELD_OUT_CSV, HeldOut, held_out_predictions, unproven
from nnunet_ext.roi.raw_data import contoured_in
from nnunet_ext.roi.sides import WHOLE, parts_of

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class HeldOutPair:
    """A case with its contours and what a model that never saw it found.

    Args:
        case: Identifier.
        fold: Fold that held it out.
        grid: Grid of the case.
        organs: Organ to contour and prediction, (Z, Y, X) bool, for organs that were contoured; both with the organs
            inside it, whether somebody drew those or not.
        image: First channel.
        is_ct: Whether that is a CT.
        quality: Organ to what the quality network of its model says of the case; organs without one are left out.
        not_contoured_ml: Organ to the volume of its prediction, for organs that nobody contoured here.
    """

    case: str
    fold: int
    grid: Grid
    organs: Mapping[str, tuple[Mask, Mask]]
    image: Path
    is_ct: bool
    quality: Mapping[str, Quality] = field(default_factory=dict)
    not_contoured_ml: Mapping[str, float] = field(default_factory=dict)


class ModelCases:
    """Cases of the finished folds of one model, in its own dataset.

    Args:
        folder: Model folder.
        say: Receives what a reader of the audit must know.

    Raises:
        InputError: no finished fold, leaked cases, a dataset that is not there, has other labels than the model, or
            a damaged list of contoured labels.
    """

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self.home = folder
        self.dataset = nnunet_folder("nnUNet_raw") / folder.absolute().parent.name
        self.organs = _described(self.dataset, folder)
        self.is_ct = _is_ct(self.dataset / DATASET_FILE)
        splits = splits_in_use(self.dataset.name)
        if splits is None:
            raise InputError(
                f"{SPLITS_FILE} of {self.dataset.name} is missing; an audit needs the folds of the training."
            )
        splits = _finished(folder, splits, say)
        check_same_labels(self.dataset / DATASET_FILE, folder / DATASET_FILE)
        cases = sorted({case for split in splits for case in split["val"]})
        self.predictions = held_out_predictions(folder, splits, cases)
        for line in unproven(folder, self.predictions):
            say(line)
        self.present = contoured_in(self.dataset)
        self.quality = [held_out_quality(folder / f"fold_{fold}") for fold in range(len(splits))]

    @property
    def labels(self) -> Path:
        """Folder of the contours."""
        return self.dataset / "labelsTr"

    def caveats(self, cases: Collection[str]) -> list[str]:
        """Why a list of these cases may mislead."""
        files = ((self.predictions[case].path, self.labels / f"{case}{FILE_ENDING}") for case in cases)
        return [*noise_warning(self.labels, cases), *overlap_warning(self.home, files, self.organs)]

    def pairs(self, only: Collection[str] | None = None) -> Iterator[HeldOutPair]:
        """The cases, or some of them, each read when its turn comes.

        Raises:
            InputError: a prediction lies on another grid than the contours.
        """
        for case, held in self.predictions.items():
            if only is None or case in only:
                yield self._pair(case, held)

    def _pair(self, case: str, held: HeldOut) -> HeldOutPair:
        drawn, grid = read_labels(self.labels / f"{case}{FILE_ENDING}")
        seen, seen_grid = read_labels(held.path)
        difference = grid_difference(grid, seen_grid)
        if difference:
            raise InputError(f"{held.path} and the contours of {case} differ in grid: {difference}; validate again.")
        if self.organs.ignore is not None:
            seen = np.where(drawn == self.organs.ignore, 0, seen)  # nobody said what is there
        own, whole = self.organs.own, self.organs.whole
        known = [o for o, n in own.items() if case not in self.present or set(n) <= set(self.present[case])]
        masks = {organ: (np.isin(drawn, whole[organ]), np.isin(seen, whole[organ])) for organ in known}
        lacking = {o: volume_ml(np.isin(seen, whole[o]), grid) for o in whole if o not in known}
        image = self.dataset / "imagesTr" / f"{case}_0000{FILE_ENDING}"
        said = self.quality[held.fold].get(case)
        quality = {} if said is None else dict.fromkeys(masks, said)
        return HeldOutPair(case, held.fold, grid, masks, image, self.is_ct, quality, lacking)


def _described(dataset: Path, folder: Path) -> DatasetOrgans:
    path = dataset / DATASET_FILE
    if not path.exists():
        raise InputError(f"{path} is missing; {folder} must lie in nnUNet_results under the name of its dataset.")
    ending = read_file_ending(path)
    if ending != FILE_ENDING:
        raise InputError(f"{path} has files {ending}, only {FILE_ENDING} can be audited; convert them.")
    return read_organs(path)


def _is_ct(path: Path) -> bool:
    return read_first_channel(path).upper() == "CT"


def _finished(folder: Path, splits: list[Split], say: Callable[[str], None]) -> list[Split]:
    """The folds, those without all of their validation predictions holding out nothing.

    Raises:
        InputError: none is finished.
    """
    done = [
        all((folder / f"fold_{fold}" / "validation" / f"{case}{FILE_ENDING}").exists() for case in split["val"])
        for fold, split in enumerate(splits)
    ]
    if not any(done):
        raise InputError(f"{folder} has no fold with all its validation predictions; train its folds to the end first.")
    left = [str(fold) for fold, finished in enumerate(done) if not finished]
    if left:
        say(f"not finished, so not audited: fold {', '.join(left)}")
    return [split if finished else {**split, "val": []} for split, finished in zip(splits, done, strict=True)]


class RecipeCases:
    """Held-out cases of a recipe, every organ from the model that owns it.

    Args:
        places: Folders of the recipe.

    Raises:
        InputError: the recipe was not trained, its dataset is not what its models were trained on, or a damaged list
            of contoured labels.
    """

    def __init__(self, places: Places) -> None:
        if not places.fusion_table.exists():
            raise InputError(f"{places.fusion_table} is missing; run `nnunet-ext train {places.recipe.name}` first.")
        self.home = places.summary
        self.places, self.table = places, FusionTable.load(places.fusion_table)
        self.dataset = places.dataset_name(places.recipe.dataset)
        described = places.dataset_file(self.dataset)
        self.is_ct, self.labels = _is_ct(described), places.truth_folder()
        for model, spec in places.recipe.models.items():
            if spec.region is None:  # where there is one, its labels are compared with the page before they are used
                trained = places.model_folder(model) / DATASET_FILE
                check_same_labels(places.dataset_file(places.dataset_of(model)), trained)
        contoured_in(places.raw / self.dataset)  # refuses a damaged one before anything is read
        self.quality = {fold: _quality_of_owners(places, self.table, fold) for fold in places.recipe.folds}

    def caveats(self, cases: Collection[str]) -> list[str]:
        """Why a list of these cases may mislead; a recipe has no regions that overlap."""
        return noise_warning(self.labels, cases)

    def pairs(self, only: Collection[str] | None = None) -> Iterator[HeldOutPair]:
        """The cases, or some of them, each read when its turn comes.

        Raises:
            InputError: a model was not validated, or a prediction lies on another grid than the contours.
        """
        for item in held_out_cases(self.places):
            if only is None or item.case in only:
                yield self._pair(item)

    def _pair(self, item: HeldOutCase) -> HeldOutPair:
        numbers = {organ: i for i, organ in enumerate(self.places.recipe.organs, 1)}
        whole = {organ: (number, *item.inside.get(organ, ())) for organ, number in numbers.items()}
        judged = {model: item.judged(labels) for model, labels in item.predictions.items()}
        found = {organ: np.isin(judged[self.table.owner[organ]], group) for organ, group in whole.items()}
        known = [o for o, number in numbers.items() if item.contoured is None or number in item.contoured]
        masks = {organ: (np.isin(item.truth, whole[organ]), found[organ]) for organ in known}
        lacking = {organ: volume_ml(mask, item.grid) for organ, mask in found.items() if organ not in masks}
        image = self.places.raw / self.dataset / "imagesTr" / f"{item.case}_0000{FILE_ENDING}"
        said = self.quality[item.fold]
        quality = {organ: said[item.case, organ] for organ in masks if (item.case, organ) in said}
        return HeldOutPair(item.case, item.fold, item.grid, masks, image, self.is_ct, quality, lacking)


def _quality_of_owners(places: Places, table: FusionTable, fold: int) -> dict[tuple[str, str], Quality]:
    """Case and organ to what the quality network of the organ's owner says, where it has one."""
    found = {}
    for owner in table.owners:
        said = held_out_quality(places.fold_folder(owner, fold))
        region = places.recipe.models[owner].region
        if region is None:
            entries = {name: {"case": name, "part": WHOLE} for name in said}
            shown = {WHOLE: set(table.organs)}
        else:
            entries = places.sidecar(owner)["cases"] if said else {}
            shown = {part.name: set(part.organs) for part in parts_of(region)}
        for name in said.keys() & entries.keys():
            organs = shown.get(entries[name]["part"], set()) & table.owned_labels(owner).keys()
            found.update({(entries[name]["case"], organ): said[name] for organ in organs})
    return found


def held_out_quality(fold: Path) -> dict[str, Quality]:
    """What a quality trainer wrote of the held-out cases of a fold; empty for other trainers.

    Args:
        fold: Folder of the fold.

    Raises:
        InputError: the file is damaged.
    """
    path = fold / HELD_OUT_CSV
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8", errors="replace") as stream:
        weights = {row.get("case") or "a line": _number(row.get("weight")) for row in csv.DictReader(stream)}
    unread = [case for case, weight in weights.items() if not 0 <= weight < np.inf]
    if unread:
        raise InputError(
            f"{path} has no weight, a number from 0, for {some_of(unread)}, expected the columns case and weight; "
            "validate that fold again, or delete the file to audit without weights."
        )
    return qualities(weights)


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return float("nan")


def volume_ml(mask: Mask, grid: Grid) -> float:
    """Volume of a mask (Z, Y, X)."""
    return float(np.count_nonzero(mask) * np.prod(grid.spacing_mm) / 1000)
