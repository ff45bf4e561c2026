"""The order in which centres are believed: a model, the next model, landmarks, the usual place in the body."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from nnunet_ext.roi.centre import Centre, Found
from nnunet_ext.roi.prior import SLACK, Prior, distance_mm

LANDMARK, BODY = "fallback:landmark", "fallback:body"
IN_BODY = "body"
"""The usual place in the body where that was asked for, because no model is to locate."""
OUTSIDE = "the region there lies outside the image"


@dataclass(frozen=True)
class Located:
    """A centre and how it was found.

    Args:
        centre: Voxel (z, y, x), float.
        rung: ``located``, ``fallback:<model>``, ``fallback:landmark``, ``fallback:body``, or what was asked for instead
            of a model: ``truth``, ``body``, ``centre``.
        found: The organ as the model sees it; None where only a place is known.
        others: Further places of the same model that are as plausible, such as the next piece of a long organ.
    """

    centre: Centre
    rung: str
    found: Found | None = None
    others: Sequence[Found] = ()


@dataclass(frozen=True)
class Chain:
    """All centres that may be tried for a region, best first, and why others were passed over.

    Args:
        rungs: The last one is a place that does not depend on any model; empty where the image shows none of them.
        refused: Rung name to the reason; also where only the largest of several parts was passed over.
    """

    rungs: Sequence[Located]
    refused: dict[str, str] = field(default_factory=dict)

    def apart_mm(self, spacing_mm: Sequence[float]) -> float:
        """Largest distance between the places where believed models see the organ; 0 with fewer than two of them."""
        places = [located.centre for located in self.rungs if located.found is not None]
        return max((distance_mm(a, b, spacing_mm) for a, b in combinations(places, 2)), default=0.0)


def rung_name(position: int, model: str) -> str:
    """Name of a model's rung: the first is ``located``, the others are ``fallback:<model>``."""
    return "located" if position == 0 else f"fallback:{model}"


def chain_of(
    found: Mapping[str, Sequence[Found]],
    prior: Prior,
    landmarks: Mapping[str, Centre],
    body: tuple[Centre, Centre],
    spacing_mm: Sequence[float],
    plausible_mm: float,
    is_in_image: Callable[[Located], bool],
) -> Chain:
    """Order the centres of a region.

    A model's centre is refused when the organ is empty or tiny (``find_all`` gave nothing), or farther from the usual
    place than ``plausible_mm`` and than 1.25 times the farthest training patient; then the model's next largest part
    counts. The usual place is that of the landmarks where any was found, else that in the body. A place whose region
    would lie outside the image is refused: the scan does not show it.

    Args:
        found: Rung name to the places that model found, most likely first; rungs in the order to try.
        prior: The usual place.
        landmarks: Other organs that the models found, voxel (z, y, x).
        body: First and one-past-last voxel of the body.
        spacing_mm: Voxel size (Z, Y, X).
        plausible_mm: Distance from the usual place that is never too far.
        is_in_image: Whether a part of the region around a place lies in the image.
    """
    seen = prior.from_landmarks(landmarks, spacing_mm)
    in_body = prior.from_body(body)
    expected, error_mm = (in_body, prior.body_error_mm) if seen is None else (seen, prior.landmark_error_mm)
    limit_mm = max(plausible_mm, SLACK * (error_mm or 0.0))
    rungs: list[Located] = []
    refused: dict[str, str] = {}
    for rung, places in found.items():
        off_mm = [distance_mm(place.centre, expected, spacing_mm) for place in places]
        near = [place for place, off in zip(places, off_mm, strict=True) if off <= limit_mm]
        if not places:
            refused[rung] = "found nothing, or fewer than 5 voxels"
        elif off_mm[0] > limit_mm:
            which = "its largest part lies " if near else ""
            refused[rung] = f"{which}{off_mm[0]:.0f} mm from the usual place, at most {limit_mm:.0f} mm are plausible"
        if near:
            rungs.append(Located(near[0].centre, rung, near[0], near[1:]))
    if seen is not None:
        rungs.append(Located(seen, LANDMARK))
    rungs.append(Located(in_body, BODY if found else IN_BODY))
    shown = [located for located in rungs if is_in_image(located)]
    refused |= {located.rung: OUTSIDE for located in rungs if located not in shown}
    return Chain(shown, refused)
