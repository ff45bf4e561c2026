"""Whether a contour was cut off by its region, and the larger region to try next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from nnunet_ext.geometry import Box

GROWTH = 0.25
"""Our choice: a side that is touched moves out by a quarter of the region's edge; at least 10 mm."""
MIN_GROWTH_MM = 10.0
PART_SHARE = 0.2
"""Our choice: a part of fewer voxels than this share of the largest one is a speck, not the other half of an organ."""

Side = tuple[int, int]
"""Axis 0 to 2 (Z, Y, X), and 0 for its low or 1 for its high end."""


def inner_sides(box: Box, shape: Sequence[int]) -> list[Side]:
    """Sides of a region that lie inside the image, where it may cut something off."""
    low = [(axis, 0) for axis in range(3) if box.start[axis] > 0]
    return low + [(axis, 1) for axis in range(3) if box.stop[axis] < shape[axis]]


def touched_sides(part: NDArray[np.bool_], box: Box, shape: Sequence[int]) -> list[Side]:
    """Inner sides of a region that an organ touches, with as little as one voxel: a thin nerve runs out through few.

    Connected parts count if they hold a fifth of the largest one's voxels. Smaller ones are specks: a network that is
    unsure leaves them at borders, and a region that grew for them would only gather more.

    Args:
        part: The organ inside the region.
        box: The region.
        shape: Of the image, (Z, Y, X).

    Shape:
        part: box.shape.
    """
    sides = [side for side in inner_sides(box, shape) if _on_side(part, side).any()]
    if not sides:
        return []
    components, _ = ndimage.label(part, structure=np.ones((3, 3, 3)))
    sizes = np.bincount(components.ravel())
    sizes[0] = 0
    counts = sizes >= PART_SHARE * sizes.max()
    return [side for side in sides if counts[_on_side(components, side)].any()]


def _on_side(part: NDArray[Any], side: Side) -> NDArray[Any]:
    axis, end = side
    return np.asarray(np.take(part, -end, axis=axis))


def grown(box: Box, sides: Sequence[Side], spacing_mm: Sequence[float]) -> Box:
    """A region whose given sides moved outwards; the others stay."""
    start, stop = list(box.start), list(box.stop)
    for axis, end in sides:
        by = int(np.ceil(max(GROWTH * box.shape[axis], MIN_GROWTH_MM / spacing_mm[axis])))
        if end:
            stop[axis] += by
        else:
            start[axis] -= by
    return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))
