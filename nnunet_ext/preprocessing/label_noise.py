"""Contours drawn too small or too large on purpose: arrays in, arrays out.

Source: the noise of the quality-weighting study (ALGORITHMS 2a): all structures of an image eroded or all dilated by n
pixels. Differs: a Euclidean disc (in 3D a ball) instead of repeated 3×3 squares, so a corner does not move further than
an edge; millimetres and 3D as well.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, find_objects

Direction = Literal["erode", "dilate"]
Unit = Literal["voxels", "mm"]
_ELSEWHERE = 1e6
"""Step to the next slice where slices do not see each other; longer than any image."""


@dataclass(frozen=True)
class Displacement:
    """How far and to which side the contours of a case are moved.

    Args:
        direction: "erode" makes every structure smaller, "dilate" larger.
        amount: Distance in ``unit``.
        unit: "voxels" counts steps along the array axes, "mm" uses the spacing.
        in_plane: Move within the slices of axis 0 only.
    """

    direction: Direction
    amount: float
    unit: Unit = "voxels"
    in_plane: bool = False

    def steps(self, spacing_mm: Sequence[float]) -> tuple[float, float, float]:
        """Length of one step along (Z, Y, X) in ``unit``."""
        z, y, x = (1.0, 1.0, 1.0) if self.unit == "voxels" else tuple(map(float, spacing_mm))
        return (_ELSEWHERE if self.in_plane else z), y, x

    def reach(self, spacing_mm: Sequence[float]) -> float:
        """Largest distance, voxel centre to voxel centre, at which a voxel changes side.

        Whole voxels reach themselves. Millimetres reach half the smallest voxel edge further, because a contour runs
        halfway between two centres: along that edge a shift is then rounded, not always rounded down.
        """
        return self.amount if self.unit == "voxels" else self.amount + min(self.steps(spacing_mm)) / 2


@dataclass(frozen=True)
class Corrupted:
    """A label map after its contours were moved.

    Args:
        labels: The new label map, of the old shape and type.
        voxels: Structure to its number of voxels before and after.
        lost: Voxels where several structures meet in a way that no label number says; see ``corrupt_labels``.
    """

    labels: NDArray[np.integer]
    voxels: dict[str, tuple[int, int]]
    lost: int


@dataclass(frozen=True)
class _Moved:
    """One structure after the move, inside the box that it can reach."""

    box: tuple[slice, ...]
    mask: NDArray[np.bool_]
    distance: NDArray[np.float64]


def corrupt_labels(
    labels: NDArray[np.integer],
    structures: Mapping[str, Sequence[int]],
    move: Displacement,
    spacing_mm: Sequence[float],
) -> Corrupted:
    """Erode or dilate every structure of a label map, each on its own, and write them into one map again.

    A structure is all voxels whose label is in its list, so structures may overlap (regions) or lie in each other (eye
    and lens); each is decoded, moved and encoded anew. A voxel gets the label that stands for exactly the structures
    that claim it now. Where no label does (two organs of an ordinary label map that grow into each other), the old
    label stays if its structures still claim the voxel; else the nearest structure wins, then the label with most of
    the claiming structures, then the lower number. ``lost`` counts these voxels.

    Beyond the image nothing is background: an organ that the image cuts is not eroded from there. Labels of no
    structure (the ignore label) stay, and nothing grows into them. A structure may vanish.

    Args:
        labels: The true label map.
        structures: Structure to the labels that belong to it.
        move: What to do.
        spacing_mm: Voxel size (Z, Y, X).

    Shape:
        labels: (Z, Y, X), whole numbers; a flat picture has Z = 1.

    Raises:
        ValueError: not three-dimensional, or an amount that is negative or infinite.
    """
    if labels.ndim != 3 or not 0 <= move.amount < math.inf:
        raise ValueError(f"expected (Z, Y, X) and an amount from 0, got shape {labels.shape}, amount {move.amount}.")
    moved = {name: _moved(np.isin(labels, numbers), move, spacing_mm) for name, numbers in structures.items()}
    numbers = np.array(sorted({n for group in structures.values() for n in group}))
    members = np.array([[n in group for group in structures.values()] for n in numbers]).reshape(len(numbers), -1)
    free = (labels == 0) | np.isin(labels, numbers)
    where = np.flatnonzero(free & (_union(labels.shape, moved.values()) | (labels != 0)))
    claims, distances = _at(where, labels.shape, list(moved.values()))
    new, lost = _encoded(claims, distances, labels.flat[where], numbers, members)
    result = labels.copy()
    result.flat[where] = new.astype(labels.dtype)
    counts = {
        name: (int(np.isin(labels, group).sum()), int(np.isin(result, group).sum()))
        for name, group in structures.items()
    }
    return Corrupted(result, counts, lost)


def displaced(mask: NDArray[np.bool_], move: Displacement, spacing_mm: Sequence[float]) -> NDArray[np.bool_]:
    """One structure eroded or dilated by a Euclidean ball.

    Shape:
        mask: (Z, Y, X).
        returns: the same.
    """
    moved = _moved(mask, move, spacing_mm)
    result = np.zeros_like(mask)
    if moved is not None:
        result[moved.box] = moved.mask
    return result


def _moved(mask: NDArray[np.bool_], move: Displacement, spacing_mm: Sequence[float]) -> _Moved | None:
    """The structure inside the box that it can reach, and each voxel's distance from the old one; None if empty."""
    found = find_objects(mask.astype(np.uint8))
    if not found:
        return None
    steps, reach = move.steps(spacing_mm), move.reach(spacing_mm)
    edges = [int(reach / step) + 1 for step in steps]
    box = tuple(
        slice(max(0, s.start - edge), min(size, s.stop + edge))
        for s, edge, size in zip(found[0], edges, mask.shape, strict=True)
    )
    inside = mask[box]
    outward = distance_transform_edt(~inside, sampling=steps)
    if move.direction == "dilate":
        return _Moved(box, outward <= reach, outward)
    if inside.all():  # no background within reach: the transform would have nothing to measure to
        return _Moved(box, inside, outward)
    return _Moved(box, distance_transform_edt(inside, sampling=steps) > reach, outward)


