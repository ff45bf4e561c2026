"""One frame for all volumes: array axes permuted and flipped until closest to LPS; never interpolated."""

from __future__ import annotations

from itertools import permutations
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from nnunet_ext.geometry import Grid

Voxel = TypeVar("Voxel", bound=np.generic)


def axis_codes(grid: Grid) -> str:
    """Where the index axes x, y, z point to, such as ``LPS`` or ``RAS``."""
    order, signs = _closest_axes(grid)
    inverse = [order.index(axis) for axis in range(3)]
    return "".join("LPS"[p] if signs[p] > 0 else "RAI"[p] for p in inverse)


def to_lps(array: NDArray[Voxel], grid: Grid) -> tuple[NDArray[Voxel], Grid]:
    """Array and grid with index x closest to the patient's left, y to the back, z to the head.

    Every voxel keeps its value and its place in the patient.

    Shape:
        array: (Z, Y, X) on ``grid``.
        returns: (Z', Y', X') contiguous, and its Grid.
    """
    axes, flips = _array_turn(grid)
    return np.ascontiguousarray(np.flip(array.transpose(axes), flips)), _turned_grid(grid)


def from_lps(array: NDArray[Voxel], grid: Grid) -> NDArray[Voxel]:
    """The inverse of ``to_lps``: an LPS array back in the axis order of an image.

    Args:
        array: (Z', Y', X'), as to_lps gives it for ``grid``.
        grid: Of the image that the result belongs to.

    Shape:
        returns: grid.shape, contiguous.
    """
    axes, flips = _array_turn(grid)
    back = [axes.index(axis) for axis in range(3)]
    return np.ascontiguousarray(np.flip(array, flips).transpose(back))


def _array_turn(grid: Grid) -> tuple[list[int], tuple[int, ...]]:
    """Array axes in the order that makes them (Z, Y, X) of LPS, and those to flip afterwards."""
    order, signs = _closest_axes(grid)
    patient_axes = (2, 1, 0)  # S, P, L for Z, Y, X
    return [2 - order[p] for p in patient_axes], tuple(2 - p for p in patient_axes if signs[p] < 0)


def _turned_grid(grid: Grid) -> Grid:
    order, signs = _closest_axes(grid)
    direction = np.reshape(grid.direction, (3, 3))[:, list(order)] * np.asarray(signs)
    corner = [0, 0, 0]  # (z, y, x) of the old voxel that becomes voxel (0, 0, 0)
    for axis, sign in zip(order, signs, strict=True):
        corner[2 - axis] = grid.shape[2 - axis] - 1 if sign < 0 else 0
    x, y, z = grid.points_mm([corner])[0]
    shape = [grid.shape[2 - axis] for axis in order]
    spacing = [grid.spacing_mm[2 - axis] for axis in order]
    return Grid(
        (shape[2], shape[1], shape[0]),
        (spacing[2], spacing[1], spacing[0]),
        (float(x), float(y), float(z)),
        tuple(float(v) + 0.0 for v in direction.ravel()),  # + 0.0 turns -0.0 into 0.0
    )


def _closest_axes(grid: Grid) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """For the patient axes L, P, S: the index axis (x=0, y=1, z=2) that runs along it, and its sign."""
    direction = np.reshape(grid.direction, (3, 3))
    order = max(permutations(range(3)), key=lambda axes: sum(abs(direction[p, a]) for p, a in enumerate(axes)))
    signs = tuple(1 if direction[p, a] >= 0 else -1 for p, a in enumerate(order))
    return tuple(order), signs
