"""How much of every organ its regions keep: looked at before anybody trains on them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

ENOUGH = 0.99
"""The paper's own measure: "more than 99 % of the label voxels stay inside"."""


def retention(entries: Mapping[str, Mapping[str, Any]], organs: Sequence[str]) -> dict[str, Any]:
    """Per organ the share of truth voxels inside the unshifted boxes: mean, minimum, cases below 99 %.

    Mean and minimum are None where no case has the organ.

    Args:
        entries: ``cases`` of ``regions.json``.
        organs: Organs of the region.
    """
    result = {}
    for organ in organs:
        kept = {e["case"]: e["kept"][organ] for e in entries.values() if not e["shifted"] and organ in e["kept"]}
        kept = {case: value for case, value in kept.items() if value is not None and not math.isnan(value)}
        result[organ] = {"mean": fmean(kept.values()) if kept else None, "min": min(kept.values(), default=None),
                         "below_99_percent": sorted(c for c, value in kept.items() if value < ENOUGH)}  # fmt: skip
    return result


def retention_lines(sidecar: Mapping[str, Any]) -> list[str]:
    """How much of every organ its regions keep, one sentence per organ, and how the centres were found."""
    lines = []
    for organ, kept in sidecar["retention"].items():
        if kept["mean"] is None:
            lines.append(f"{organ}: no case contains it, so nothing is known of what the regions keep")
            continue
        below = kept["below_99_percent"]
        named = f"; below 99 %: {', '.join(below)}" if below else ""
        lines.append(f"{organ}: {kept['mean']:.2%} of the truth inside the region, minimum {kept['min']:.2%}{named}")
    rungs: dict[str, int] = {}
    for entry in sidecar["cases"].values():
        if not entry["shifted"]:
            rungs[entry["rung"]] = rungs.get(entry["rung"], 0) + 1
    return [*lines, "centres: " + ", ".join(f"{rung} {count}" for rung, count in sorted(rungs.items()))]


def cut_organs(sidecar: Mapping[str, Any], enough: float = ENOUGH) -> list[str]:
    """Organs of which the regions keep less than enough on average, one sentence each."""
    return [
        f"{organ}: regions keep {kept['mean']:.2%} of the truth on average, at least {enough:.0%} are asked for"
        for organ, kept in sidecar["retention"].items()
        if kept["mean"] is not None and kept["mean"] < enough
    ]


def absent_organs(sidecar: Mapping[str, Any]) -> list[str]:
    """Organs of the region that no case contains."""
    return [organ for organ, kept in sidecar["retention"].items() if kept["mean"] is None]