def _union(shape: tuple[int, ...], moved: Iterable[_Moved | None]) -> NDArray[np.bool_]:
    union = np.zeros(shape, dtype=bool)
    for one in moved:
        if one is not None:
            union[one.box] |= one.mask
    return union


def _at(
    where: NDArray[np.intp], shape: tuple[int, ...], moved: Sequence[_Moved | None]
) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """For voxels (flat indices): which structures claim them now, and how far each old structure is.

    Shape:
        returns: (voxels, structures) bool, and the same float32 with infinity beyond reach.
    """
    claims = np.zeros((len(where), len(moved)), dtype=bool)
    distances = np.full(claims.shape, np.inf, dtype=np.float32)
    places = np.array(np.unravel_index(where, shape))
    for column, one in enumerate(moved):
        if one is None:
            continue
        starts = np.array([[s.start] for s in one.box])
        stops = np.array([[s.stop] for s in one.box])
        rows = np.flatnonzero(((places >= starts) & (places < stops)).all(axis=0))
        local = tuple(places[:, rows] - starts)
        claims[rows, column] = one.mask[local]
        distances[rows, column] = one.distance[local]
    return claims, distances


def _encoded(
    claims: NDArray[np.bool_],
    distances: NDArray[np.float32],
    old: NDArray[np.integer],
    numbers: NDArray[np.integer],
    members: NDArray[np.bool_],
) -> tuple[NDArray[np.int64], int]:
    """A label for every voxel, and how many could not say all structures that claim it."""
    new = np.zeros(len(claims), dtype=np.int64)
    exact = ~claims.any(axis=1)
    for number, row in zip(numbers, members, strict=True):
        same = (claims == row).all(axis=1)
        new[same & ((new == 0) | (old == number))] = number  # of equal labels the old one, else the lowest
        exact |= same
    rest = np.flatnonzero(~exact)
    if len(rest):
        new[rest] = _nearest(claims[rest], distances[rest], old[rest], numbers, members)
    return new, len(rest)


def _nearest(
    claims: NDArray[np.bool_],
    distances: NDArray[np.float32],
    old: NDArray[np.integer],
    numbers: NDArray[np.integer],
    members: NDArray[np.bool_],
) -> NDArray[np.int64]:
    """The rule for voxels without a label of their own; background where no label fits."""
    best = np.zeros(len(claims), dtype=np.int64)
    best_key = np.full((len(claims), 2), np.inf)
    for number, row in zip(numbers, members, strict=True):
        allowed = (claims | ~row).all(axis=1)
        key = np.stack([distances[:, row].min(axis=1), np.full(len(claims), -row.sum(), dtype=float)], axis=1)
        key[old == number] = -np.inf  # what was there stays
        better = (key[:, 0] < best_key[:, 0]) | ((key[:, 0] == best_key[:, 0]) & (key[:, 1] < best_key[:, 1]))
        take = allowed & better
        best[take], best_key[take] = number, key[take]
    return best
