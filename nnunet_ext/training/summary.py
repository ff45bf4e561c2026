"""nnU-Net's validation summary without organs that nobody contoured."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from nnunetv2.evaluation.evaluate_predictions import load_summary_json, save_summary_json

Organ: TypeAlias = int | tuple[int, ...]
"""A label, or the labels of a region, as nnU-Net's summary has them."""


def count_contoured_only(path: Path, absent: Mapping[str, Collection[tuple[int, ...]]], file_ending: str) -> float:
    """Rewrite a summary: an organ that was not contoured in a case has no score there, and means are of the others.

    nnU-Net gives it a Dice of 0 wherever the network finds it, however well.

    Args:
        path: ``summary.json``.
        absent: Case to organs, each as a tuple of its labels, that were not contoured there.
        file_ending: Of the dataset.

    Returns:
        Mean Dice of the organs that some case has.
    """
    summary = load_summary_json(str(path))
    for entry in summary["metric_per_case"]:
        gone = absent.get(Path(entry["reference_file"]).name.removesuffix(file_ending), ())
        for organ, scores in entry["metrics"].items():
            if (organ if isinstance(organ, tuple) else (organ,)) in gone:
                entry["metrics"][organ] = dict.fromkeys(scores, float("nan"))
    cases = [entry["metrics"] for entry in summary["metric_per_case"]]
    means: dict[Organ, dict[str, float]] = {
        organ: {name: _mean([case[organ][name] for case in cases]) for name in scores}
        for organ, scores in summary["mean"].items()
    }
    names: list[str] = list(summary["foreground_mean"])
    of_organs = {name: _mean([scores[name] for organ, scores in means.items() if organ != 0]) for name in names}
    save_summary_json({**summary, "mean": means, "foreground_mean": of_organs}, str(path))
    return of_organs["Dice"]


def _mean(values: list[Any]) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of nothing at all
        return float(np.nanmean(np.asarray(values, dtype=np.float64)))
