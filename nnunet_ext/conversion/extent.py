"""How much of a scan a case keeps: the box around the body or around a mask, and the number of slices."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from nnunet_ext.conversion.checks import AIR_HU
from nnunet_ext.conversion.loaded_case import LoadedCase
from nnunet_ext.conversion.source import Crop, Source
from nnunet_ext.errors import InputError
from nnunet_ext.geometry import Box, Grid
from nnunet_ext.preprocessing.body_mask import body_mask, cut_as_text
from nnunet_ext.preprocessing.resampling import grid_at_spacing, resample_image, resample_labels
from nnunet_ext.roi.boxes import crop as cut_out


def crop_case(loaded: LoadedCase, source: Source) -> LoadedCase:
    """The case without what lies beyond the body, or beyond its mask; every voxel stays where it was in the patient.

    The labels never decide where to cut: their place must not show in the field of view. Where no body is found (a scan
    that shows almost no air has none to lose) the case stays whole, and its notes say so.

    Args:
        loaded: In the canonical frame, the first channel a CT.
        source: Carries the crop, and the names of the organs for messages.

    Raises:
        InputError: the crop would cut a contour, or the case has no mask to crop to.
    """
    crop = source.treatment.crop
    if crop is None:
        return loaded
    try:
        mask = _mask(loaded, crop)
    except InputError as error:
        if crop.to == "guide":
            raise
        return replace(loaded, notes=(*loaded.notes, f"not cropped: {error}"))
    box = box_around(mask, loaded.grid, crop.margin_mm)
    _check_nothing_cut(loaded, box, source, crop)
    kept = np.prod(box.shape) / np.prod(loaded.grid.shape)
    return replace(
        loaded,
        images=tuple(cut_out(image, box) for image in loaded.images),
        labels=None if loaded.labels is None else cut_out(loaded.labels, box),
        guide=None,
        grid=loaded.grid.cropped(box),
        crop={"start": list(box.start), "stop": list(box.stop), "of": list(loaded.grid.shape)},
        notes=(*loaded.notes, f"cropped to the {crop.name} and {crop.margin_mm:g} mm: {kept:.0%} of the voxels kept"),
    )


def box_around(mask: NDArray[np.bool_], grid: Grid, margin_mm: float) -> Box:
    """The smallest box with a mask and a margin, cut at the borders of the image.

    Args:
        mask: Not empty.
        grid: Of the mask.
        margin_mm: At least this much on every side, in whole voxels.

    Shape:
        mask: (Z, Y, X) bool.
    """
    start, stop = [], []
    for axis in range(3):
        inside = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        margin = int(np.ceil(margin_mm / grid.spacing_mm[axis] - 1e-6))
        start.append(max(int(inside[0]) - margin, 0))
        stop.append(min(int(inside[-1]) + 1 + margin, grid.shape[axis]))
    return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))


def with_slices(loaded: LoadedCase, count: int) -> LoadedCase:
    """The case on ``count`` axial slices over the same length, so a slice has another thickness in every patient.

    For reproducing a paper only. Images by cubic B-splines, labels by linear interpolation.

    Args:
        loaded: In the canonical frame: slices along the first array axis.
        count: Number of slices; 0 leaves the case as it is.
    """
    old = loaded.grid
    if count in (0, old.shape[0]):
        return loaded
    z, y, x = old.spacing_mm
    grid = grid_at_spacing(old, (z * old.shape[0] / count, y, x))
    note = f"resampled from {old.shape[0]} slices of {z:.2f} mm to {count} of {grid.spacing_mm[0]:.2f} mm"
    labels = None if loaded.labels is None else resample_labels(loaded.labels, old, grid).astype(np.uint16)
    guide = None if loaded.guide is None else resample_labels(loaded.guide.astype(np.uint8), old, grid) > 0
    return replace(
        loaded,
        images=tuple(resample_image(image, old, grid, outside=AIR_HU) for image in loaded.images),
        labels=labels,
        guide=guide,
        grid=grid,
        notes=(*loaded.notes, note),
    )


def _mask(loaded: LoadedCase, crop: Crop) -> NDArray[np.bool_]:
    if crop.to == "body":
        return body_mask(loaded.images[0], loaded.grid.spacing_mm)
    if loaded.guide is None:
        raise InputError(f"there is no {crop.name} mask to crop to; add it, or convert with --crop body.")
    return loaded.guide


def _check_nothing_cut(loaded: LoadedCase, box: Box, source: Source, crop: Crop) -> None:
    if loaded.labels is None:
        return
    outside = loaded.labels.copy()
    outside[tuple(slice(a, b) for a, b in zip(box.start, box.stop, strict=True))] = 0
    numbers, counts = np.unique(outside[outside > 0], return_counts=True)
    cut = dict(zip(numbers.tolist(), counts.tolist(), strict=True))
    if cut:
        raise InputError(
            f"the crop to the {crop.name} and {crop.margin_mm:g} mm would cut {cut_as_text(cut, source.organs)}; "
            "correct the contours, add to --margin-mm, or convert with --crop none."
        )
