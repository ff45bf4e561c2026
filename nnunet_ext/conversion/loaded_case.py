"""A case as every converter hands it on: checked arrays in the canonical frame, in the dataset's numbers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from nnunet_ext.geometry import Grid


@dataclass(frozen=True)
class LoadedCase:
    """A case ready to be written.

    Args:
        images: One (Z, Y, X) float32 array per channel, LPS.
        grid: Grid of all arrays.
        labels: (Z, Y, X) in the dataset's numbers; None for a test case.
        contoured: Numbers of the organs that somebody contoured; the others are unknown, not absent.
        empty: Numbers of the organs whose contour was looked up and has no voxel; see ``Source.empty``.
        orientation: Axis codes of the source files.
        notes: Repairs and drops, one sentence each.
        kept: Organ name to the fraction of its voxels that survived a crop; empty where nothing was cropped.
        crop: Box that was kept; see CaseRecord.
        guide: (Z, Y, X) bool, the mask to crop to; None where there is none.
    """

    images: tuple[NDArray[np.float32], ...]
    grid: Grid
    labels: NDArray[np.uint16] | None
    contoured: tuple[int, ...]
    orientation: str
    notes: tuple[str, ...] = ()
    kept: dict[str, float] = field(default_factory=dict)
    crop: dict[str, list[int]] = field(default_factory=dict)
    guide: NDArray[np.bool_] | None = None
    empty: tuple[int, ...] = ()


def drawn_and_empty(labels: NDArray[np.integer], numbers: Iterable[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The organs of a label map that have voxels, and those that have none, ascending.

    Args:
        labels: In the dataset's numbers.
        numbers: Of all organs that the label map could hold.
    """
    found = {int(number) for number in np.unique(labels) if number}
    return tuple(sorted(found)), tuple(sorted(set(numbers) - found))
