"""Where an organ lies in a label map, and where the body lies in an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

MIN_VOXELS = 5
"""Our choice: fewer voxels are no organ, they are noise."""
NEIGHBOUR_MM = 40.0
"""Other components this close to the largest one belong to the same region (our choice, for paired small organs)."""
MAX_PLACES = 5
"""Our choice: what comes after the fifth largest part is no organ."""
BODY_HU = -300.0
"""Between air and fat; our choice, only used for the box of the body."""
BODY_VOXELS = 128
"""Our choice: enough for the box of a body."""

Centre = tuple[float, float, float]


@dataclass(frozen=True)
class Found:
    """Where something is in a label map.

    Args:
        centre: Centroid, voxel (z, y, x), float.
        low: First voxel that it occupies, (z, y, x).
        high: One past the last.
    """

    centre: Centre
    low: tuple[int, int, int]
    high: tuple[int, int, int]


def find_all(
    labels: NDArray[np.integer], wanted: Sequence[int], spacing_mm: Sequence[float] = (1.0, 1.0, 1.0)
) -> list[Found]:
    """Places where some organs may be in a label map, the most likely one first.

    The first is the largest connected component with every other one whose centroid lies within 40 mm of its; what lies
    farther does not pull the centre. The next is the largest of the components left over, and so on. Components of
    fewer than 5 voxels count nowhere.

    Args:
        labels: (Z, Y, X) label map.
        wanted: Label numbers whose union is meant.
        spacing_mm: Voxel size (Z, Y, X).

    Returns:
        At most 5 places; none with fewer than 5 voxels.
    """
    return list(_groups(*_components(labels, wanted), spacing_mm))


def mask_of(
    labels: NDArray[np.integer],
    wanted: Sequence[int],
    places: Sequence[Found],
    spacing_mm: Sequence[float] = (1.0, 1.0, 1.0),
) -> NDArray[np.bool_]:
    """Voxels of some organs that belong to given ones of the places that ``find_all`` gives, and to no other.

    Shape:
        labels: (Z, Y, X) label map.
        returns: (Z, Y, X).
    """
    components, box = _components(labels, wanted)
    groups = _groups(components, box, spacing_mm)
    mask = np.zeros(labels.shape, dtype=bool)
    mask[box] = np.isin(components, [number for place in places for number in groups.get(place, ())])
    return mask


def _components(labels: NDArray[np.integer], wanted: Sequence[int]) -> tuple[NDArray[np.integer], tuple[slice, ...]]:
    """Connected components of some organs, numbered from 1, in the smallest box that holds them, and that box."""
    mask = _mask(labels, wanted)
    box = _extent(mask)
    return ndimage.label(mask[box], structure=np.ones((3, 3, 3)))[0], box


def _groups(
    components: NDArray[np.integer], box: Sequence[slice], spacing_mm: Sequence[float]
) -> dict[Found, list[int]]:
    """Places, the most likely one first, and the numbers of the components that each consists of."""
    parts = [_part(components, number, where) for number, where in enumerate(ndimage.find_objects(components), 1)]
    parts = [part for part in parts if part.voxels >= MIN_VOXELS]  # specks are no organ
    if not parts:
        return {}
    centroids = np.array([part.centroid for part in parts])
    sizes = np.array([part.voxels for part in parts])
    corner = [side.start for side in box]
    left = sizes.copy()
    groups: dict[Found, list[int]] = {}
    while len(groups) < MAX_PLACES and left.max() >= MIN_VOXELS:
        main = int(np.argmax(left))
        distance_mm = np.linalg.norm((centroids - centroids[main]) * np.asarray(spacing_mm), axis=1)
        near = (distance_mm <= NEIGHBOUR_MM) & (left > 0)
        centre = np.average(centroids[near], axis=0, weights=sizes[near]) + corner
        own = [part for part, close in zip(parts, near, strict=True) if close]
        groups[_place(centre.tolist(), [part.box for part in own], corner)] = [part.number for part in own]
        left[near] = 0
    return groups


@dataclass(frozen=True)
class _Part:
    """A connected component: its number, its box in the array, how many voxels it has and their centroid (z, y, x)."""

    number: int
    box: tuple[slice, ...]
    voxels: int
    centroid: tuple[float, ...]


def _part(components: NDArray[np.integer], number: int, box: tuple[slice, ...]) -> _Part:
    """Measured inside its box: of a large image nothing larger than a mask is made."""
    mask = components[box] == number
    voxels = int(np.count_nonzero(mask))
    counts = [np.count_nonzero(mask, axis=tuple(a for a in range(3) if a != axis)) for axis in range(3)]
    centroid = (side.start + float(n @ np.arange(len(n))) / voxels for side, n in zip(box, counts, strict=True))
    return _Part(number, box, voxels, tuple(centroid))


def _place(centre: Sequence[float], boxes: Sequence[tuple[slice, ...]], corner: Sequence[int]) -> Found:
    z0, y0, x0 = (min(part[axis].start for part in boxes) + corner[axis] for axis in range(3))
    z1, y1, x1 = (max(part[axis].stop for part in boxes) + corner[axis] for axis in range(3))
    return Found(triple(centre), (z0, y0, x0), (z1, y1, x1))


def find(
    labels: NDArray[np.integer], wanted: Sequence[int], spacing_mm: Sequence[float] = (1.0, 1.0, 1.0)
) -> Found | None:
    """The most likely place of some organs, as ``find_all`` gives it; None where they are missing."""
    return next(iter(find_all(labels, wanted, spacing_mm)), None)


def centre_of(
    labels: NDArray[np.integer], wanted: Sequence[int], spacing_mm: Sequence[float] = (1.0, 1.0, 1.0)
) -> Centre | None:
    """Centroid of some organs, voxel (z, y, x), as ``find`` gives it; None where they are missing."""
    found = find(labels, wanted, spacing_mm)
    return None if found is None else found.centre


def body_box(image: NDArray[np.floating]) -> tuple[Centre, Centre]:
    """First and one-past-last voxel (z, y, x) of the patient: the largest connected part above −300 HU.

    Axes of more than 128 voxels are looked at in steps, so the box is that coarse there.
    """
    step = np.array([max(1, n // BODY_VOXELS) for n in image.shape])
    components, count = ndimage.label(image[:: step[0], :: step[1], :: step[2]] > BODY_HU)
    if count == 0:
        return (0.0, 0.0, 0.0), triple(image.shape)
    largest = int(np.argmax(np.bincount(components.ravel())[1:])) + 1
    slices = ndimage.find_objects(components, max_label=largest)[largest - 1]
    low = np.array([s.start for s in slices]) * step
    return triple(low), triple(np.minimum(np.array([s.stop for s in slices]) * step, image.shape))


def _mask(labels: NDArray[np.integer], wanted: Sequence[int]) -> NDArray[np.bool_]:
    table = np.zeros(int(max([int(labels.max(initial=0)), *wanted])) + 1, dtype=bool)
    table[list(wanted)] = True
    return np.asarray(table[labels])


def _extent(mask: NDArray[np.bool_]) -> tuple[slice, ...]:
    """The smallest box that holds a mask; the first voxel for an empty one."""
    flat = np.any(mask, axis=0)
    ends = [np.flatnonzero(seen) for seen in (np.any(mask, axis=(1, 2)), np.any(flat, axis=1), np.any(flat, axis=0))]
    return tuple(slice(int(e[0]), int(e[-1]) + 1) if len(e) else slice(0, 1) for e in ends)


def triple(values: Any) -> Centre:
    """Three numbers along (Z, Y, X) as plain floats, from any array or list."""
    z, y, x = (float(v) for v in values)
    return z, y, x
