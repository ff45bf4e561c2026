"""What a study found: one line per noise and method, mean and spread over seeds; and whom the weights believed."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_ext.io.atomic import write_text
from nnunet_ext.study.world import MEAN, Run

WEIGHTS_FILE = "quality_weights.csv"
"""Written by nnUNetTrainerExtQuality into a training's folder: the mean weight of every case in every epoch."""
KINDS = ("clean", "erode", "dilate")

Scores = Mapping[str, Mapping[str, float | None]]
"""Case to structure to DSC."""


@dataclass(frozen=True)
class Cell:
    """DSC of one structure under one noise and method.

    Args:
        mean: Mean over seeds of the mean over test cases.
        sd: Standard deviation over seeds; NaN of a single one.
        seeds: How many seeds are finished.
    """

    mean: float
    sd: float
    seeds: int

    def __str__(self) -> str:
        if not self.seeds or math.isnan(self.mean):
            return "–"
        return f"{self.mean:.3f}" + ("" if math.isnan(self.sd) else f" ± {self.sd:.3f}")


Table = dict[tuple[str, float, str], dict[str, Cell]]
"""(level, ratio, method) to structure to cell; the column ``mean`` is the mean of the structures."""


def table_of(runs: Sequence[Run], scores_of: Callable[[Run], Scores | None], structures: Sequence[str]) -> Table:
    """Mean and spread over seeds of every noise, method and structure; unfinished runs are left out.

    Args:
        runs: All runs of the study.
        scores_of: Scores of a run, None while it is not finished.
        structures: Columns.
    """
    found: dict[tuple[str, float, str], list[dict[str, float]]] = {}
    for run in runs:
        scores = scores_of(run)
        values = found.setdefault((_level(run), run.row.ratio, run.method), [])
        if scores is not None:
            values.append(_means(scores, structures))
    columns = [*structures, MEAN]
    return {key: {name: _cell([v[name] for v in values]) for name in columns} for key, values in found.items()}


def write_table(folder: Path, table: Table, structures: Sequence[str], title: str) -> None:
    """Write table.csv (one line per number) and table.md (as papers print it)."""
    columns = [*structures, MEAN]
    rows = [
        [level, f"{ratio:g}", method, name, _number(cell.mean), _number(cell.sd), cell.seeds]
        for (level, ratio, method), cells in table.items()
        for name, cell in cells.items()
    ]
    write_text(folder / "table.csv", _csv(["level", "ratio", "method", "structure", "dsc", "sd", "seeds"], rows))
    lines = [f"{title}", "", "DSC against the true contours of the test cases: mean ± SD over seeds.", ""]
    lines.append(f"| noise | cases | method | {' | '.join(columns)} | seeds |")
    lines.append("|" + "---|" * (len(columns) + 4))
    for (level, ratio, method), cells in table.items():
        numbers = " | ".join(str(cells[name]) for name in columns)
        lines.append(f"| {level} | {100 * ratio:g} % | {method} | {numbers} | {cells[MEAN].seeds} |")
    write_text(folder / "table.md", "\n".join(lines) + "\n")


def weight_rows(run: Run, folder: Path, noise: Mapping[str, Any]) -> list[list[Any]]:
    """Mean weight of clean, eroded and dilated cases in every epoch of a run; empty where nothing was weighed.

    Args:
        run: The run.
        folder: Its folder.
        noise: Content of noise.json of its dataset; empty without noise.
    """
    path = folder / WEIGHTS_FILE
    if not path.exists():
        return []
    sums: dict[int, dict[str, list[float]]] = {}
    with path.open(newline="", encoding="utf-8") as stream:
        for line in csv.DictReader(stream):
            entry = noise.get("cases", {}).get(line["case"])
            kind = "clean" if entry is None else entry["direction"]
            total = sums.setdefault(int(line["epoch"]), {k: [0.0, 0.0] for k in KINDS})[kind]
            total[0] += float(line["samples"]) * float(line["weight"])
            total[1] += float(line["samples"])
    return [
        [_level(run), f"{run.row.ratio:g}", run.method, run.seed, epoch,
         *(_number(of[kind][0] / of[kind][1] if of[kind][1] else math.nan) for kind in KINDS)]
        for epoch, of in sorted(sums.items())
    ]  # fmt: skip


def write_weights(folder: Path, rows: Iterable[Sequence[Any]]) -> None:
    """Write weights.csv."""
    header = ["level", "ratio", "method", "seed", "epoch", "clean", "eroded", "dilated"]
    write_text(folder / "weights.csv", _csv(header, rows))


def _level(run: Run) -> str:
    return "none" if run.row.level is None else str(run.row.level)


def _means(scores: Scores, structures: Sequence[str]) -> dict[str, float]:
    """Structure to mean over the cases that have it."""
    found = {name: _mean(of[name] for of in scores.values()) for name in structures}
    return {**found, MEAN: _mean(found.values())}


def _cell(values: Sequence[float]) -> Cell:
    good = [value for value in values if not math.isnan(value)]
    return Cell(_mean(good), statistics.stdev(good) if len(good) > 1 else math.nan, len(good))


def _mean(values: Iterable[float | None]) -> float:
    good = [value for value in values if value is not None and not math.isnan(value)]
    return statistics.fmean(good) if good else math.nan


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.4f}"


def _csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return stream.getvalue()
