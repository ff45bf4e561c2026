"""What a region is: which organs, how large, how its centre is found, and the box that follows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from nnunet_ext.errors import InputError
from nnunet_ext.geometry import Box, Grid
from nnunet_ext.roi.centre import Centre

CENTRE = "centre"
TRUTH = "truth"


class Region(BaseModel):
    """A region of an image, as recipes and derived datasets declare it.

    Exactly one size is given. The axis order is (Z, Y, X) of the canonical LPS grid that converters write.

    Args:
        organs: Organs that the region is for, TG-263 names; with ``source`` "centre" they are what is segmented in it.
        source: Name of the model that finds the centre, "truth" (training only) or "centre" (middle of the image).
        fallback: Models to ask next when the first finds nothing.
        size_mm: Edge lengths in mm; voxels are rounded up.
        size_vox: Edge lengths in voxels.
        fraction: Edge lengths as a share of the image, for "centre".
        jitter_vox: Standard deviation of the shift of the training copies, in voxels.
        copies: Jittered copies per training case, beside the unshifted one.
        pad_value: What lies outside the image in a CT channel (−1024 HU is air).
        seed: Of the jitter.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    organs: tuple[str, ...]
    source: str = Field(alias="from")
    fallback: tuple[str, ...] = ()
    size_mm: tuple[float, float, float] | None = None
    size_vox: tuple[int, int, int] | None = None
    fraction: tuple[float, float, float] | None = None
    jitter_vox: tuple[float, float, float] = (1.0, 2.0, 2.0)
    copies: int = Field(2, ge=0)
    pad_value: float = -1024.0
    seed: int = 12345

    @model_validator(mode="after")
    def _one_size(self) -> Region:
        sizes = [self.size_mm, self.size_vox, self.fraction]
        if sum(size is not None for size in sizes) != 1:
            raise ValueError("give exactly one of size_mm, size_vox, fraction")
        if (self.fraction is not None) != (self.source == CENTRE):
            raise ValueError('fraction goes with from: "centre", and only with it')
        if any(value <= 0 for size in sizes if size is not None for value in size):
            raise ValueError("every edge of a region must be positive")
        return self

    def shape_in(self, grid: Grid) -> tuple[int, int, int]:
        """Voxels (Z, Y, X) of the region on a grid."""
        if self.size_vox is not None:
            return self.size_vox
        if self.size_mm is not None:
            z, y, x = (math.ceil(mm / s - 1e-6) for mm, s in zip(self.size_mm, grid.spacing_mm, strict=True))
        else:
            z, y, x = (max(1, round(f * n)) for f, n in zip(self.fraction or (), grid.shape, strict=True))
        return z, y, x

    def box(self, grid: Grid, centre: Centre) -> Box:
        """The box around a centre."""
        return Box.around(centre, self.shape_in(grid))

    def padding(self, channel: str) -> float:
        """What lies outside the image in a channel: ``pad_value`` for CT, 0 for any other."""
        return self.pad_value if channel.upper() == "CT" else 0.0

    @staticmethod
    def middle(grid: Grid) -> Centre:
        """The middle of an image."""
        z, y, x = ((n - 1) / 2 for n in grid.shape)
        return z, y, x


def region_of(**values: Any) -> Region:
    """A region from options; None and empty values count as not given.

    Raises:
        InputError: the values do not fit together.
    """
    try:
        return Region(**{key: value for key, value in values.items() if value not in (None, ())})
    except ValidationError as error:
        raise InputError("region: " + "; ".join(str(e["msg"]) for e in error.errors()) + ".") from error


def box_entry(box: Box) -> dict[str, Any]:
    """A box for a JSON file."""
    return {"start": list(box.start), "stop": list(box.stop)}


def box_from_entry(entry: dict[str, Sequence[int]]) -> Box:
    """A box from a JSON file."""
    (a, b, c), (d, e, f) = entry["start"], entry["stop"]
    return Box((a, b, c), (d, e, f))
