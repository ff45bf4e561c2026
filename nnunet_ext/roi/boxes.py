"""Cut a box out of a volume and put it back: padded, never shifted, exact."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from nnunet_ext.geometry import Box

Scalar = TypeVar("Scalar", bound=np.generic)


def crop(image: NDArray[Scalar], box: Box, pad_value: float = 0) -> NDArray[Scalar]:
    """The part of a volume inside a box; what lies outside the volume is ``pad_value``.

    Shape:
        image: (Z, Y, X).
        returns: box.shape, a copy of the same type.

    Raises:
        ValueError: box and volume do not overlap (padding alone is no image).
    """
    inside, target = _overlap(box, image.shape)
    part = np.full(box.shape, pad_value, dtype=image.dtype)
    part[target] = image[inside]
    return part


def paste(target: NDArray[Scalar], part: NDArray[Scalar], box: Box) -> NDArray[Scalar]:
    """A copy of a volume with a box replaced by ``part``; what reaches beyond the volume is dropped.

    Shape:
        target: (Z, Y, X); part: box.shape.
        returns: as target.

    Raises:
        ValueError: the part does not have the box's shape, or there is no overlap.
    """
    if part.shape != box.shape:
        raise ValueError(f"the part has shape {part.shape}, its box {box.shape}.")
    inside, source = _overlap(box, target.shape)
    result = target.copy()
    result[inside] = part[source]
    return result


def overlaps(box: Box, shape: Sequence[int]) -> bool:
    """Whether any voxel of a box lies in a volume of that shape."""
    return all(start < n and stop > 0 for start, stop, n in zip(box.start, box.stop, shape, strict=True))


def kept_fraction(labels: NDArray[np.integer], box: Box, wanted: Sequence[int]) -> float:
    """Share of the voxels of some organs that lie inside a box, 0 to 1; NaN where the organs are absent."""
    total = int(np.isin(labels, wanted).sum())
    return float(np.isin(crop(labels, box), wanted).sum()) / total if total else float("nan")


def _overlap(box: Box, shape: Sequence[int]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Slices of the overlap in the volume and in the box."""
    if not overlaps(box, shape):
        raise ValueError(f"the box {box.start}–{box.stop} lies outside the volume {tuple(shape)}.")
    low = [max(0, a) for a in box.start]
    high = [min(n, b) for n, b in zip(shape, box.stop, strict=True)]
    volume = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    part = tuple(slice(a - s, b - s) for a, b, s in zip(low, high, box.start, strict=True))
    return volume, part
