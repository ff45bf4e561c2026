"""Whether a new image is like those that the models were trained on; a reader is told where it is not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nnunet_ext.geometry import LEFT_RIGHT, MAX_OBLIQUE_DEG, Grid, body_axis

SPACING_FACTOR = 3.0
"""Our choice: a voxel edge this many times larger or smaller than in training is reported."""
EXTENT_FACTOR = 1.25
"""Our choice: a scan this much longer on an axis than the median one in training was not cropped alike."""
SEEN_AS_WHOLE = "body"
"""A crop to the body cuts only air away: the network sees the same without it."""


@dataclass(frozen=True)
class Extent:
    """What a conversion made of the extent of the training scans, which nothing here repeats on a new one.

    Args:
        crop_to: What they were cropped to, such as ``liver``; "" where they were not.
        margin_mm: Kept around it.
        slices: Number of axial slices that every scan was resampled to; 0 where they were not.
    """

    crop_to: str = ""
    margin_mm: float = 0.0
    slices: int = 0

    @classmethod
    def of(cls, note: Mapping[str, Any]) -> Extent:
        """From the block ``nnunet_ext`` of a dataset.json."""
        crop = note.get("crop") or {}
        return cls(crop.get("to", ""), crop.get("margin_mm", 0.0), note.get("fixed_slices", 0))

    def warnings(self, name: str, grid: Grid, usual_mm: Sequence[float] | None) -> Iterator[str]:
        """What a reader must know of an image.

        Args:
            name: Of the model.
            grid: Of the image in the canonical frame.
            usual_mm: Median extent (Z, Y, X) of the training scans; None where that is not known.
        """
        if self.slices and grid.shape[0] != self.slices:
            yield (
                f"{name} was trained on scans resampled to {self.slices} axial slices, this one has {grid.shape[0]}: "
                "resample it alike, and the contours back; these are not to be trusted"
            )
        here_mm = [n * mm for n, mm in zip(grid.shape, grid.spacing_mm, strict=True)]
        if not self.crop_to or self.crop_to == SEEN_AS_WHOLE:
            return
        usual = list(usual_mm or ())
        if not usual or any(a > EXTENT_FACTOR * b for a, b in zip(here_mm, usual, strict=True)):
            known = f", those mostly {_sizes(usual)}" if usual else ""
            yield (
                f"{name} was trained on scans cropped to the {self.crop_to} and {self.margin_mm:g} mm around it; this "
                f"one spans {_sizes(here_mm)} mm (Z×Y×X){known}: crop it alike, these contours are not to be trusted"
            )


def oblique_warnings(grid: Grid) -> Iterator[str]:
    """That an image is turned more than any that was trained on."""
    oblique_deg = body_axis(grid.direction, LEFT_RIGHT)[1]
    if oblique_deg > MAX_OBLIQUE_DEG:
        yield f"the image is {oblique_deg:.0f}° oblique, more than any that was trained on"


def spacing_warnings(name: str, grid: Grid, plans: Mapping[str, Any]) -> Iterator[str]:
    """That the voxels of an image are far larger or smaller than those of a model's training images."""
    usual = plans["original_median_spacing_after_transp"]
    factors = [a / b for a, b in zip(sorted(grid.spacing_mm), sorted(usual), strict=True)]
    if max(factors) > SPACING_FACTOR or min(factors) < 1 / SPACING_FACTOR:
        yield f"voxel size far from what {name} was trained on"


def usual_extent_mm(plans: Mapping[str, Any]) -> list[float] | None:
    """Median extent (Z, Y, X) in mm of the images of a model's plans; None where they do not say it."""
    shape = plans.get("original_median_shape_after_transp")
    if shape is None:
        return None
    spacing = plans["original_median_spacing_after_transp"]
    return [float(shape[axis] * spacing[axis]) for axis in plans["transpose_backward"]]


def _sizes(sizes_mm: Sequence[float]) -> str:
    return "×".join(f"{mm:.0f}" for mm in sizes_mm)
