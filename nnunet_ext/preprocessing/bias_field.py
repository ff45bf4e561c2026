"""The slow brightness drift of an MR (bias field): estimated by N4 on a coarse image, removed at full resolution."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk  # noqa: N813 (the field's name for it)
from numpy.typing import NDArray

from nnunet_ext.errors import InputError
from nnunet_ext.geometry import Grid
from nnunet_ext.preprocessing.head_mask import head_mask
from nnunet_ext.preprocessing.images import Mask, axial_axis, itk_image

SHRINK = 4
LEVELS = 4
ITERATIONS = 50
SPLINE_MM = 200.0
TOLERANCE = 1e-7
"""The five numbers are ANTs' usual ones: ``-s 4 -c [50x50x50x50,1e-7] -b [200]``."""
SPLINE_ORDER = 3
MIN_VOXELS = 4
"""Our choice: no axis is shrunk below this many voxels."""
CHUNK = 10
"""Iterations between two looks at the clock; ITK's N4 does not stop in between, whatever it is told."""
TIME_LIMIT_S = 600.0
"""Our choice: several times what a head takes on one core; the limit is for broken files, since a field that was
stopped by the clock differs between machines."""

Progress = Callable[[float], None]


@dataclass(frozen=True)
class Corrected:
    """An MR without its bias field.

    Args:
        image: (Z, Y, X) float32, mean inside the mask as before.
        log_field: (Z, Y, X) float32, natural logarithm of the field: image = MR · exp(-log field).
        iterations: Number of iterations done, over all levels.
        stopped: Whether the time limit ended it.
    """

    image: NDArray[np.float32]
    log_field: NDArray[np.float32]
    iterations: int
    stopped: bool


def correct_bias_field(
    mr: NDArray[np.float32],
    grid: Grid,
    mask: Mask | None = None,
    *,
    progress: Progress | None = None,
    time_limit_s: float = TIME_LIMIT_S,
    clock: Callable[[], float] = time.monotonic,
) -> Corrected:
    """The MR divided by its bias field; never the shrunken image that the field was estimated on.

    Source: Tustison et al., N4ITK, IEEE Trans Med Imaging 2010;29:1310, in ITK's implementation. Differs: run in pieces
    of 10 iterations that start from the corrected image, their log fields added (the sum N4 itself makes), so that it
    can be stopped and watched; every axis is shrunk only up to 4 times the finest voxel, so thick slices stay.

    Args:
        mr: MR; voxels that are not positive have no logarithm and take no part in the estimate.
        grid: Its grid.
        mask: Where the field is estimated; None finds the head.
        progress: Called with the fraction done, 0 to 1.
        time_limit_s: No new piece starts after this; the field so far is used.
        clock: Seconds, rising.

    Shape:
        mr, mask: (Z, Y, X) on ``grid``.

    Raises:
        InputError: the mask has no positive voxel, or no head can be found.
    """
    mask = head_mask(mr, grid.spacing_mm, axial_axis(grid)) if mask is None else mask
    usable = mask & (mr > 0)
    if not usable.any():
        raise InputError("the MR has no positive voxel inside its head mask; the bias field works on logarithms.")
    factors = shrink_factors(grid)
    coarse = sitk.Shrink(itk_image(np.where(usable, mr, np.float32(1)).astype(np.float32), grid), factors)
    coarse_mask = sitk.Shrink(itk_image(usable.astype(np.uint8), grid), factors)
    spans, lower, upper = mesh_and_margins(coarse.GetSize(), coarse.GetSpacing())
    padded, padded_mask = (sitk.ConstantPad(part, lower, upper, part is coarse) for part in (coarse, coarse_mask))
    log_field, iterations, stopped = _estimated(padded, padded_mask, spans, progress, time_limit_s, clock)
    full = _at_full_resolution(log_field, grid)
    drawn_out = (mr[mask] * np.exp(-full[mask])).mean(dtype=np.float64)
    full += np.float32(np.log(drawn_out / mr[mask].mean(dtype=np.float64)))
    return Corrected((mr * np.exp(-full)).astype(np.float32), full, iterations, stopped)


def shrink_factors(grid: Grid) -> list[int]:
    """How much each axis (x, y, z) is shrunk: 4 for the finest, less for thicker voxels and few slices."""
    wanted = SHRINK * min(grid.spacing_mm)
    sides = zip(grid.spacing_mm[::-1], grid.shape[::-1], strict=True)
    return [max(1, min(round(wanted / spacing), SHRINK, voxels // MIN_VOXELS)) for spacing, voxels in sides]


def mesh_and_margins(size: Sequence[int], spacing_mm: Sequence[float]) -> tuple[list[int], list[int], list[int]]:
    """Mesh elements of 200 mm that cover each axis, and the voxels to add below and above so that they fit.

    As in ANTs: without the margin a small image would get a finer mesh, which takes organs for a field.
    """
    spans = [max(1, math.ceil(n * s / SPLINE_MM)) for n, s in zip(size, spacing_mm, strict=True)]
    extra = [max(0, round(k * SPLINE_MM / s) - n) for k, n, s in zip(spans, size, spacing_mm, strict=True)]
    return spans, [e // 2 for e in extra], [e - e // 2 for e in extra]


def _estimated(
    image: sitk.Image,
    mask: sitk.Image,
    spans: Sequence[int],
    progress: Progress | None,
    time_limit_s: float,
    clock: Callable[[], float],
) -> tuple[sitk.Image, int, bool]:
    """Log field on the coarse image, iterations done, and whether the clock ended it."""
    start, iterations, chunks = clock(), 0, ITERATIONS // CHUNK
    total = sitk.Image(image.GetSize(), sitk.sitkFloat32)
    total.CopyInformation(image)
    for level in range(LEVELS):
        mesh = [n * 2**level + SPLINE_ORDER for n in spans]
        for chunk in range(chunks):
            if clock() - start > time_limit_s:
                return total, iterations, True
            step, done = _one_chunk(sitk.Divide(image, sitk.Exp(total)), mask, mesh)
            total, iterations = sitk.Add(total, step), iterations + done
            if progress:
                progress((level * chunks + chunk + 1) / (LEVELS * chunks))
            if done < CHUNK:
                break
    return total, iterations, False


def _one_chunk(image: sitk.Image, mask: sitk.Image, mesh: list[int]) -> tuple[sitk.Image, int]:
    """The log field that a few iterations of N4 find on one mesh, and how many it took until it converged."""
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetMaximumNumberOfIterations([CHUNK])
    n4.SetConvergenceThreshold(TOLERANCE)
    n4.SetNumberOfControlPoints(mesh)
    n4.SetSplineOrder(SPLINE_ORDER)
    n4.Execute(image, mask)
    converged = n4.GetCurrentConvergenceMeasurement() <= TOLERANCE
    field = sitk.Cast(n4.GetLogBiasFieldAsImage(image), sitk.sitkFloat32)
    return field, min(CHUNK - converged, n4.GetElapsedIterations())


def _at_full_resolution(log_field: sitk.Image, grid: Grid) -> NDArray[np.float32]:
    """The smooth field on the image's own grid; beyond the outermost coarse centres the nearest value goes on."""
    like = itk_image(np.empty(grid.shape, np.uint8), grid)
    moved = sitk.Resample(log_field, like, sitk.Transform(), sitk.sitkLinear, 0.0, sitk.sitkFloat32, True)
    return np.asarray(sitk.GetArrayFromImage(moved), dtype=np.float32)
