"""What training labels teach about the place of an organ: relative to other organs, and in the body.

A new patient in whom no model finds the organ still gets a region there, and a centre far from it is not believed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_ext.roi.centre import Centre, triple

MIN_CASES = 3
"""Our choice: an offset seen in fewer cases is no rule."""
SLACK = 1.25
"""Our choice: a new patient may lie this much farther from the usual place than any training patient did."""

Point = tuple[float, float, float]


@dataclass(frozen=True)
class Seen:
    """What one training case shows.

    Args:
        target: Centroid of the region's organs, voxel (z, y, x); None where they are missing.
        others: Organ to centroid, for organs that may serve as landmarks.
        body: First and one-past-last voxel (z, y, x) of the body.
        spacing_mm: Voxel size (Z, Y, X).
    """

    target: Centre | None
    others: Mapping[str, Centre]
    body: tuple[Centre, Centre]
    spacing_mm: Sequence[float]


@dataclass(frozen=True)
class Landmark:
    """Where the target lies as seen from another organ.

    Args:
        offset_mm: Mean vector from the organ to the target along the array axes (Z, Y, X).
        spread_mm: Root mean square distance of the training cases from it.
    """

    offset_mm: Point
    spread_mm: float


@dataclass(frozen=True)
class Prior:
    """The usual place of a region's organs.

    Args:
        in_body: Mean relative position in the box of the body, 0 to 1 per axis (z, y, x).
        body_error_mm: Largest distance between that place and the truth among the training cases.
        landmarks: Organ to its offset; steadier ones count more.
        landmark_error_mm: The same distance for the place that the landmarks give; None without landmarks.
    """

    in_body: Point
    body_error_mm: float
    landmarks: Mapping[str, Landmark] = field(default_factory=dict)
    landmark_error_mm: float | None = None

    def from_body(self, body: tuple[Sequence[float], Sequence[float]]) -> Centre:
        """The usual place in a body, voxel (z, y, x)."""
        low, high = (np.asarray(corner) for corner in body)
        return triple(low + np.asarray(self.in_body) * (high - low))

    def from_landmarks(self, others: Mapping[str, Centre], spacing_mm: Sequence[float]) -> Centre | None:
        """The usual place as seen from other organs, voxel (z, y, x); None where no landmark was found."""
        known = [name for name in self.landmarks if name in others]
        if not known:
            return None
        spacing = np.asarray(spacing_mm)
        places = [others[n] + np.asarray(self.landmarks[n].offset_mm) / spacing for n in known]
        weights = [1.0 / (1.0 + self.landmarks[n].spread_mm ** 2) for n in known]
        return triple(np.average(places, axis=0, weights=weights))

    def as_dict(self) -> dict[str, Any]:
        """For a JSON file."""
        landmarks = {name: {**asdict(rule), "offset_mm": list(rule.offset_mm)} for name, rule in self.landmarks.items()}
        return {**asdict(self), "in_body": list(self.in_body), "landmarks": landmarks}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Prior:
        """From a JSON file."""
        landmarks = {
            n: Landmark(triple(entry["offset_mm"]), entry["spread_mm"]) for n, entry in content["landmarks"].items()
        }
        return cls(triple(content["in_body"]), content["body_error_mm"], landmarks, content["landmark_error_mm"])


def fit_prior(seen: Sequence[Seen], landmarks: Sequence[str] = ()) -> Prior | None:
    """The usual place over training cases; None where none of them has the organs.

    Args:
        seen: Training cases.
        landmarks: Organs that a locating model can find, so that they may serve as landmarks.
    """
    cases = [case for case in seen if case.target is not None]
    if not cases:
        return None
    in_body = triple(np.mean([_relative(case) for case in cases], axis=0))
    offsets = {name: _offsets_mm(cases, name) for name in landmarks}
    rules = {name: _landmark(found) for name, found in offsets.items() if len(found) >= MIN_CASES}
    plain = Prior(in_body, 0.0, rules)
    body = [_off_mm(case, plain.from_body(case.body)) for case in cases]
    guesses = [(case, plain.from_landmarks(case.others, case.spacing_mm)) for case in cases]
    seen_mm = [_off_mm(case, guess) for case, guess in guesses if guess is not None]
    return Prior(in_body, max(body), rules, max(seen_mm) if seen_mm else None)


def distance_mm(a: Sequence[float], b: Sequence[float], spacing_mm: Sequence[float]) -> float:
    """Distance in mm between two voxels (z, y, x)."""
    return float(np.linalg.norm((np.asarray(a) - np.asarray(b)) * np.asarray(spacing_mm)))


def _relative(case: Seen) -> NDArray[np.float64]:
    low, high = (np.asarray(corner) for corner in case.body)
    return np.asarray((np.asarray(case.target) - low) / (high - low))


def _offsets_mm(cases: Sequence[Seen], name: str) -> list[NDArray[np.float64]]:
    return [
        (np.asarray(case.target) - np.asarray(case.others[name])) * np.asarray(case.spacing_mm)
        for case in cases
        if name in case.others
    ]


def _landmark(offsets_mm: Sequence[NDArray[np.float64]]) -> Landmark:
    mean = np.mean(offsets_mm, axis=0)
    squares = np.sum((np.asarray(offsets_mm) - mean) ** 2, axis=1)
    return Landmark(triple(mean), float(np.sqrt(squares.mean())))


def _off_mm(case: Seen, place: Sequence[float]) -> float:
    return distance_mm(case.target or place, place, case.spacing_mm)
