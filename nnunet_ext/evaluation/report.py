"""Scores as files and text: a tidy CSV, a JSON with the definitions, and a table a person reads."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from nnunet_ext.evaluation.metrics import DEFINITIONS, METRICS, OrganScore
from nnunet_ext.io.atomic import without_nan

COLUMNS = ("case", "label", "organ", "status", *METRICS)
Scores = Mapping[str, Sequence[OrganScore]]
"""Case to the scores of its organs."""


class Spread(NamedTuple):
    """Mean and standard deviation (n - 1) over the cases that have a value; NaN where there are too few."""

    mean: float
    sd: float
    cases: int


@dataclass(frozen=True)
class OrganSummary:
    """One organ over all cases: how often what happened, and the metrics where they exist.

    Args:
        label: Label number; of a region, its first.
        organ: Organ name.
        scored: Cases with the organ in both maps.
        missed: Cases with the organ in the reference only (DSC 0).
        spurious: Cases with the organ in the prediction only (DSC 0).
        both_empty: Cases without the organ in either map; in no mean.
        not_contoured: Cases in which nobody drew the organ; in no mean.
        dsc: Over scored, missed and spurious cases.
        hd95_mm: Over scored cases.
        assd_mm: Over scored cases.
        rve: Over scored and missed cases.
    """

    label: int
    organ: str
    scored: int
    missed: int
    spurious: int
    both_empty: int
    not_contoured: int
    dsc: Spread
    hd95_mm: Spread
    assd_mm: Spread
    rve: Spread


def summarise(scores: Scores) -> dict[str, OrganSummary]:
    """Per organ the count of every status and mean ± SD over the cases, in the order of first appearance."""
    rows: dict[str, list[OrganScore]] = {}
    for case in scores.values():
        for score in case:
            rows.setdefault(score.organ, []).append(score)
    return {organ: _summary(organ, found) for organ, found in rows.items()}


def mean_dsc(scores: Scores) -> float:
    """Mean of the organs' mean DSC, each organ weighing the same; NaN where no organ could be judged."""
    return spread(summary.dsc.mean for summary in summarise(scores).values()).mean


def spread(values: Iterable[float]) -> Spread:
    """Mean and SD of the finite values."""
    finite = [value for value in values if math.isfinite(value)]
    nan = float("nan")
    return Spread(
        statistics.fmean(finite) if finite else nan,
        statistics.stdev(finite) if len(finite) > 1 else nan,
        len(finite),
    )


def csv_text(scores: Scores) -> str:
    """One row per case and organ; a metric that does not exist is an empty field."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for case, rows in scores.items():
        for row in rows:
            metrics = [_field(getattr(row, metric)) for metric in METRICS]
            writer.writerow([case, row.label, row.organ, row.status, *metrics])
    return stream.getvalue()


def json_content(scores: Scores) -> dict[str, Any]:
    """Definitions, summary per organ and every score, with null where a metric does not exist."""
    organs = {organ: asdict(summary) for organ, summary in summarise(scores).items()}
    for summary in organs.values():
        summary.update({metric: summary[metric]._asdict() for metric in METRICS})
    content = {
        "definitions": list(DEFINITIONS),
        "mean_dsc": mean_dsc(scores),
        "organs": organs,
        "cases": {case: [asdict(row) for row in rows] for case, rows in scores.items()},
    }
    cleaned: dict[str, Any] = without_nan(content)
    return cleaned


def table(scores: Scores) -> str:
    """Mean ± SD over the cases per organ, the counts of what could not be averaged, and the definitions."""
    summaries = summarise(scores)
    width = max([len("mean of organs"), *(len(organ) for organ in summaries)]) + 2
    header = (
        f"{'organ':<{width}}{'DSC':>15}{'HD95 mm':>15}{'ASSD mm':>15}{'RVE':>17}"
        f"{'scored':>8}{'missed':>8}{'spurious':>10}{'empty':>7}{'not drawn':>11}"
    )
    lines = [header, "-" * len(header)]
    lines += [
        f"{organ:<{width}}{_pm(s.dsc, 3):>15}{_pm(s.hd95_mm, 2):>15}"
        f"{_pm(s.assd_mm, 2):>15}{_pm(s.rve, 3, '+'):>17}"
        f"{s.scored:>8}{s.missed:>8}{s.spurious:>10}{s.both_empty:>7}{s.not_contoured:>11}"
        for organ, s in summaries.items()
    ]
    mean = mean_dsc(scores)
    lines.append(f"{'mean of organs':<{width}}{f'{mean:.3f}' if math.isfinite(mean) else '-':>7}")
    lines += ["", f"Mean ± SD over {len(scores)} cases.", *DEFINITIONS]
    return "\n".join(lines) + "\n"


def _summary(organ: str, rows: Sequence[OrganScore]) -> OrganSummary:
    counts = Counter(row.status for row in rows)
    return OrganSummary(
        label=rows[0].label,
        organ=organ,
        scored=counts["scored"],
        missed=counts["missed"],
        spurious=counts["spurious"],
        both_empty=counts["both_empty"],
        not_contoured=counts["not_contoured"],
        dsc=spread(row.dsc for row in rows),
        hd95_mm=spread(row.hd95_mm for row in rows),
        assd_mm=spread(row.assd_mm for row in rows),
        rve=spread(row.rve for row in rows),
    )


def _pm(value: Spread, digits: int, sign: str = "") -> str:
    if not value.cases:
        return "-"
    sd = f"{value.sd:.{digits}f}" if math.isfinite(value.sd) else "-"
    return f"{value.mean:{sign}.{digits}f} ± {sd:<{digits + 2}}"


def _field(value: float) -> str:
    return f"{value:.6g}" if math.isfinite(value) else ""
