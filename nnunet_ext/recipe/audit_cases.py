"""Held-out cases for an audit: what somebody drew beside what a model found that never saw the case."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_ext.errors import InputError
from nnunet_ext.evaluation.dataset import DatasetOrgans, read_organs
from nnunet_ext.fusion.rules import FusionTable
from nnunet_ext.geometry import Grid, grid_difference
from nnunet_ext.io.atomic import read_json
from nnunet_ext.io.nifti import read_labels
from nnunet_ext.io.numbered import SPLITS_FILE, Split, splits_in_use
from nnunet_ext.locations import nnunet_folder
from nnunet_ext.recipe.places import Places
from nnunet_ext.recipe.selection import held_out_cases
from nnunet_ext.roi.provenance import FILE_ENDING, HELD_OUT_CSV, held_out_predictions, unproven
from nnunet_ext.roi.raw_data import contoured_in

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class HeldOutPair:
    """A case with its contours and what a model that never saw it found.

    Args:
        case: Identifier.
        fold: Fold that held it out.
        grid: Grid of the case.
        organs: Organ to contour and prediction, (Z, Y, X) bool, for organs that were contoured.
        image: First channel.
        is_ct: Whether that is a CT.
        weight: Quality weight from a network that never saw the case; NaN without.
        not_contoured_ml: Organ to the volume of its prediction, for organs that nobody contoured here.
    """

    case: str
    fold: int
    grid: Grid
    organs: Mapping[str, tuple[Mask, Mask]]
    image: Path
    is_ct: bool
    weight: float = float("nan")
    not_contoured_ml: Mapping[str, float] = field(default_factory=dict)


def pairs_of_model(folder: Path, say: Callable[[str], None]) -> Iterator[HeldOutPair]:
    """Cases of the finished folds of one model, in its own dataset.

    Raises:
        InputError: no finished fold, leaked cases, or a dataset that is not there.
    """
    dataset = nnunet_folder("nnUNet_raw") / folder.absolute().parent.name
    described, organs = _described(dataset, folder)
    splits = splits_in_use(dataset.name)
    if splits is None:
        raise InputError(f"{SPLITS_FILE} of {dataset.name} is missing; an audit needs the folds of the training.")
    splits = _finished(folder, splits, say)
    cases = sorted({case for split in splits for case in split["val"]})
    present = contoured_in(dataset)
    weights = {c: w for fold in range(len(splits)) for c, w in held_out_weights(folder / f"fold_{fold}").items()}
    is_ct = described["channel_names"]["0"].upper() == "CT"
    groups = {name: [label] if isinstance(label, int) else list(label) for name, label in organs.organs.items()}
    predictions = held_out_predictions(folder, splits, cases)
    for line in unproven(folder, predictions):
        say(line)
    for case, held in predictions.items():
        drawn, grid = read_labels(dataset / "labelsTr" / f"{case}{FILE_ENDING}")
        seen, seen_grid = read_labels(held.path)
        difference = grid_difference(grid, seen_grid)
        if difference:
            raise InputError(f"{held.path} and the contours of {case} differ in grid: {difference}; validate again.")
        if organs.ignore is not None:
            seen = np.where(drawn == organs.ignore, 0, seen)  # nobody said what is there
        known = {o: g for o, g in groups.items() if case not in present or set(g) <= set(present[case])}
        masks = {organ: (np.isin(drawn, group), np.isin(seen, group)) for organ, group in known.items()}
        lacking = {o: volume_ml(np.isin(seen, g), grid) for o, g in groups.items() if o not in known}
        image = dataset / "imagesTr" / f"{case}_0000{FILE_ENDING}"
        yield HeldOutPair(case, held.fold, grid, masks, image, is_ct, weights.get(case, np.nan), lacking)


def _described(dataset: Path, folder: Path) -> tuple[Mapping[str, Any], DatasetOrgans]:
    path = dataset / "dataset.json"
    if not path.exists():
        raise InputError(f"{path} is missing; {folder} must lie in nnUNet_results under the name of its dataset.")
    described = read_json(path)
    if described["file_ending"] != FILE_ENDING:
        raise InputError(
            f"{path} has files {described['file_ending']}, only {FILE_ENDING} can be audited; convert them."
        )
    return described, read_organs(path)


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


def pairs_of_recipe(places: Places) -> Iterator[HeldOutPair]:
    """Held-out cases of a recipe, every organ from the model that owns it.

    Raises:
        InputError: the recipe was not trained.
    """
    if not places.fusion_table.exists():
        raise InputError(f"{places.fusion_table} is missing; run `nnunet-ext train {places.recipe.name}` first.")
    table, dataset = FusionTable.load(places.fusion_table), places.dataset_name(places.recipe.dataset)
    is_ct = places.dataset_json(dataset)["channel_names"]["0"].upper() == "CT"
    numbers = {organ: i for i, organ in enumerate(places.recipe.organs, 1)}
    for item in held_out_cases(places):
        found = {model: item.judged(labels) for model, labels in item.predictions.items()}
        masks = {
            organ: (item.truth == number, found[table.owner[organ]] == number)
            for organ, number in numbers.items()
            if item.contoured is None or number in item.contoured
        }
        lacking = {
            organ: volume_ml(found[table.owner[organ]] == number, item.grid)
            for organ, number in numbers.items()
            if organ not in masks
        }
        image = places.raw / dataset / "imagesTr" / f"{item.case}_0000{FILE_ENDING}"
        yield HeldOutPair(item.case, item.fold, item.grid, masks, image, is_ct, not_contoured_ml=lacking)


def held_out_weights(fold: Path) -> dict[str, float]:
    """Case to quality weight, as a quality trainer wrote them for its held-out cases; empty for other trainers."""
    path = fold / HELD_OUT_CSV
    if not path.exists():
        return {}
    with path.open(newline="") as stream:
        return {row["case"]: float(row["weight"]) for row in csv.DictReader(stream)}


def volume_ml(mask: Mask, grid: Grid) -> float:
    """Volume of a mask (Z, Y, X)."""
    return float(np.count_nonzero(mask) * np.prod(grid.spacing_mm) / 1000)
