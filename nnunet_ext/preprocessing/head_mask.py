"""The head in an MR, and how well it agrees with the head in the CT."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nnunet_ext.errors import InputError
from nnunet_ext.geometry import Grid
from nnunet_ext.preprocessing.body_mask import body_mask
from nnunet_ext.preprocessing.images import (
    Mask,
    axial_axis,
    closed,
    filled_per_slice,
    largest_component,
    otsu_threshold,
)

CLOSING_MM = 5.0
"""Our choice: bridges the dark skull where a fat-suppressed scalp is dark as well."""


def head_mask(mr: NDArray[np.floating], spacing_mm: tuple[float, float, float], axial: int = 0) -> Mask:
    """The head in an MR: Otsu, gaps bridged, largest piece, holes of every axial slice filled.

    Values above the typical tissue are clipped before Otsu, or bright fluid and fat would draw the threshold above the
    brain (our choice).

    Args:
        mr: MR of any weighting, air near 0.
        spacing_mm: Voxel size along (Z, Y, X) in mm.
        axial: Array axis from head to foot.

    Shape:
        mr: (Z, Y, X).
        returns: (Z, Y, X) bool.

    Raises:
        InputError: the image is constant or nowhere positive.
    """
    positive = np.maximum(mr, 0)
    mean = float(positive.mean())
    if not mean > 0 or positive.min() == positive.max():
        raise InputError(f"no head can be found, the MR is {mean:g} everywhere or nowhere positive.")
    typical = float(np.median(positive[positive > mean / 2]))
    tissue = positive > otsu_threshold(positive, 0.0, typical)
    return filled_per_slice(largest_component(closed(tissue, spacing_mm, CLOSING_MM)), axial)


def overlap(ct_hu: NDArray[np.floating], mr: NDArray[np.floating], grid: Grid) -> float:
    """Dice of the body in the CT and the head in the MR, both on one grid.

    Counted only in the box where the MR has values other than 0: an MR of the head alone is not blamed for shoulders
    that it never saw.

    Shape:
        ct_hu, mr: (Z, Y, X) on ``grid``.
        returns: 0 to 1; 0 where one of the two is empty.

    Raises:
        InputError: no body or no head can be found.
    """
    axial = axial_axis(grid)
    return overlap_of_masks(
        body_mask(ct_hu, grid.spacing_mm, axial), head_mask(mr, grid.spacing_mm, axial), np.asarray(mr != 0)
    )


def overlap_of_masks(body: Mask, head: Mask, seen: Mask) -> float:
    """Dice of two masks inside the box of ``seen``; 0 where one of them is empty."""
    if not seen.any():
        return 0.0
    where = np.nonzero(seen)
    box = tuple(slice(int(axis.min()), int(axis.max()) + 1) for axis in where)
    both = np.count_nonzero(body[box]) + np.count_nonzero(head[box])
    return 2 * np.count_nonzero(body[box] & head[box]) / both if both else 0.0
