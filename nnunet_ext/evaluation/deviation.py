"""How a contour differs from a prediction of the same organ: how far, in which direction, and in what way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from nnunet_ext.evaluation.surfaces import foreground_extent, surface_distances, surface_points

Kind = Literal["larger", "smaller", "shifted", "missing part", "extra part", "no contour", "no prediction", "other"]

ONE_WAY = 0.6
"""Our choice: share of the mean distance that must have one sign for a contour to be larger or smaller as a whole."""
EXPLAINED = 0.5
"""Our choice: a shift explains a difference if undoing it halves the mean distance."""
PART = 0.1
"""Our choice: a part is one connected piece of a tenth of the organ."""
ELSEWHERE = 0.5
"""Our choice: where a part is missing the rest agrees, so half of the surface is nearer than half the mean distance."""
FITS = 0.5
"""Our choice: from this DSC on what touches a contour is the organ, however large another part of it is elsewhere."""
TOUCH_MM = 1e-6


@dataclass(frozen=True)
class Deviation:
    """A contour beside a prediction.

    Args:
        kind: What the contour is, seen from the prediction.
        assd_mm: Mean distance of the two surfaces. Where one of the two is empty, the radius of a ball of the other's
            volume; in a flat picture of the outlines, and of a disc.
        signed_mm: Mean distance with a sign, positive where the contour reaches farther than the prediction.
        shift_mm: Centroid of the contour minus that of the prediction, (Z, Y, X); NaN where one is empty.
        dsc: Overlap of the two.
        missing_slices: Share of the organ, as predicted, in slices that nobody drew, weighed by how sure it is that it
            belongs to the organ; see ``_missing_slices``. 0 to 1; 0 where a mask is empty, and in a flat picture.
    """

    kind: Kind
    assd_mm: float
    signed_mm: float
    shift_mm: tuple[float, float, float]
    dsc: float
    missing_slices: float = 0.0


def deviation(
    contour: NDArray[np.bool_], prediction: NDArray[np.bool_], spacing_mm: Sequence[float], head_foot: int = 0
) -> Deviation | None:
    """What is different about a contour; None where neither exists.

    Parts of the prediction that do not touch the contour are the model's fault, not the contour's, and do not count,
    unless the largest is larger than all that touch it and those do not fit: then the model sees the organ elsewhere.

    Args:
        contour: What somebody drew.
        prediction: What a model found that never saw this case.
        spacing_mm: Voxel size (Z, Y, X).
        head_foot: Array axis along which the slices lie, as ``geometry.body_axis`` finds it.

    Shape:
        contour, prediction: (Z, Y, X) bool; a flat picture has Z = 1.

    Raises:
        ValueError: the shapes differ.
    """
    box = foreground_extent(contour.view(np.uint8), prediction.view(np.uint8))
    drawn, found = contour[box], _parts_to_judge_by(contour[box], prediction[box])
    if len(drawn) == 1 and len(contour) == 1:  # in a plane no voxel lies on top
        drawn, found, spacing_mm, head_foot = drawn[0], found[0], spacing_mm[1:], 0
    order = [head_foot, *(axis for axis in range(drawn.ndim) if axis != head_foot)]
    drawn, found = (np.pad(mask.transpose(order), 1) for mask in (drawn, found))
    spacing_mm = [spacing_mm[axis] for axis in order]
    volumes = np.count_nonzero(drawn), np.count_nonzero(found)
    if not any(volumes):
        return None
    if not all(volumes):
        radius_mm = _radius(max(volumes) * float(np.prod(spacing_mm)), drawn.ndim)
        sign = 1.0 if volumes[0] else -1.0
        kind: Kind = "no prediction" if volumes[0] else "no contour"
        return Deviation(kind, radius_mm, sign * radius_mm, (float("nan"),) * 3, 0.0)
    outward, inward = _signed(drawn, found, spacing_mm)
    every = np.concatenate([outward, inward])
    assd_mm, signed_mm = float(np.abs(every).mean()), float(every.mean())
    shift = _centroid(drawn) - _centroid(found)
    shift_mm = np.zeros(3)
    shift_mm[np.add(order, 3 - drawn.ndim)] = shift * np.asarray(spacing_mm)
    z, y, x = map(float, shift_mm)
    dsc = 2.0 * np.count_nonzero(drawn & found) / sum(volumes)
    kind = _kind(drawn, found, spacing_mm, shift, (outward, inward))
    missing = 0.0 if drawn.ndim == 2 else _missing_slices(drawn, found)
    return Deviation(kind, assd_mm, signed_mm, (z, y, x), dsc, missing)


def judged_prediction(contour: NDArray[np.bool_], prediction: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """What of a prediction its contour is judged by, as ``deviation`` says.

    Args:
        contour: What somebody drew.
        prediction: What a model found.

    Shape:
        contour, prediction: (Z, Y, X) bool.
        returns: the same.
    """
    box = foreground_extent(contour.view(np.uint8), prediction.view(np.uint8))
    judged = np.zeros_like(prediction)
    judged[box] = _parts_to_judge_by(contour[box], prediction[box])
    return judged


def _parts_to_judge_by(drawn: NDArray[np.bool_], found: NDArray[np.bool_]) -> NDArray[np.bool_]:
    parts, count = ndimage.label(found, np.ones((3,) * found.ndim))
    if count < 2:
        return found
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    touching = np.unique(parts[drawn & found])
    near, largest = np.isin(parts, touching), sizes.argmax()
    fits = 2 * np.count_nonzero(near & drawn) >= FITS * (np.count_nonzero(near) + np.count_nonzero(drawn))
    if sizes[largest] > sizes[touching].sum() and not (touching.size and fits):
        near |= parts == largest
    return near


def _missing_slices(drawn: NDArray[np.bool_], found: NDArray[np.bool_]) -> float:
    """Share of the prediction in slices that nobody drew.

    Beyond an end of the contour it counts as far as the contour is wide there, its widest slice being 1: a contour that
    tapers off has ended, and where an organ's last slice lies is a matter of taste. All of it counts as far as the two
    agree in the slices that were drawn (their DSC): a model that is wrong there is no judge of what is missing.

    Source: ours; measured in benchmarks/RESULTS.md, "Contours worth a second look".

    Shape:
        drawn, found: (slices, rows, columns), neither empty.
    """
    contour, organ = (np.count_nonzero(mask, axis=(1, 2)) for mask in (drawn, found))
    low, high = np.flatnonzero(contour)[[0, -1]]
    undrawn = np.where(contour == 0, organ, 0)
    ends = undrawn[:low].sum() * contour[low] + undrawn[high:].sum() * contour[high]
    missing = ends / contour.max() + undrawn[low:high].sum()
    agreement = 2 * np.count_nonzero(drawn & found) / (contour.sum() + organ[contour > 0].sum())
    return float(agreement * missing / organ.sum())


def _kind(
    drawn: NDArray[np.bool_],
    found: NDArray[np.bool_],
    spacing_mm: Sequence[float],
    shift: NDArray[np.float64],
    distances: tuple[NDArray[np.float64], NDArray[np.float64]],
) -> Kind:
    every = np.concatenate(distances)
    mean = float(np.abs(every).mean())
    if np.median(np.abs(every)) < ELSEWHERE * mean:
        if every.mean() < 0 and _part(found & ~drawn, found):
            return "missing part"
        if every.mean() > 0 and _part(drawn & ~found, drawn):
            return "extra part"
    if np.any(np.rint(shift)) and mean > TOUCH_MM:
        back = ndimage.shift(drawn.astype(np.uint8), -np.rint(shift), order=0).astype(bool)
        if back.any() and np.abs(np.concatenate(_signed(back, found, spacing_mm))).mean() < EXPLAINED * mean:
            return "shifted"
    if every.mean() > ONE_WAY * mean:
        return "larger"
    if every.mean() < -ONE_WAY * mean:
        return "smaller"
    return "other"


def _signed(
    drawn: NDArray[np.bool_], found: NDArray[np.bool_], spacing_mm: Sequence[float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Distances of the contour's surface from the prediction's, and of the prediction's from the contour's, in mm;
    positive where the contour reaches farther."""
    points = [surface_points(mask.view(np.uint8), [[1]], spacing_mm)[0] for mask in (drawn, found)]
    to_found, to_drawn = surface_distances(points[0], points[1])
    voxels = [tuple(np.rint(p / np.asarray(spacing_mm)).astype(int).T) for p in points]
    return np.where(found[voxels[0]], -to_found, to_found), np.where(drawn[voxels[1]], to_drawn, -to_drawn)


def _part(difference: NDArray[np.bool_], whole: NDArray[np.bool_]) -> bool:
    """Whether a difference has one piece of a tenth of the organ that is solid in its slices: a shell of one voxel is
    none, a few slices that nobody drew are one."""
    in_slices = ndimage.generate_binary_structure(2, 1).reshape((1,) * (difference.ndim - 2) + (3, 3))
    pieces, count = ndimage.label(ndimage.binary_opening(difference, in_slices))
    return bool(count and np.bincount(pieces.ravel())[1:].max() >= PART * np.count_nonzero(whole))


def _radius(size: float, dim: int) -> float:
    """Of a disc of this area or a ball of this volume."""
    return float(np.sqrt(size / np.pi)) if dim == 2 else float((3 * size / (4 * np.pi)) ** (1 / 3))


def _centroid(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    return np.asarray(np.array(np.nonzero(mask)).mean(axis=1), dtype=np.float64)
