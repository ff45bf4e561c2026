"""What a person must know about a converted dataset: organs, outliers, folds, repairs, failures."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from nnunet_ext.conversion.record import CaseRecord
from nnunet_ext.conversion.source import Source
from nnunet_ext.io.numbered import Split

OUTLIER_SD = 4.0
"""Our choice: volumes outside mean ± 4 SD are named for a second look."""


def report_of(
    source: Source, records: Sequence[CaseRecord], failed: Mapping[str, str], splits: Sequence[Split]
) -> dict[str, Any]:
    """The content of ``conversion_report.json``.

    Args:
        source: What was converted.
        records: The converted cases.
        failed: Refused cases and why, without paths outside the source.
        splits: The folds.
    """
    training = [record for record in records if not record.test]
    return {
        "source": source.name,
        "converter_version": source.version,
        "training_cases": len(training),
        "test_cases": len(records) - len(training),
        "failed": dict(failed),
        "organs": {organ: _organ(organ, number, training) for organ, number in source.organs.items()},
        "empty_means": source.empty,
        "warnings": [*source.notes, *_warnings(source, training, splits), *_empty(source, records)],
        "cases": {record.identifier: _case(record) for record in records},
    }


def table_of(report: Mapping[str, Any]) -> str:
    """The report as text for the terminal."""
    width = max(5, *(len(organ) for organ in report["organs"]))
    kept = any("kept_median" in row for row in report["organs"].values())
    lines = [f"{'organ':<{width}}  label  cases  min ml  median     max" + ("  kept median / min" if kept else "")]
    lines += [_row(organ, row, width) for organ, row in report["organs"].items()]
    lines += [f"outlier: {case}" for row in report["organs"].values() for case in row["outliers"]]
    lines += [f"changed: {text}" for text in _grouped_notes(report["cases"])]
    lines += [f"warning: {text}" for text in report["warnings"]]
    counts = f"{report['training_cases']} training cases"
    lines.append(counts + (f", {report['test_cases']} test cases" if report["test_cases"] else "") + " converted.")
    return "\n".join(lines)


def failures_as_text(failed: Mapping[str, str]) -> str:
    """One line per refused case."""
    return "\n".join(f"  {case}: {cause}" for case, cause in failed.items())


def _organ(organ: str, number: int, records: Sequence[CaseRecord]) -> dict[str, Any]:
    volumes = {r.identifier: r.volumes_ml[organ] for r in records if organ in r.volumes_ml}
    row: dict[str, Any] = {
        "label": number,
        "cases": len(volumes),
        "not_contoured": sum(number not in r.contoured for r in records),
        "outliers": _outliers(organ, volumes),
    }
    if volumes:
        values = list(volumes.values())
        row |= {
            "min_ml": min(values),
            "median_ml": round(statistics.median(values), 4),
            "max_ml": max(values),
        }
    fractions = [r.kept[organ] for r in records if organ in r.kept]
    if fractions:
        row |= {"kept_median": round(statistics.median(fractions), 4), "kept_min": min(fractions)}
    return row


def _outliers(organ: str, volumes: Mapping[str, float]) -> list[str]:
    if len(volumes) < 2:
        return []
    mean, spread = statistics.mean(volumes.values()), statistics.stdev(volumes.values())
    return [
        f"{case}: {organ} {volume:.2f} ml, mean {mean:.2f} ± {spread:.2f}"
        for case, volume in volumes.items()
        if abs(volume - mean) > OUTLIER_SD * spread
    ]


def _warnings(source: Source, records: Sequence[CaseRecord], splits: Sequence[Split]) -> list[str]:
    found = [f"{r.identifier}: {doubt}" for r in records for doubt in r.doubts]
    found += [f"{r.identifier}: no organ is contoured" for r in records if not r.contoured]
    if not splits:
        found.append("fewer than two patients: no splits_final.json, cross-validation is not possible")
    for organ in source.organs:
        cases = {r.identifier for r in records if organ in r.volumes_ml}
        if not cases:
            found.append(f"{organ} is in no case")
            continue
        empty = [i for i, split in enumerate(splits) if not cases & set(split["train"])]
        found += [f"{organ} is in no training case of fold {fold}" for fold in empty]
    return found


def _empty(source: Source, records: Sequence[CaseRecord]) -> list[str]:
    """One line on the organs whose contours have no voxel, and what that was taken for."""
    counts = {organ: sum(number in record.empty for record in records) for organ, number in source.organs.items()}
    found = ", ".join(f"{organ} in {count}" for organ, count in counts.items() if count)
    if not found:
        return []
    if source.empty == "absent":
        taken = "taken as absent, so every voxel of it that is predicted there is wrong (--empty absent)"
    else:
        taken = (
            "taken as not contoured, so neither trained nor judged there; if somebody looked and the patient has none, "
            "convert with --empty absent"
        )
    return [f"no voxel of {found} of {sum(record.has_labels for record in records)} cases: {taken}"]


def _case(record: CaseRecord) -> dict[str, Any]:
    content = record.as_json()
    return {key: content[key] for key in content if key not in ("identifier", "stamp", "voxel_hash")}


def _row(organ: str, row: Mapping[str, Any], width: int) -> str:
    keys = ("min_ml", "median_ml", "max_ml")
    volumes = [f"{row[key]:7.2f}" if key in row else f"{'-':>7}" for key in keys]
    text = f"{organ:<{width}}  {row['label']:>5}  {row['cases']:>5} {' '.join(volumes)}"
    return text + (f"  {row['kept_median']:.2f} / {row['kept_min']:.2f}" if "kept_median" in row else "")


def _grouped_notes(cases: Mapping[str, Any]) -> list[str]:
    """One line per kind of note, with the first as the example: notes of one kind differ in numbers only."""
    kinds: dict[str, list[str]] = {}
    for case, record in cases.items():
        for note in record["notes"]:
            kinds.setdefault(re.sub(r"[-+.\d]+", "#", note), []).append(f"{case}: {note}")
    return [_example(notes) for notes in kinds.values()]


def _example(notes: Sequence[str]) -> str:
    return notes[0] + (f" (and {len(notes) - 1} more like it, see conversion_report.json)" if notes[1:] else "")
