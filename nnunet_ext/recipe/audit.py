"""Contours worth a second look: what trained models, which never saw a case, think of what somebody drew there."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_ext.errors import InputError
from nnunet_ext.evaluation.contact_sheet import Tile, draw_contact_sheet
from nnunet_ext.evaluation.dataset import PRESENT_FILE, DatasetOrgans, read_organs, read_present
from nnunet_ext.evaluation.deviation import deviation
from nnunet_ext.evaluation.overlay import WINDOW_HU
from nnunet_ext.evaluation.suspicion import Finding, csv_text, finding, ranked
from nnunet_ext.fusion.rules import FusionTable
from nnunet_ext.geometry import Grid, grid_difference
from nnunet_ext.io.atomic import read_json, write_text
from nnunet_ext.io.nifti import read_image, read_labels
from nnunet_ext.locations import nnunet_folder
from nnunet_ext.recipe.places import Places
from nnunet_ext.recipe.schema import Recipe
from nnunet_ext.recipe.selection import held_out_cases
from nnunet_ext.roi.provenance import FILE_ENDING, HELD_OUT_CSV, held_out_predictions

SHEET, TABLE = "audit.png", "audit.csv"
WORST = 12
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
    """

    case: str
    fold: int
    grid: Grid
    organs: Mapping[str, tuple[Mask, Mask]]
    image: Path
    is_ct: bool
    weight: float = float("nan")


def audit(run: str, output: Path | None, say: Callable[[str], None]) -> list[Finding]:
    """Rank the contours of a trained model's or a recipe's cases by suspicion; write the table and the contact sheet.

    Args:
        run: Model folder (``<trainer>__<plans>__<configuration>``) with finished folds, or a trained recipe.
        output: Folder to write; None is ``audit`` in the model's or the recipe's own folder.
        say: Receives what a reader of the list must know.

    Returns:
        All contours, the most suspicious first.

    Raises:
        InputError: neither a model folder nor a recipe, no finished fold, or files that do not fit.
    """
    if Path(run).is_dir():
        home, pairs = Path(run), pairs_of_model(Path(run), say)
    else:
        places = Places.of(Recipe.load(run))
        home, pairs = places.summary, pairs_of_recipe(places)
    found: list[Finding] = []
    for pair in pairs:
        for organ, (contour, prediction) in pair.organs.items():
            seen = deviation(contour, prediction, pair.grid.spacing_mm)
            if seen is not None:
                found.append(finding(pair.case, organ, pair.fold, seen, pair.weight))
    rows = ranked(found)
    if not rows:
        raise InputError(f"{run} has no contour that a model held out; train its folds first.")
    folder = output or home / "audit"
    folder.mkdir(parents=True, exist_ok=True)
    _draw(folder / SHEET, rows[:WORST], pairs_of_model(home, lambda line: None) if Path(run).is_dir()
          else pairs_of_recipe(places))  # fmt: skip
    write_text(folder / TABLE, csv_text(rows))
    say(f"{len(rows)} contours of {len({row.case for row in rows})} cases; written: {folder / TABLE}, {folder / SHEET}")
    return rows


