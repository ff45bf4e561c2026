"""Which contours deserve a second look: every deviation beside what is usual for its organ."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nnunet_ext.evaluation.deviation import Deviation

MAD_TO_SD = 1.4826
"""Median absolute deviation of a normal distribution to its standard deviation."""
LEAST_MM = 0.1
"""Our choice: spreads below a tenth of a millimetre are those of a handful of cases, not of an organ."""
LEAST_SHARE = 0.25
"""Our choice: least spread of the missing slices, as a share of what contours and predictions of the organ usually do
not share (1 − median DSC), because a model that is wrong everywhere says little of the ends. Measured: 0.2 brings 0.09
more of the missing parts into the first tenth of the list, but takes up to 0.05 of other errors out of it and raises
more right contours than before; 0.25 takes 0.02 at most (benchmarks/RESULTS.md, "Contours worth a second look")."""
NAMED = 1.0
"""Our choice: standard deviations from which missing slices give a contour its kind; a third of all right contours
have a little more of them than the median, which says nothing."""
LEAST_LOG = 0.05
"""Our choice: spreads below this one are none where weights are compared, by their logarithms."""
NOT_CONTOURED = "not contoured"
DISTRUST = 3.0
"""Our choice: standard deviations by which the weight of a case must be low for a line of its own."""


@dataclass(frozen=True)
class Quality:
    """What a quality network says of a case that it never saw.

    Args:
        weight: Quality weight that the case would get, 1 on average; NaN without a network.
        distrust: How unusually low that is, in standard deviations of the logarithms of its fold's weights.
    """

    weight: float = float("nan")
    distrust: float = float("nan")


NO_QUALITY = Quality()


@dataclass(frozen=True)
class Finding:
    """One contour of one organ in one case.

    Args:
        case: Identifier.
        organ: Name.
        fold: Fold whose models never saw the case.
        kind: See ``deviation.Kind``.
        assd_mm: See ``Deviation``; so are the next four.
        signed_mm: Positive where the contour reaches farther than the prediction.
        shift_mm: Length of the shift of the centroid.
        dsc: Overlap of contour and prediction.
        missing_slices: Share of the organ in slices that nobody drew.
        weight: See ``Quality``.
        distrust: The same.
        suspicion: How unusual the contour is, in standard deviations of the organ; 0 is usual. NaN without a contour.
        predicted_ml: Volume of the whole prediction.
    """

    case: str
    organ: str
    fold: int
    kind: str
    assd_mm: float
    signed_mm: float
    shift_mm: float
    dsc: float
    missing_slices: float = 0.0
    weight: float = float("nan")
    distrust: float = float("nan")
    suspicion: float = 0.0
    predicted_ml: float = float("nan")


def finding(
    case: str,
    organ: str,
    fold: int,
    seen: Deviation,
    quality: Quality = NO_QUALITY,
    predicted_ml: float = float("nan"),
) -> Finding:
    """A contour before it is compared with others."""
    shift_mm = float(np.linalg.norm(seen.shift_mm))
    return Finding(
        case, organ, fold, seen.kind, seen.assd_mm, seen.signed_mm, shift_mm, seen.dsc, seen.missing_slices,
        quality.weight, quality.distrust, predicted_ml=predicted_ml,
    )  # fmt: skip


def not_contoured(case: str, organ: str, fold: int, predicted_ml: float) -> Finding:
    """An organ that nobody contoured: there is nothing to compare, only what the model sees."""
    nothing = (float("nan"),) * 5
    return Finding(case, organ, fold, NOT_CONTOURED, *nothing, suspicion=float("nan"), predicted_ml=predicted_ml)


def ranked(findings: Iterable[Finding]) -> list[Finding]:
    """All contours, the most suspicious first.

    Distances and missing slices are compared within an organ, because what is far for a lens is near for a lung; a
    contour is as suspicious as the worse of the two. A low quality weight says nothing of single organs, so it raises
    only the most suspicious contour of its case.
    """
    rows = list(findings)
    result = [row for organ in dict.fromkeys(row.organ for row in rows) for row in _judged(rows, organ)]
    weighed = sorted((row for row in result if np.isfinite(row.distrust)), key=lambda row: (row.suspicion, row.organ))
    worst = {row.case: row for row in weighed}
    result = [
        replace(row, suspicion=max(row.suspicion, row.distrust)) if row is worst.get(row.case) else row
        for row in result
    ]
    return sorted(result, key=lambda row: (-row.suspicion, row.case, row.organ))


def _judged(rows: Sequence[Finding], organ: str) -> list[Finding]:
    """The contours of one organ with what is unusual about them; those whose slices are it are named so."""
    own = [row for row in rows if row.organ == organ]
    far = unusual([row.assd_mm for row in own], LEAST_MM)
    least = LEAST_SHARE * (1 - float(np.median([row.dsc for row in own])))
    cut = unusual([row.missing_slices for row in own], least)
    return [
        replace(row, kind="missing part" if c > max(f, NAMED) else row.kind, suspicion=float(max(f, c)))
        for row, f, c in zip(own, far, cut, strict=True)
    ]


def qualities(weights: Mapping[str, float]) -> dict[str, Quality]:
    """What weights say of their cases, one beside the other.

    Args:
        weights: Case to weight, from 0, of one fold: others do not compare, because each fold's mean is 1.
    """
    low = unusual([-np.log(max(weight, 1e-6)) for weight in weights.values()], LEAST_LOG)
    return {case: Quality(weight, float(z)) for (case, weight), z in zip(weights.items(), low, strict=True)}


def unusual(values: ArrayLike, least_spread: float) -> NDArray[np.float64]:
    """Robust z: distance from the median in standard deviations, as the median absolute deviation estimates them.

    Args:
        values: One per case, (N,).
        least_spread: Smaller spreads count as this one, so that equal values do not make noise look unusual.
    """
    numbers = np.asarray(values, dtype=np.float64)
    if not numbers.size:
        return numbers
    centre = np.median(numbers)
    spread = max(MAD_TO_SD * float(np.median(np.abs(numbers - centre))), least_spread)
    return (numbers - centre) / spread if spread > 0 else np.zeros_like(numbers)


def csv_text(rows: Sequence[Finding]) -> str:
    """One line per finding, in the order given, with its rank."""
    names = [field.name for field in fields(Finding)]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["rank", *names])
    for rank, row in enumerate(rows, 1):
        values = (getattr(row, name) for name in names)
        writer.writerow([rank, *(f"{v:.3f}" if isinstance(v, float) else v for v in values)])
    return stream.getvalue()


def recall(rows: Sequence[Finding], planted: Mapping[tuple[str, str], str], share: float) -> dict[str, tuple[int, int]]:
    """Of contours known to be bad, how many lie in the first part of the list.

    Args:
        rows: Ranked.
        planted: (case, organ) to the kind of error.
        share: First part of the list, 0 to 1.

    Returns:
        Kind to (found, planted); "all" for the sum.
    """
    first = {(row.case, row.organ) for row in rows[: round(share * len(rows))]}
    kinds = {"all": list(planted)} | {
        kind: [key for key, own in planted.items() if own == kind] for kind in sorted(set(planted.values()))
    }
    return {kind: (sum(key in first for key in keys), len(keys)) for kind, keys in kinds.items()}
