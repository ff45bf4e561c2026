"""A page of the contours that deserve a second look first: each on the slice where it differs most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nnunet_ext.evaluation.axial import axes_upright, draw_outline, draw_slice, region_around, upright
from nnunet_ext.evaluation.deviation import judged_prediction
from nnunet_ext.geometry import Grid
from nnunet_ext.io.atomic import atomic_path

COLUMNS = 4
MARGIN_MM = 20.0
"""Our choice: enough to see what lies beside the organ."""
DRAWN, FOUND = ("#ffd000", "--"), ("#00c8ff", "-")
"""Colour and line of the contour and of the prediction; told apart without colours, too."""


@dataclass(frozen=True)
class Tile:
    """One contour to look at.

    Args:
        title: One or two lines, without anything that identifies a patient.
        image: (Z, Y, X).
        grid: Of the image and both masks.
        contour: (Z, Y, X) what somebody drew.
        prediction: (Z, Y, X) what a model found.
        window: Values drawn black and white.
    """

    title: str
    image: NDArray[np.float32]
    grid: Grid
    contour: NDArray[np.bool_]
    prediction: NDArray[np.bool_]
    window: tuple[float, float]


def draw_contact_sheet(path: Path, tiles: Sequence[Tile], heading: str) -> None:
    """Write a PNG with one axial slice per tile, four in a row, whole or not at all.

    Slices are in the radiological convention: the patient's right is on their left. A slice is chosen and cropped by
    what a contour is judged by (``judged_prediction``), and all of the prediction is drawn there.

    Args:
        path: The PNG to write.
        tiles: In the order to show.
        heading: One line above them.

    Raises:
        ValueError: there is no tile, or a grid is too oblique for axial slices.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    if not tiles:
        raise ValueError("a contact sheet needs at least one tile.")
    rows = -(-len(tiles) // COLUMNS)
    figure = Figure(figsize=(3.4 * COLUMNS, 3.7 * rows + 0.8), layout="constrained", facecolor="white")
    axes = np.atleast_1d(figure.subplots(rows, COLUMNS)).ravel()
    for ax in axes[len(tiles) :]:
        ax.set_axis_off()
    for ax, tile in zip(axes, tiles, strict=False):
        order = axes_upright(tile.grid)
        masks = (tile.contour, tile.prediction, judged_prediction(tile.contour, tile.prediction))
        image, drawn, found, judged = (upright(a, tile.grid, order) for a in (tile.image, *masks))
        spacing_mm = [tile.grid.spacing_mm[axis] for axis in order]
        z = worst_slice(drawn, judged)
        y, x = region_around((drawn | judged)[z][None], spacing_mm, MARGIN_MM)
        draw_slice(ax, image[z, y, x], spacing_mm, tile.window)
        for mask, (colour, line) in ((drawn, DRAWN), (found, FOUND)):
            draw_outline(ax, mask[z, y, x], colour, line)
        ax.set_title(f"{tile.title}\nslice {z + 1} of {len(image)}", fontsize=9, parse_math=False)
    lines = [Line2D([], [], color=c, linestyle=style, label=name)
             for (c, style), name in ((DRAWN, "contour"), (FOUND, "prediction"))]  # fmt: skip
    figure.legend(handles=lines, loc="outside lower center", ncols=2)
    figure.suptitle(heading, parse_math=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)


def worst_slice(contour: NDArray[np.bool_], prediction: NDArray[np.bool_]) -> int:
    """The slice along the first axis where two (Z, Y, X) masks differ in most voxels; the middle one if they agree."""
    differing = np.count_nonzero(contour != prediction, axis=(1, 2))
    return int(differing.argmax()) if differing.any() else int(np.median(np.flatnonzero(contour.any(axis=(1, 2)))))