def pairs_of_model(folder: Path, say: Callable[[str], None]) -> Iterator[HeldOutPair]:
    """Cases of the finished folds of one model, in its own dataset.

    Raises:
        InputError: no finished fold, leaked cases, or a dataset that is not there.
    """
    dataset = nnunet_folder("nnUNet_raw") / folder.absolute().parent.name
    described, organs = _described(dataset, folder)
    splits = _finished(folder, _splits(dataset.name), say)
    cases = sorted({case for split in splits for case in split["val"]})
    present = read_present(dataset / PRESENT_FILE) if (dataset / PRESENT_FILE).exists() else {}
    weights = {c: w for fold in range(len(splits)) for c, w in held_out_weights(folder / f"fold_{fold}").items()}
    is_ct = described["channel_names"]["0"].upper() == "CT"
    groups = {name: [label] if isinstance(label, int) else list(label) for name, label in organs.organs.items()}
    for case, held in held_out_predictions(folder, splits, cases).items():
        drawn, grid = read_labels(dataset / "labelsTr" / f"{case}{FILE_ENDING}")
        seen, seen_grid = read_labels(held.path)
        difference = grid_difference(grid, seen_grid)
        if difference:
            raise InputError(f"{held.path} and the contours of {case} differ in grid: {difference}; validate again.")
        if organs.ignore is not None:
            seen = np.where(drawn == organs.ignore, 0, seen)  # nobody said what is there
        known = {o: g for o, g in groups.items() if case not in present or set(g) <= set(present[case])}
        masks = {organ: (np.isin(drawn, group), np.isin(seen, group)) for organ, group in known.items()}
        image = dataset / "imagesTr" / f"{case}_0000{FILE_ENDING}"
        yield HeldOutPair(case, held.fold, grid, masks, image, is_ct, weights.get(case, np.nan))


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


def _splits(dataset: str) -> list[dict[str, list[str]]]:
    path = nnunet_folder("nnUNet_preprocessed") / dataset / "splits_final.json"
    if not path.exists():
        raise InputError(f"{path} is missing; an audit needs the folds that the model was trained with.")
    splits: list[dict[str, list[str]]] = read_json(path)
    return splits


def _finished(
    folder: Path, splits: list[dict[str, list[str]]], say: Callable[[str], None]
) -> list[dict[str, list[str]]]:
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
        masks = {
            organ: (item.truth == number, item.predictions[table.owner[organ]] == number)
            for organ, number in numbers.items()
            if item.contoured is None or number in item.contoured
        }
        image = places.raw / dataset / "imagesTr" / f"{item.case}_0000{FILE_ENDING}"
        yield HeldOutPair(item.case, item.fold, item.grid, masks, image, is_ct)


def held_out_weights(fold: Path) -> dict[str, float]:
    """Case to quality weight, as a quality trainer wrote them for its held-out cases; empty for other trainers."""
    path = fold / HELD_OUT_CSV
    if not path.exists():
        return {}
    with path.open(newline="") as stream:
        return {row["case"]: float(row["weight"]) for row in csv.DictReader(stream)}


def _draw(path: Path, worst: list[Finding], pairs: Iterator[HeldOutPair]) -> None:
    """The sheet; cases are read again, so that only those on it are in memory."""
    wanted = {row.case for row in worst}
    tiles: dict[tuple[str, str], Tile] = {}
    for pair in pairs:
        if pair.case not in wanted:
            continue
        image = read_image(pair.image)[0]
        low, high = (float(v) for v in np.percentile(image, (1, 99)))
        for row in worst:
            if row.case == pair.case:
                title = (
                    f"{row.case}  {row.organ}\n{row.kind}, {row.signed_mm:+.1f} mm, mean distance {row.assd_mm:.1f} mm"
                )
                window = WINDOW_HU if pair.is_ct else (low, high)
                tiles[row.case, row.organ] = Tile(title, image, pair.grid, *pair.organs[row.organ], window)
    draw_contact_sheet(path, [tiles[row.case, row.organ] for row in worst], "Contours to look at first")


def overview(rows: list[Finding], count: int = WORST) -> str:
    """The first lines of the list, as a table."""
    lines = [
        f"{'rank':>4}  {'case':<20} {'organ':<16} {'kind':<14} {'mean mm':>8} {'signed':>7} {'weight':>7} {'susp.':>6}"
    ]
    for rank, row in enumerate(rows[:count], 1):
        weight = f"{row.weight:7.2f}" if np.isfinite(row.weight) else "      -"
        lines.append(
            f"{rank:>4}  {row.case:<20} {row.organ:<16} {row.kind:<14} {row.assd_mm:8.1f} {row.signed_mm:+7.1f} "
            f"{weight} {row.suspicion:6.1f}"
        )
    return "\n".join(lines)
