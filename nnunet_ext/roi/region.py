"""What a region is: which organs, how large, how its centre is found, and the box that follows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from nnunet_ext.errors import InputError
from nnunet_ext.geometry import Box, Grid
from nnunet_ext.labels import partner
from nnunet_ext.roi.boxes import overlaps
from nnunet_ext.roi.centre import Centre
from nnunet_ext.roi.chain import IN_BODY, Located
from nnunet_ext.roi.learned import Learned

CENTRE = "centre"
TRUTH = "truth"
NO_MODEL = (CENTRE, TRUTH, IN_BODY)
"""Sources of a centre that are no model."""


class Region(BaseModel):
    """A region of an image, as recipes and derived datasets declare it.

    Exactly one size is given. The axis order is (Z, Y, X) of the canonical LPS grid that converters write.

    Args:
        organs: Organs that the region is for, TG-263 names; with ``source`` "centre" they are what is segmented in it.
        source: Name of the model that finds the centre, "truth" (training only), "body" (the organ's usual place in the
            box of the body) or "centre" (middle of the image).
        fallback: Models to ask next when the first finds nothing.
        size_mm: Edge lengths in mm; voxels are rounded up.
        size_vox: Edge lengths in voxels.
        margin_mm: The region is the located organ's own box, this much larger on both sides per axis; "auto" takes the
            margins from what the locating model missed on the training cases.
        fraction: Edge lengths as a share of the image, for "centre".
        flip_right: One network for both sides: every organ of one side is a region of its own, the right one mirrored.
        plausible_mm: A centre this close to the organ's usual place is never refused as implausible.
        grow_at_most: How often a region that cuts a contour off is made larger and predicted again.
        min_retention: Smallest mean share of an organ's truth inside its training regions; with less it is not trained.
            Does not hold for "centre".
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
    margin_mm: tuple[float, float, float] | Literal["auto"] | None = None
    fraction: tuple[float, float, float] | None = None
    flip_right: bool = False
    plausible_mm: float = Field(60.0, gt=0)
    grow_at_most: int = Field(2, ge=0)
    min_retention: float = Field(0.99, ge=0, le=1)
    jitter_vox: tuple[float, float, float] = (1.0, 2.0, 2.0)
    copies: int = Field(2, ge=0)
    pad_value: float = -1024.0
    seed: int = Field(12345, ge=0)

    @model_validator(mode="after")
    def _every_name_once(self) -> Region:
        if not self.organs or not all(self.organs) or _has_twins(self.organs):
            raise ValueError(f"organs must name every organ of the region once, not [{', '.join(self.organs)}]")
        if self.fallback and self.source in NO_MODEL:
            raise ValueError(f'fallback is asked where a model finds nothing; with from: "{self.source}" leave it out')
        if _has_twins((self.source, *self.fallback)):
            raise ValueError(f"from {self.source} and fallback {', '.join(self.fallback)} name one model twice")
        return self

    @model_validator(mode="after")
    def _one_size(self) -> Region:
        sizes = [self.size_mm, self.size_vox, self.fraction, self.margin_mm]
        if sum(size is not None for size in sizes) != 1:
            raise ValueError("give exactly one of size_mm, size_vox, margin_mm, fraction")
        if (self.fraction is not None) != (self.source == CENTRE):
            raise ValueError('fraction goes with from: "centre", and only with it')
        if not all(0 < value < math.inf for size in sizes[:3] if isinstance(size, tuple) for value in size):
            raise ValueError("every edge of a region must be positive and finite")
        for name, values in (("margin_mm", self.margin_mm), ("jitter_vox", self.jitter_vox)):
            if isinstance(values, tuple) and not all(0 <= value < math.inf for value in values):
                raise ValueError(f"{name} must be finite and not be negative")
        if self.margin_mm == "auto" and self.source in NO_MODEL:
            raise ValueError(
                f'margin_mm "auto" learns from what a model misses; with from: "{self.source}" give numbers'
            )
        if self.flip_right and (self.source == CENTRE or not self._is_paired()):
            raise ValueError("flip_right needs organs that come in pairs named ..._L and ..._R, and a locating model")
        return self

    def _is_paired(self) -> bool:
        return all(partner(organ) in self.organs for organ in self.organs)

    def box(self, grid: Grid, located: Located, learned: Learned | None) -> Box:
        """The box of a region on a grid.

        Args:
            grid: Of the image.
            located: The centre, and the organ's own box where a model found it.
            learned: Margins and the organ's usual size, for regions that follow the organ.

        Raises:
            ValueError: the region follows the organ and nothing was learned.
        """
        if self.margin_mm is None:
            return Box.around(located.centre, self._shape(grid))
        if learned is None:
            raise ValueError("a region with margin_mm needs what was learned from training cases.")
        if located.found is None:
            return Box.around(located.centre, _voxels(learned.usual_mm, grid))
        margin = _voxels(self.margin_mm if isinstance(self.margin_mm, tuple) else learned.margin_mm, grid)
        z0, y0, x0 = (low - m for low, m in zip(located.found.low, margin, strict=True))
        z1, y1, x1 = (high + m for high, m in zip(located.found.high, margin, strict=True))
        return Box((z0, y0, x0), (z1, y1, x1))

    def is_in(self, grid: Grid, located: Located, learned: Learned | None) -> bool:
        """Whether the box of a region lies in the image, at least with a part."""
        return overlaps(self.box(grid, located, learned), grid.shape)

    def _shape(self, grid: Grid) -> tuple[int, int, int]:
        if self.size_vox is not None:
            return self.size_vox
        if self.size_mm is not None:
            return _voxels(self.size_mm, grid)
        z, y, x = (max(1, round(f * n)) for f, n in zip(self.fraction or (), grid.shape, strict=True))
        return z, y, x

    def padding(self, channel: str) -> float:
        """What lies outside the image in a channel: ``pad_value`` for CT, 0 for any other."""
        return self.pad_value if channel.upper() == "CT" else 0.0

    @staticmethod
    def middle(grid: Grid) -> Centre:
        """The middle of an image."""
        z, y, x = ((n - 1) / 2 for n in grid.shape)
        return z, y, x


def _has_twins(names: Sequence[str]) -> bool:
    return len(set(names)) < len(names)


def _voxels(edges_mm: Sequence[float], grid: Grid) -> tuple[int, int, int]:
    """Edge lengths in voxels, rounded up."""
    z, y, x = (math.ceil(mm / s - 1e-6) for mm, s in zip(edges_mm, grid.spacing_mm, strict=True))
    return z, y, x


def region_of(**values: Any) -> Region:
    """A region from options; None and empty values count as not given.

    Raises:
        InputError: the values do not fit together.
    """
    try:
        return Region(**{key: value for key, value in values.items() if value not in (None, ())})
    except ValidationError as error:
        faults = (f"{'.'.join(map(str, ('region', *e['loc'])))}: {e['msg']}" for e in error.errors())
        raise InputError(f"{'; '.join(faults)}.") from error


def box_entry(box: Box) -> dict[str, Any]:
    """A box for a JSON file."""
    return {"start": list(box.start), "stop": list(box.stop)}


def box_from_entry(entry: Mapping[str, Any]) -> Box:
    """A box from a JSON file."""
    (a, b, c), (d, e, f) = entry["start"], entry["stop"]
    return Box((a, b, c), (d, e, f))
