"""Axial slices as a reader expects them, drawn with contours: the patient's right on the left of the picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nnunet_ext.geometry import Grid, body_axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARGIN_MM = 45.0
"""What is shown around the organs (our choice: the outline of a head fits)."""


def axes_upright(grid: Grid) -> tuple[int, int, int]:
    """Array axes that run head-foot, front-back and left-right.

    Raises:
        ValueError: the grid is too oblique for axial slices.
    """
    z, y, x = (body_axis(grid.direction, patient_axis)[0] for patient_axis in (2, 1, 0))
    if len({z, y, x}) < 3:
        raise ValueError(f"direction {grid.direction} is too oblique for axial slices; resample the image first.")
    return z, y, x


def upright(array: NDArray[Any], grid: Grid, order: tuple[int, int, int]) -> NDArray[Any]:
    """The array with z to the head, y to the back and x to the patient's left: transposed and flipped.

    Args:
        array: (Z, Y, X) on the grid.
        grid: Its grid.
        order: What ``axes_upright`` says of it.
    """
    direction = np.reshape(grid.direction, (3, 3))
    flipped = tuple(i for i, axis in enumerate(order) if direction[2 - i, 2 - axis] < 0)
    return np.asarray(np.flip(array.transpose(order), flipped))


def region_around(
    mask: NDArray[np.bool_], spacing_mm: Sequence[float], margin_mm: float = MARGIN_MM
) -> tuple[slice, slice]:
    """Rows and columns of a (Z, Y, X) mask with a margin; everything where it is empty."""
    if not mask.any():
        return slice(None), slice(None)
    found = [np.flatnonzero(mask.any(axis=axes)) for axes in ((0, 2), (0, 1))]
    margins = [round(margin_mm / mm) for mm in spacing_mm[1:]]
    rows, columns = (slice(max(0, f[0] - m), f[-1] + m + 1) for f, m in zip(found, margins, strict=True))
    return rows, columns


def draw_slice(ax: Axes, pixels: NDArray[Any], spacing_mm: Sequence[float], window: tuple[float, float]) -> None:
    """An upright axial slice (Y, X) in true proportion, with its sides named.

    Args:
        ax: Where to draw.
        pixels: The slice.
        spacing_mm: Voxel size (Z, Y, X).
        window: Values drawn black and white.
    """
    low, high = window
    ax.imshow(pixels, cmap="gray", vmin=low, vmax=high, aspect=spacing_mm[1] / spacing_mm[2])
    ax.set_axis_off()
    for mark, x, side in (("R", 0.02, "left"), ("L", 0.98, "right")):
        ax.text(x, 0.98, mark, color="white", transform=ax.transAxes, ha=side, va="top", fontweight="bold")


def draw_outline(ax: Axes, mask: NDArray[np.bool_], colour: Any, line: str) -> None:
    """The outline of a (Y, X) mask over ``draw_slice``; nothing for an empty or full one."""
    if mask.any() and not mask.all():
        ax.contour(mask, levels=[0.5], colors=[colour], linestyles=[line], linewidths=1.3)
