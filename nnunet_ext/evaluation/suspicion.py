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
LEAST_LOG = 0.05
"""Our choice: the same for weights, which are compared by their ratio."""


@dataclass(frozen=True)
class Finding:
    """One contour of one organ in one case.

    Args:
        case: Identifier.
        organ: Name.
        fold: Fold whose models never saw the case.
        kind: See ``deviation.Kind``.
        assd_mm: See ``Deviation``; so are the next three.
        signed_mm: Positive where the contour reaches farther than the prediction.
        shift_mm: Length of the shift of the centroid.
        dsc: Overlap of contour and prediction.
        weight: Quality weight that the case would get, 1 on average, from a network that never saw it; NaN without.
        suspicion: How unusual the deviation and the weight are, in standard deviations of the organ; 0 is usual.
    """

    case: str
    organ: str
    fold: int
    kind: str
    assd_mm: float
    signed_mm: float
    shift_mm: float
    dsc: float
    weight: float = float("nan")
    suspicion: float = 0.0


def finding(case: str, organ: str, fold: int, seen: Deviation, weight: float = float("nan")) -> Finding:
    """A contour before it is compared with others."""
    shift_mm = float(np.linalg.norm(seen.shift_mm))
    return Finding(case, organ, fold, seen.kind, seen.assd_mm, seen.signed_mm, shift_mm, seen.dsc, weight)


def ranked(findings: Iterable[Finding]) -> list[Finding]:
    """All contours, the most suspicious first.

    Distances are compared within an organ, because what is far for a lens is near for a lung; quality weights among
    the cases. A contour is as suspicious as the worse of the two.
    """
    rows = list(findings)
    weights = {row.case: row.weight for row in rows}
    cases = [case for case, weight in weights.items() if np.isfinite(weight)]
    low = dict(zip(cases, unusual([-np.log(max(weights[case], 1e-6)) for case in cases], LEAST_LOG), strict=True))
    result = []
    for organ in dict.fromkeys(row.organ for row in rows):
        own = [row for row in rows if row.organ == organ]
        far = unusual([row.assd_mm for row in own], LEAST_MM)
        result += [
            replace(row, suspicion=max(float(z), float(low.get(row.case, -np.inf))))
            for row, z in zip(own, far, strict=True)
        ]
    return sorted(result, key=lambda row: (-row.suspicion, row.case, row.organ))


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
    """One line per contour, in the order given, with its rank."""
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
