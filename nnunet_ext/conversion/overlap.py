"""Label numbers for organs that overlap: one bit per organ, so that every overlap has a number of its own.

nnU-Net trains such a dataset with regions: an organ is the list of all numbers that have its bit. Also an overlap that
nobody expected, such as two lungs after a coarse dilation, is kept exactly.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from nnunet_ext.labels import partner, swap_pairs

MAX_ORGANS = 8
"""nnU-Net's reader that converted datasets use writes uint8."""


def overlap_labels(masks: Mapping[str, NDArray[np.bool_]], organs: Mapping[str, int]) -> NDArray[np.uint16]:
    """One label map that says of every voxel all organs there.

    Args:
        masks: Organ to where it is.
        organs: Organ to its number, 1 to n; number n has the value 2^(n-1).

    Shape:
        masks: all of one shape.
        returns: the same shape.

    Raises:
        ValueError: more organs than a label map can hold.
    """
    if len(organs) > MAX_ORGANS:
        raise ValueError(f"{len(organs)} overlapping organs need labels up to {2 ** len(organs) - 1}, at most 255 fit.")
    labels = np.zeros(next(iter(masks.values())).shape, dtype=np.uint16)
    for organ, mask in masks.items():
        labels |= np.where(mask, _bit(organs[organ]), 0).astype(np.uint16)
    return labels


def has_bit(labels: NDArray[np.integer], number: int) -> NDArray[np.bool_]:
    """Where the organ with this number is."""
    return (labels & _bit(number)) > 0


def overlap_regions(organs: Mapping[str, int]) -> dict[str, list[int]]:
    """For dataset.json: organ to all label values that contain it, in ascending order."""
    values = range(1, 2 ** len(organs))
    return {organ: [value for value in values if value & _bit(number)] for organ, number in organs.items()}


def overlap_swap_pairs(organs: Mapping[str, int]) -> list[tuple[int, int]]:
    """Pairs of label values that change places when left and right do, each once."""
    other = {organ: (partner(organ) or "") if (partner(organ) or "") in organs else organ for organ in organs}
    if not swap_pairs(organs):
        return []
    found = []
    for value in range(1, 2 ** len(organs)):
        swapped = sum(_bit(organs[other[organ]]) for organ, number in organs.items() if value & _bit(number))
        if value < swapped:
            found.append((value, swapped))
    return found


def _bit(number: int) -> int:
    return 1 << (number - 1)
