"""What an epoch says about the weights of its samples: a line for the log, warnings, and a table of the cases."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata

from nnunet_ext.io.atomic import write_text
from nnunet_ext.losses.competition import Outcome, Samples

CASES_CSV = "quality_weights.csv"
COLUMNS = ("epoch", "case", "samples", "weight", "score", "driver")

SUSPICIOUS_CORRELATION = 0.5
"""Weights that follow size this closely follow it instead of quality; our choice."""

ENOUGH = 20
"""Samples from which a correlation is more than chance; our choice."""


class Summary(NamedTuple):
    """Weights of an epoch; all but the first number are of the samples that competed.

    Args:
        samples: How many were comparable.
        competed: How many of them competed; the others have weight 1.
        mean: Of the weights, 1 in plain training.
        largest: Weight.
        effective: ``(Σ w)² / Σ w²``, the number of equally weighted samples that average out as much.
        foreground: Rank correlation of weight and foreground fraction; NaN where either is constant.
        volume: Rank correlation of weight and foreground volume relative to the median of each organ.
    """

    samples: int
    competed: int
    mean: float
    largest: float
    effective: float
    foreground: float
    volume: float

    def __str__(self) -> str:
        if not self.competed:
            return f"Quality: none of {self.samples} comparable samples competed, all have weight 1"
        return (
            f"Quality: {self.competed} of {self.samples} comparable samples competed, weight mean {self.mean:.2f}, "
            f"largest {self.largest:.2f}, effective samples {self.effective:.1f}; rank correlation of weight with "
            f"foreground fraction {self.foreground:.2f}, with volume relative to the organ's median {self.volume:.2f}"
        )

    def warnings(self) -> list[str]:
        """What looks like a collapse, where there are samples enough to say so."""
        if self.competed < ENOUGH:
            return []
        found = [
            f"WARNING: weights follow the {name} (rank correlation {rho:.2f}); the QAM may have chosen small or large "
            "contours instead of good ones."
            for name, rho in (("foreground fraction", self.foreground), ("foreground volume", self.volume))
            if abs(rho) > SUSPICIOUS_CORRELATION
        ]
        if self.effective < self.competed / 4:
            found.append(
                f"WARNING: {self.competed} samples weigh as much as {self.effective:.1f}; the QAM may have settled on "
                "a few of them."
            )
        return found


class Journal:
    """Collects the steps of one epoch."""

    def __init__(self) -> None:
        self._steps: list[tuple[Samples, Outcome]] = []

    def add(self, samples: Samples, outcome: Outcome) -> None:
        """Note the samples of one optimiser step."""
        self._steps.append((samples, outcome))

    def summary(self) -> Summary:
        """Of the samples so far."""
        comparable = len(self._column(lambda _, outcome: outcome.comparable))
        weight = self._column(lambda _, outcome: outcome.verdict.weights, "competed")
        if not len(weight):
            return Summary(comparable, 0, math.nan, math.nan, 0.0, math.nan, math.nan)
        labelled = self._column(lambda samples, _: samples.labelled, "competed")
        return Summary(
            comparable,
            len(weight),
            float(weight.mean()),
            float(weight.max()),
            float(weight.sum() ** 2 / (weight**2).sum()),
            rank_correlation(weight, self._column(lambda samples, _: samples.foreground, "competed")),
            rank_correlation(weight, relative_volume(labelled)),
        )

    def rows(self, epoch: int, names: Mapping[int, str]) -> list[dict[str, str]]:
        """One row per case with comparable samples, in the order of their names; numbers are means over samples."""
        if not self._steps:
            return []
        case = self._column(lambda samples, _: samples.case).astype(np.int64)
        columns = {
            "weight": self._column(lambda _, outcome: outcome.verdict.weights),
            "score": self._column(lambda _, outcome: outcome.score),
            "driver": self._column(lambda _, outcome: outcome.driver),
        }
        rows = []
        for number in sorted(set(case.tolist()), key=lambda n: names[n]):
            mine = case == number
            means = {name: _mean_text(values[mine]) for name, values in columns.items()}
            rows.append({"epoch": str(epoch), "case": names[number], "samples": str(mine.sum()), **means})
        return rows

    def _column(
        self, of: Callable[[Samples, Outcome], torch.Tensor], rows: Literal["comparable", "competed"] = "comparable"
    ) -> NDArray[np.float64]:
        """A column of these rows of all steps."""
        parts = [of(samples, outcome)[getattr(outcome, rows)].numpy() for samples, outcome in self._steps]
        return np.concatenate(parts) if parts else np.zeros(0)


def relative_volume(volumes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the organs of a sample of their volume relative to the organ's median over samples; (N, C) to (N,)."""
    present = np.where(volumes > 0, volumes, np.nan)
    ratios = np.full_like(present, np.nan)
    for organ, column in enumerate(present.T):
        if np.isfinite(column).any():
            ratios[:, organ] = column / np.nanmedian(column)
    counts = np.isfinite(ratios).sum(1)
    return np.where(counts > 0, np.nansum(ratios, 1) / np.maximum(counts, 1), np.nan)


def rank_correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Spearman's rho of the pairs without NaN; NaN where one of the two is constant."""
    both = np.isfinite(a) & np.isfinite(b)
    ranks = [rankdata(values[both]) for values in (a, b)]
    if not both.any() or any(np.ptp(r) == 0 for r in ranks):
        return math.nan
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


class CaseTable:
    """The table of the cases by epoch, which grows line by line; what a killed run left of a later epoch goes first.

    Args:
        path: Of the CSV file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._last: int | None = None

    def add(self, epoch: int, rows: Sequence[Mapping[str, str]]) -> None:
        """Add the rows of an epoch; those of this epoch and later ones are replaced."""
        text = io.StringIO()
        table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        if self._last is not None and self._last < epoch and self.path.exists():
            table.writerows(rows)
            with self.path.open("a", newline="", encoding="utf-8") as stream:
                stream.write(text.getvalue())
        else:
            table.writeheader()
            table.writerows([*self._before(epoch), *rows])
            write_text(self.path, text.getvalue())
        self._last = epoch

    def _before(self, epoch: int) -> list[dict[str, str]]:
        """Whole rows of earlier epochs."""
        if not self.path.exists():
            return []
        with self.path.open(newline="", encoding="utf-8") as stream:
            rows = [row for row in csv.DictReader(stream) if None not in row.values()]
        return [row for row in rows if int(row["epoch"]) < epoch]


def _mean_text(values: NDArray[np.float64]) -> str:
    """Mean of what is a number, six digits; empty where nothing is."""
    finite = values[np.isfinite(values)]
    return f"{finite.mean():.6g}" if len(finite) else ""
