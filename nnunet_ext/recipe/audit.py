"""Contours worth a second look: what trained models, which never saw a case, think of what somebody drew there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nnunet_ext.errors import InputError, some_of
from nnunet_ext.evaluation.axial import axes_upright
from nnunet_ext.evaluation.contact_sheet import Tile, draw_contact_sheet
from nnunet_ext.evaluation.deviation import deviation
from nnunet_ext.evaluation.overlay import WINDOW_HU
from nnunet_ext.evaluation.suspicion import (
    DISTRUST,
    NO_QUALITY,
    Finding,
    csv_text,
    finding,
    not_contoured,
    ranked,
)
from nnunet_ext.geometry import HEAD_FOOT, body_axis, grid_difference
from nnunet_ext.io.atomic import write_text
from nnunet_ext.io.nifti import read_image
from nnunet_ext.recipe.audit_cases import HeldOutPair, ModelCases, RecipeCases, volume_ml
from nnunet_ext.recipe.places import Places
from nnunet_ext.recipe.schema import Recipe

Cases = ModelCases | RecipeCases

SHEET, TABLE = "audit.png", "audit.csv"
WORST = 12
FORGOTTEN = 0.5
"""Our choice: share of an organ's median volume from which a prediction without a contour is worth a line."""


def audit(
    run: str, output: Path | None, say: Callable[[str], None], warn: Callable[[str], None] | None = None
) -> list[Finding]:
    """Rank the contours of a trained model's or a recipe's cases by suspicion; write the table and the contact sheet.

    Organs that nobody contoured, though the model sees them, are the last lines of the table, behind all contours.

    Args:
        run: Model folder (``<trainer>__<plans>__<configuration>``) with finished folds, or a trained recipe.
        output: Folder to write; None is ``audit`` in the model's or the recipe's own folder.
        say: Receives what a reader of the list must know.
        warn: Receives why the list may mislead; None is ``say``.

    Returns:
        All contours, the most suspicious first.

    Raises:
        InputError: neither a model folder nor a recipe, no finished fold, or files that do not fit.
    """
    cases = ModelCases(Path(run), say) if Path(run).is_dir() else RecipeCases(Places.of(Recipe.load(run)))
    folder = output or cases.home / "audit"
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file, so nothing can be written into it; name a folder with -o.")
    found, lost, lines = _compared(cases)
    rows = ranked(found)
    if not rows:
        raise InputError(f"{run} has no contour that a model held out; train its folds first.")
    caveats = cases.caveats({row.case for row in rows})
    write_text(folder / TABLE, csv_text([*rows, *lost]))
    for line in caveats:
        (warn or say)(line)
    for line in [*lines, *distrusted(rows)]:
        say(line)
    drawn = _draw(folder / SHEET, rows[:WORST], cases, say)
    written = f"{folder / TABLE}, {folder / SHEET}" if drawn else f"{folder / TABLE}"
    say(f"{len(rows)} contours of {len({row.case for row in rows})} cases; written: {written}")
    return rows


def _compared(cases: Cases) -> tuple[list[Finding], list[Finding], list[str]]:
    """Every contour beside its prediction, those that were forgotten, and what is to be said of these."""
    found: list[Finding] = []
    lacking: list[Finding] = []
    drawn_ml: dict[str, list[float]] = defaultdict(list)
    for pair in cases.pairs():
        lacking += [not_contoured(pair.case, organ, pair.fold, ml) for organ, ml in pair.not_contoured_ml.items()]
        head_foot, _ = body_axis(pair.grid.direction, HEAD_FOOT)
        for organ, (contour, prediction) in pair.organs.items():
            drawn_ml[organ].append(volume_ml(contour, pair.grid))
            seen = deviation(contour, prediction, pair.grid.spacing_mm, head_foot)
            if seen is not None:
                quality, found_ml = pair.quality.get(organ, NO_QUALITY), volume_ml(prediction, pair.grid)
                found.append(finding(pair.case, organ, pair.fold, seen, quality, found_ml))
    lost = forgotten(drawn_ml, lacking)
    return found, lost, forgotten_lines(lost, lacking)


def forgotten(drawn_ml: Mapping[str, Sequence[float]], lacking: Collection[Finding]) -> list[Finding]:
    """Of the organs that nobody contoured in a case those of which the model sees much there, by organ and case.

    Args:
        drawn_ml: Organ to the volumes of its contours.
        lacking: Every organ that was not contoured in a case.
    """
    usual = {organ: float(np.median([v for v in ml if v > 0] or [np.inf])) for organ, ml in drawn_ml.items()}
    seen = [row for row in lacking if row.predicted_ml >= FORGOTTEN * usual.get(row.organ, np.inf)]
    return sorted(seen, key=lambda row: (row.organ, row.case))


def forgotten_lines(lost: Collection[Finding], lacking: Collection[Finding]) -> list[str]:
    """What to say of the forgotten ones among all organs that were not contoured, a line per organ."""
    lines = []
    for organ in dict.fromkeys(row.organ for row in lost):
        seen, without = ([row.case for row in rows if row.organ == organ] for rows in (lost, lacking))
        lines.append(
            f"not contoured, but the model sees it: {organ} in {len(seen)} of {len(without)} cases without a "
            f"contour ({some_of(seen)})"
        )
    return lines


def distrusted(rows: Sequence[Finding]) -> list[str]:
    """What to say of cases whose contours the quality network trusts much less than those beside them."""
    doubted = {row.case: row for row in sorted(rows, key=lambda row: row.distrust) if row.distrust > DISTRUST}
    if not doubted:
        return []
    names = [f"{case} (weight {row.weight:.2g})" for case, row in reversed(doubted.items())]
    return [f"cases the quality network distrusts: {some_of(names)}"]


def _draw(path: Path, worst: Sequence[Finding], cases: Cases, say: Callable[[str], None]) -> bool:
    """Write the sheet, and say which cases cannot be drawn; False where none can.

    Cases are read again, so that only those on the sheet are in memory.
    """
    tiles: dict[tuple[str, str], Tile] = {}
    for pair in cases.pairs({row.case for row in worst}):
        try:
            image = _image(pair)
        except (InputError, ValueError) as error:
            say(f"{pair.case} is not on {path.name}: {error}")
            continue
        low, high = (float(v) for v in np.percentile(image, (1, 99)))
        window = WINDOW_HU if pair.is_ct else (low, high)
        for row in (row for row in worst if row.case == pair.case):
            title = f"{row.case}  {row.organ}\n{row.kind}, {row.signed_mm:+.1f} mm, mean distance {row.assd_mm:.1f} mm"
            tiles[row.case, row.organ] = Tile(title, image, pair.grid, *pair.organs[row.organ], window)
    path.unlink(missing_ok=True)  # of an earlier audit
    if tiles:
        shown = [tiles[key] for row in worst if (key := (row.case, row.organ)) in tiles]
        draw_contact_sheet(path, shown, "Contours to look at first")
    return bool(tiles)


def _image(pair: HeldOutPair) -> NDArray[np.float32]:
    """The image of a case that can be drawn.

    Raises:
        InputError: it cannot be read, or lies on another grid than the contours.
        ValueError: its grid is too oblique for axial slices.
    """
    axes_upright(pair.grid)
    image, grid = read_image(pair.image)
    difference = grid_difference(grid, pair.grid)
    if difference:
        raise InputError(f"{pair.image} and the contours differ in grid: {difference}; convert the case again.")
    return image


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
