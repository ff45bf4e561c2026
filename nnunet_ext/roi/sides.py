"""The regions of one declaration: one box for all its organs, or one for either side with the right one mirrored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from nnunet_ext.labels import partner
from nnunet_ext.roi.region import Region

Scalar = TypeVar("Scalar", bound=np.generic)
WHOLE, LEFT, RIGHT = "both", "left", "right"


@dataclass(frozen=True)
class Part:
    """One box of a region.

    Args:
        name: ``both``, ``left`` or ``right``.
        organs: Organ to label number in the network's own maps.
        suffix: Added to a case's name in the derived dataset.
    """

    name: str
    organs: Mapping[str, int]
    suffix: str = ""

    def seen(self, array: NDArray[Scalar]) -> NDArray[Scalar]:
        """An array as the network sees it: the right side mirrored along left-right, the last axis of (…, Z, Y, X)."""
        return np.ascontiguousarray(array[..., ::-1]) if self.name == RIGHT else array


def parts_of(region: Region) -> list[Part]:
    """The boxes that a region consists of."""
    if not region.flip_right:
        return [Part(WHOLE, {organ: i for i, organ in enumerate(region.organs, 1)})]
    numbers = network_labels(region)
    sides = {LEFT: "_L", RIGHT: "_R"}
    return [
        Part(name, {organ: numbers[organ[:-2]] for organ in region.organs if organ.endswith(side)}, side)
        for name, side in sides.items()
    ]


def network_labels(region: Region) -> dict[str, int]:
    """Names and numbers in the network's own maps: the organs, or without their side where one network does both."""
    names = [o[:-2] if region.flip_right and partner(o) else o for o in region.organs]
    return {name: i for i, name in enumerate(dict.fromkeys(names), 1)}


def frame_labels(region: Region) -> dict[str, int]:
    """Organ to label number in maps that were pasted back into whole images."""
    return {organ: i for i, organ in enumerate(region.organs, 1)}
