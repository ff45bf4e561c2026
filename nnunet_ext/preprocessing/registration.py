"""Rigid registration of an MR onto the grid of a CT."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk  # noqa: N813 (the field's name for it)
from numpy.typing import NDArray

from nnunet_ext.errors import InputError
from nnunet_ext.geometry import Grid
from nnunet_ext.preprocessing.body_mask import body_mask
from nnunet_ext.preprocessing.head_mask import head_mask, overlap_of_masks
from nnunet_ext.preprocessing.images import Mask, axial_axis, itk_image
from nnunet_ext.preprocessing.resampling import resample_image, resample_labels

BINS = 50
"""ITK's usual number of bins for Mattes' mutual information."""
SHRINK = (4, 2)
SMOOTH_MM = (3.0, 1.5)
"""Our choice: half the resolution suffices for six numbers and is four times faster than all of it."""
ITERATIONS = 150
SAMPLES = 0.2
"""Our choice: fraction of the voxels that the metric looks at."""
SEED = 20100
DIGITS = 6
"""Angles in rad and shifts in mm are rounded to this: sums of several threads differ in their last bits."""


@dataclass(frozen=True)
class Registered:
    """An MR on the CT's grid.

    Args:
        image: (Z, Y, X) float32 on the grid of the CT, cubic B-splines, 0 outside the MR.
        angles_rad: Rotation about x, y, z.
        shift_mm: Translation along x, y, z, LPS.
        centre_mm: Point that the rotation turns about, xyz.
        metric: Mattes' mutual information at the end, negative; lower is better.
        overlap_before: Dice of the head masks before, 0 to 1.
        overlap_after: The same afterwards.
    """

    image: NDArray[np.float32]
    angles_rad: tuple[float, float, float]
    shift_mm: tuple[float, float, float]
    centre_mm: tuple[float, float, float]
    metric: float
    overlap_before: float
    overlap_after: float


def register_rigid(ct_hu: NDArray[np.float32], ct_grid: Grid, mr: NDArray[np.float32], mr_grid: Grid) -> Registered:
    """The MR moved onto the CT, six degrees of freedom, the same result in every run.

    Use where the MR was taken in another position than the CT; deformation stays. The start is the better of the
    scanners' own coordinates and equal centres of the heads, judged by the metric, since a CT that reaches the
    shoulders draws its centre down.

    Source: Mattes et al., IEEE Trans Med Imaging 2003;22:120, in ITK's implementation.

    Shape:
        ct_hu: (Z, Y, X) on ``ct_grid``.
        mr: (Z, Y, X) on ``mr_grid``.

    Raises:
        InputError: no body or head can be found, or the images do not overlap.
    """
    body = body_mask(ct_hu, ct_grid.spacing_mm, axial_axis(ct_grid))
    head = head_mask(mr, mr_grid.spacing_mm, axial_axis(mr_grid))
    fixed = itk_image(np.clip(ct_hu, -1000, 1000).astype(np.float32), ct_grid)
    moving = itk_image(np.asarray(mr, dtype=np.float32), mr_grid)
    try:
        best = _best_start(fixed, moving, _starts(body, ct_grid, head, mr_grid))
        method = _method(best)
        method.Execute(fixed, moving)
        best.SetParameters([round(value, DIGITS) for value in best.GetParameters()])
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise InputError(f"CT and MR cannot be registered ({reason}); check that both show the same head.") from error
    moved_grid = _moved_grid(mr_grid, best)
    ax, ay, az, tx, ty, tz = best.GetParameters()
    return Registered(
        image=resample_image(mr, moved_grid, ct_grid, outside=0.0),
        angles_rad=(ax, ay, az),
        shift_mm=(tx, ty, tz),
        centre_mm=best.GetCenter(),
        metric=float(method.GetMetricValue()),
        overlap_before=_overlap(body, ct_grid, head, mr_grid),
        overlap_after=_overlap(body, ct_grid, head, moved_grid),
    )


def _overlap(body: Mask, ct_grid: Grid, head: Mask, mr_grid: Grid) -> float:
    """Dice inside the MR's field of view once it lies on the CT's grid."""
    moved = resample_labels(head.astype(np.uint8), mr_grid, ct_grid, "nearest") > 0
    seen = resample_labels(np.ones(head.shape, np.uint8), mr_grid, ct_grid, "nearest") > 0
    return overlap_of_masks(body, np.asarray(moved), np.asarray(seen))


def _starts(body: Mask, ct_grid: Grid, head: Mask, mr_grid: Grid) -> list[sitk.Euler3DTransform]:
    """Scanner coordinates, and the centres of both masks on each other; turning point is the head's centre."""
    ct_centre = ct_grid.points_mm([np.argwhere(body).mean(axis=0)])[0]
    mr_centre = mr_grid.points_mm([np.argwhere(head).mean(axis=0)])[0]
    starts = []
    for shift in (np.zeros(3), mr_centre - ct_centre):
        start = sitk.Euler3DTransform()
        start.SetCenter([float(v) for v in mr_centre - shift])
        start.SetTranslation([float(v) for v in shift])
        starts.append(start)
    return starts


def _best_start(fixed: sitk.Image, moving: sitk.Image, starts: list[sitk.Euler3DTransform]) -> sitk.Euler3DTransform:
    """The start with the lowest metric; one whose images do not meet is left out."""
    values: list[tuple[float, int]] = []
    reason = RuntimeError("no start")
    for number, start in enumerate(starts):
        try:
            values.append((float(_method(start).MetricEvaluate(fixed, moving)), number))
        except RuntimeError as error:
            reason = error
    if not values:
        raise reason
    return starts[min(values)[1]]


def _method(start: sitk.Euler3DTransform) -> sitk.ImageRegistrationMethod:
    """Mutual information, two resolutions, gradient descent."""
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(BINS)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(SAMPLES, SEED)
    method.SetShrinkFactorsPerLevel(SHRINK)
    method.SetSmoothingSigmasPerLevel(SMOOTH_MM)
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=2.0, minStep=1e-3, numberOfIterations=ITERATIONS, relaxationFactor=0.6
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetInitialTransform(start, inPlace=True)
    return method


def _moved_grid(grid: Grid, transform: sitk.Euler3DTransform) -> Grid:
    """The MR's grid carried into the CT's space: the transform maps CT points to MR points, so its inverse."""
    inverse = transform.GetInverse()
    x, y, z = inverse.TransformPoint(grid.origin_mm)
    turn = np.reshape(transform.GetMatrix(), (3, 3)).T
    direction = turn @ np.reshape(grid.direction, (3, 3))
    return Grid(grid.shape, grid.spacing_mm, (x, y, z), tuple(float(v) for v in direction.ravel()))
