"""Contours worth a second look: what trained models, which never saw a case, think of what somebody drew there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from nnunet_ext.errors import InputError, some_of
from nnunet_ext.evaluation.contact_sheet import Tile, draw_contact_sheet
from nnunet_ext.evaluation.deviation import deviation
from nnunet_ext.evaluation.overlay import WINDOW_HU
from nnunet_ext.evaluation.suspicion import Finding, csv_text, finding, ranked
from nnunet_ext.io.atomic import write_text
from nnunet_ext.io.nifti import read_image
from nnunet_ext.recipe.audit_cases import HeldOutPair, pairs_of_model, pairs_of_recipe, volume_ml
from nnunet_ext.recipe.places import Places
from nnunet_ext.recipe.schema import Recipe

SHEET, TABLE = "audit.png", "audit.csv"
WORST = 12
FORGOTTEN = 0.5
"""Our choice: share of an organ's median volume from which a prediction without a contour is worth a line."""


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
    drawn_ml: dict[str, list[float]] = defaultdict(list)
    forgotten_ml: dict[str, dict[str, float]] = defaultdict(dict)
    for pair in pairs:
        for organ, found_ml in pair.not_contoured_ml.items():
            forgotten_ml[organ][pair.case] = found_ml
        for organ, (contour, prediction) in pair.organs.items():
            drawn_ml[organ].append(volume_ml(contour, pair.grid))
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
    for line in forgotten(drawn_ml, forgotten_ml):
        say(line)
    say(f"{len(rows)} contours of {len({row.case for row in rows})} cases; written: {folder / TABLE}, {folder / SHEET}")
    return rows


def forgotten(drawn_ml: Mapping[str, Sequence[float]], found_ml: Mapping[str, Mapping[str, float]]) -> list[str]:
    """What to say of organs that nobody contoured in a case, though the model sees much of them there.

    Args:
        drawn_ml: Organ to the volumes of its contours.
        found_ml: Organ to case to the volume that was predicted where there is no contour.
    """
    lines = []
    for organ, by_case in sorted(found_ml.items()):
        usual = float(np.median([v for v in drawn_ml.get(organ, ()) if v > 0] or [np.inf]))
        seen = sorted(case for case, volume in by_case.items() if volume >= FORGOTTEN * usual)
        if seen:
            lines.append(
                f"not contoured, but the model sees it: {organ} in {len(seen)} of {len(by_case)} cases without a "
                f"contour ({some_of(seen)})"
            )
    return lines


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
