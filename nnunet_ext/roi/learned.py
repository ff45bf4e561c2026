"""What a region learns from training cases: the organ's usual place and size, and how far a locating model is off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nnunet_ext.roi.centre import Found, triple
from nnunet_ext.roi.prior import Prior

QUANTILE = 0.95
"""Our choice: margins hold what the model missed in 95 % of the training cases; growing at prediction does the rest."""
MIN_MARGIN_MM = 10.0
"""Our choice: a network needs some surroundings even where the locating model never misses anything."""


@dataclass(frozen=True)
class Learned:
    """What training cases teach about one region.

    Args:
        prior: The usual place.
        margin_mm: Per axis (Z, Y, X), how far the truth reached beyond the located box.
        usual_mm: Edge lengths (Z, Y, X) that hold the organ with those margins, for a place without an outline.
    """

    prior: Prior
    margin_mm: tuple[float, float, float]
    usual_mm: tuple[float, float, float]

    def as_dict(self) -> dict[str, Any]:
        """For a JSON file."""
        return {"prior": self.prior.as_dict(), "margin_mm": list(self.margin_mm), "usual_mm": list(self.usual_mm)}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Learned:
        """From a JSON file."""
        return cls(Prior.from_dict(content["prior"]), triple(content["margin_mm"]), triple(content["usual_mm"]))


@dataclass(frozen=True)
class Outline:
    """The truth of one case beside what the locating model found there.

    Args:
        truth: The organ.
        located: What the model found; None where it found nothing.
        spacing_mm: Voxel size (Z, Y, X).
    """

    truth: Found
    located: Found | None
    spacing_mm: Sequence[float]


def learned_from(prior: Prior, outlines: Sequence[Outline], margin_mm: Sequence[float] | None = None) -> Learned:
    """Margins and usual size from training cases.

    Args:
        prior: The usual place.
        outlines: Cases that have the organ; at least one.
        margin_mm: Fixed margins; None takes them from what the model missed.
    """
    if margin_mm is None:
        missed = [_missed_mm(o.truth, o.located, o.spacing_mm) for o in outlines if o.located is not None]
        margins = np.quantile(missed, QUANTILE, axis=0) if missed else np.zeros(3)
        margins = np.maximum(np.ceil(margins), MIN_MARGIN_MM)
    else:
        margins = np.asarray(margin_mm)
    extents = [(np.asarray(o.truth.high) - o.truth.low) * np.asarray(o.spacing_mm) for o in outlines]
    usual = np.ceil(np.quantile(extents, QUANTILE, axis=0) + 2 * margins)
    return Learned(prior, triple(margins), triple(usual))


def _missed_mm(truth: Found, located: Found, spacing_mm: Sequence[float]) -> np.ndarray:
    """How far the truth reaches beyond the located box, the worse of both sides, per axis."""
    below = np.asarray(located.low) - truth.low
    above = np.asarray(truth.high) - located.high
    return np.asarray(np.maximum(np.maximum(below, above), 0) * np.asarray(spacing_mm))
