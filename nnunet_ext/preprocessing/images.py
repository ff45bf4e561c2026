"""Arrays (Z, Y, X) with a Grid as SimpleITK images, and what every step measures on them."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk  # noqa: N813 (the field's name for it)
from numpy.typing import NDArray
from scipy import ndimage

from nnunet_ext.geometry import HEAD_FOOT, Grid, body_axis

Mask = NDArray[np.bool_]
BINS = 256
"""Bins of the histogram behind Otsu's threshold; scikit-image's and ITK's number."""


def itk_image(array: NDArray[np.generic], grid: Grid) -> sitk.Image:
    """The array as an image that knows its place in the patient."""
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(grid.spacing_mm[::-1])
    image.SetOrigin(grid.origin_mm)
    image.SetDirection(grid.direction)
    return image


def axial_axis(grid: Grid) -> int:
    """Array axis whose slices are axial: the one that runs from head to foot."""
    return body_axis(grid.direction, HEAD_FOOT)[0]


def otsu_threshold(values: NDArray[np.floating], low: float, high: float) -> float:
    """Otsu's threshold between ``low`` and ``high``; values beyond count as the nearer end.

    Source: Otsu, IEEE Trans Syst Man Cybern 1979;9:62. Differs: where several thresholds separate equally well
    (an empty stretch of the histogram), their middle is taken, not the first, which would lie in the noise of air.

    Shape:
        values: any shape.

    Raises:
        ValueError: all values are equal after clipping.
    """
    counts, edges = np.histogram(np.clip(values, low, high), bins=BINS, range=(low, high))
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)[:-1]
    above = counts.sum() - below
    sums = np.cumsum(counts * centres)
    valid = (below > 0) & (above > 0)
    if not valid.any():
        raise ValueError(f"no threshold separates {counts.sum()} equal values.")
    mean_below = sums[:-1] / np.maximum(below, 1)
    mean_above = (sums[-1] - sums[:-1]) / np.maximum(above, 1)
    between = np.where(valid, below * above * (mean_above - mean_below) ** 2.0, -1.0)
    best = np.flatnonzero(between >= between.max() * (1 - 1e-12))
    return float(edges[1:-1][best].mean())


def distance_mm(mask: Mask, spacing_mm: tuple[float, float, float]) -> NDArray[np.float32]:
    """Distance from every voxel to the nearest voxel of the mask; infinite where the mask is empty.

    Shape:
        mask: (Z, Y, X) bool.
        returns: (Z, Y, X) float32 in mm, 0 in the mask.
    """
    if not mask.any():
        return np.full(mask.shape, np.inf, dtype=np.float32)
    image = itk_image(mask.astype(np.uint8), Grid(_triple(mask.shape), spacing_mm))
    signed = sitk.SignedMaurerDistanceMap(image, insideIsPositive=False, squaredDistance=False, useImageSpacing=True)
    return np.asarray(np.maximum(sitk.GetArrayFromImage(signed), 0), dtype=np.float32)


def opened(mask: Mask, spacing_mm: tuple[float, float, float], radius_mm: float) -> Mask:
    """The part of a mask that a ball fits into; beyond the image the mask goes on, so a cut neck stays."""
    eroded = distance_mm(~mask, spacing_mm) > radius_mm
    return np.asarray(distance_mm(eroded, spacing_mm) <= radius_mm) & mask


def closed(mask: Mask, spacing_mm: tuple[float, float, float], radius_mm: float) -> Mask:
    """The mask with gaps bridged that no ball fits through."""
    return ~opened(~mask, spacing_mm, radius_mm)


def largest_component(mask: Mask) -> Mask:
    """The largest piece of a mask, 26-neighbourhood; the first of equals, empty for an empty mask."""
    labels, count = ndimage.label(mask, structure=np.ones((3, 3, 3)))
    if count < 2:
        return mask
    return np.asarray(labels == np.bincount(labels.ravel())[1:].argmax() + 1)


def filled_per_slice(mask: Mask, axis: int) -> Mask:
    """The mask with the holes of every slice across ``axis`` filled."""
    slices = np.moveaxis(mask, axis, 0)
    full = np.stack([ndimage.binary_fill_holes(s) if s.any() else s for s in slices]).astype(bool)
    return np.ascontiguousarray(np.moveaxis(full, 0, axis))


def _triple(shape: tuple[int, ...]) -> tuple[int, int, int]:
    z, y, x = shape
    return z, y, x
