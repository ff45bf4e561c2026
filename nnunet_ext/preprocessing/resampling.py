"""Images and label maps on another grid, with origin and direction respected."""

from __future__ import annotations

from typing import Literal

import numpy as np
import SimpleITK as sitk  # noqa: N813 (the field's name for it)
from numpy.typing import NDArray

from nnunet_ext.geometry import Grid
from nnunet_ext.preprocessing.images import itk_image

TIE = 1e-5
"""Rounding of linear weights: a higher label wins only by more than this, so equal ones go to the lower number."""


def grid_at_spacing(grid: Grid, spacing_mm: tuple[float, float, float]) -> Grid:
    """The grid of the same field of view at about another spacing.

    Shape is ``round(shape · old / new)``, at least 1, and the outer *edges* of the corner voxels stay where they are,
    as in nnU-Net's resampling; so the true spacing is extent / shape, which differs a little from the wanted one, and
    the origin (a voxel *centre*, as ITK has it) moves by half the difference of the voxel sizes.

    Args:
        grid: Present grid.
        spacing_mm: Wanted voxel size along (Z, Y, X) in mm.

    Raises:
        ValueError: a wanted spacing is not positive.
    """
    if not all(s > 0 for s in spacing_mm):
        raise ValueError(f"a spacing must be positive, got {spacing_mm} mm.")
    old = np.asarray(grid.spacing_mm)
    shape = np.maximum(np.rint(np.asarray(grid.shape) * old / np.asarray(spacing_mm)), 1).astype(int)
    new = np.asarray(grid.shape) * old / shape
    x, y, z = grid.points_mm([(new / old - 1) / 2])[0]
    return Grid(
        (int(shape[0]), int(shape[1]), int(shape[2])),
        (float(new[0]), float(new[1]), float(new[2])),
        (float(x), float(y), float(z)),
        grid.direction,
    )


def resample_image(image: NDArray[np.floating], grid: Grid, target: Grid, outside: float) -> NDArray[np.float32]:
    """The image on another grid, by cubic B-splines.

    Our choice: clipped to the values of the input, since splines overshoot beside metal and air (no -1100 HU).

    Args:
        image: Values on ``grid``.
        grid: Where they are.
        target: Where they are wanted.
        outside: Value beyond the field of view, -1024 for CT, 0 for MR.

    Shape:
        image: (Z, Y, X).
        returns: target.shape, float32.
    """
    values = np.asarray(image, dtype=np.float32)
    moved = _resampled(values, grid, target, sitk.sitkBSpline, float("nan"))
    inside = np.clip(moved, values.min(), values.max())
    return np.where(np.isnan(moved), np.float32(outside), inside).astype(np.float32)


def resample_labels(
    labels: NDArray[np.integer],
    grid: Grid,
    target: Grid,
    method: Literal["nearest", "linear"] = "linear",
    outside: int = 0,
) -> NDArray[np.integer]:
    """The label map on another grid; only labels of the input appear.

    ``linear`` interpolates every label's own 0/1 image and takes the highest, which keeps borders half-way; equal ones
    go to the lower number. ``nearest`` is faster and steps.

    Shape:
        labels: (Z, Y, X).
        returns: target.shape, in the number type of the input.

    Raises:
        ValueError: unknown method.
    """
    if method not in ("nearest", "linear"):
        raise ValueError(f"labels are resampled nearest or linear, got {method!r}.")
    if method == "nearest":
        moved = _resampled(labels.astype(np.float32), grid, target, sitk.sitkNearestNeighbor, float(outside))
        return np.rint(moved).astype(labels.dtype)
    result = np.full(target.shape, outside, dtype=labels.dtype)
    best = np.full(target.shape, TIE, dtype=np.float32)  # beyond the field of view nobody has more than 0
    for number in np.unique(labels):
        share = _resampled((labels == number).astype(np.float32), grid, target, sitk.sitkLinear, 0.0)
        wins = share > best + TIE
        result[wins], best[wins] = number, share[wins]
    return result


def _resampled(
    array: NDArray[np.float32], grid: Grid, target: Grid, interpolator: int, outside: float
) -> NDArray[np.float32]:
    mover = sitk.ResampleImageFilter()
    mover.SetSize(target.shape[::-1])
    mover.SetOutputSpacing(target.spacing_mm[::-1])
    mover.SetOutputOrigin(target.origin_mm)
    mover.SetOutputDirection(target.direction)
    mover.SetInterpolator(interpolator)
    mover.SetDefaultPixelValue(outside)
    return np.asarray(sitk.GetArrayFromImage(mover.Execute(itk_image(array, grid))), dtype=np.float32)
