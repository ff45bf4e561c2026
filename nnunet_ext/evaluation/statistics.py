"""Paired comparison of two predictions of the same cases: Wilcoxon per organ, Holm over the organs.

Loads scipy.stats (half a second), so import it only where a comparison is asked for.

Source: Wilcoxon 1945 (signed ranks, zero differences dropped); Holm 1979 (step-down correction).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from nnunet_ext.evaluation.metrics import OrganScore

MIN_CASES = 6
"""With 5 differing cases the smallest two-sided p is 2/2⁵ = 0.0625: it can never fall below 0.05."""
Metric = Literal["dsc", "hd95_mm", "assd_mm", "rve"]


@dataclass(frozen=True)
class Comparison:
    """One organ in two predictions, over the cases that both could be scored on.

    Args:
        organ: Organ name.
        cases: Number of paired cases.
        mean_a: Mean of the first prediction.
        mean_b: Mean of the second.
        gain: Mean of the differences, second minus first.
        p: Two-sided p value, NaN without a paired case.
        p_holm: The same, corrected for the number of organs.
        note: What limits the test, or an empty string.
    """

    organ: str
    cases: int
    mean_a: float
    mean_b: float
    gain: float
    p: float
    p_holm: float
    note: str


def wilcoxon_p(differences: ArrayLike) -> float:
    """Two-sided p value of paired differences; 1 where nothing differs, NaN without a pair.

    Args:
        differences: One per case; NaN (not scored) and zero (no evidence either way) are dropped.
    """
    values = np.asarray(differences, dtype=np.float64)
    values = values[np.isfinite(values)]
    if not values.size:
        return float("nan")
    values = values[values != 0]
    if not values.size:
        return 1.0
    # our choice: up to 12 cases exact, by all 2ⁿ sign flips; ties are common and the normal form is poor
    if values.size <= 12:
        return _exact_p(values)
    return float(stats.wilcoxon(values, method="approx").pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction; NaN stays NaN and does not count as a test."""
    p = np.asarray(p_values, dtype=np.float64)
    tested = np.flatnonzero(np.isfinite(p))
    corrected = np.full(p.shape, np.nan)
    order = tested[np.argsort(p[tested], kind="stable")]
    steps = p[order] * np.arange(order.size, 0, -1)
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(steps)) if order.size else steps
    return [float(value) for value in corrected]


def compare(
    a: Mapping[str, Sequence[OrganScore]], b: Mapping[str, Sequence[OrganScore]], metric: Metric = "dsc"
) -> list[Comparison]:
    """Compare two predictions organ by organ over the cases that both have.

    Args:
        a: Case to scores of the first prediction.
        b: The same of the second.
        metric: The column to compare.
    """
    columns_a, columns_b = _columns(a, metric), _columns(b, metric)
    rows = [_compare_organ(organ, columns_a[organ], columns_b.get(organ, {})) for organ in columns_a]
    corrected = holm([row.p for row in rows])
    return [Comparison(**{**vars(row), "p_holm": p}) for row, p in zip(rows, corrected, strict=True)]


def comparison_table(rows: Sequence[Comparison], metric: Metric = "dsc") -> str:
    """The comparison as text, with what the columns mean."""
    lines = [f"{'organ':<20}{'cases':>6}{'A':>10}{'B':>10}{'B - A':>10}{'p':>9}{'p Holm':>9}  note"]
    lines += [
        f"{row.organ:<20}{row.cases:>6}{_number(row.mean_a):>10}{_number(row.mean_b):>10}{_number(row.gain):>10}"
        f"{_number(row.p):>9}{_number(row.p_holm):>9}  {row.note}".rstrip()
        for row in rows
    ]
    lines.append("")
    lines.append(
        f"Metric {metric}; paired over the cases scored in both; two-sided Wilcoxon signed-rank, "
        f"zero differences dropped, Holm over {sum(np.isfinite(row.p) for row in rows)} organs."
    )
    return "\n".join(lines) + "\n"


def _columns(scores: Mapping[str, Sequence[OrganScore]], metric: Metric) -> dict[str, dict[str, float]]:
    columns: dict[str, dict[str, float]] = {}
    for case, rows in scores.items():
        for row in rows:
            columns.setdefault(row.organ, {})[case] = getattr(row, metric)
    return columns


def _compare_organ(organ: str, a: Mapping[str, float], b: Mapping[str, float]) -> Comparison:
    pairs = np.array([(a[case], b[case]) for case in a if case in b]).reshape(-1, 2)
    pairs = pairs[np.isfinite(pairs).all(axis=1)]
    nan = float("nan")
    if not len(pairs):
        return Comparison(organ, 0, nan, nan, nan, nan, nan, "no case scored in both")
    gains = pairs[:, 1] - pairs[:, 0]
    differing = int(np.count_nonzero(gains))
    note = ""
    if differing == 0:
        note = "no difference in any case"
    elif differing < MIN_CASES:
        note = f"only {differing} cases differ; p cannot fall below {2 / 2**differing:.3g}"
    mean_a, mean_b = pairs.mean(axis=0)
    return Comparison(
        organ, len(pairs), float(mean_a), float(mean_b), float(gains.mean()), wilcoxon_p(gains), nan, note
    )


def _exact_p(values: NDArray[np.float64]) -> float:
    ranks = stats.rankdata(np.abs(values))
    signs = (np.arange(2**values.size)[:, None] >> np.arange(values.size)) & 1
    sums = signs @ ranks
    observed = float(ranks[values > 0].sum())
    centre = float(ranks.sum()) / 2
    return float(np.mean(np.abs(sums - centre) >= abs(observed - centre) - 1e-9))


def _number(value: float) -> str:
    return f"{value:.4f}" if np.isfinite(value) else "-"
