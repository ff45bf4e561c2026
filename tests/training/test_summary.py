"""Scores of organs that nobody contoured, in nnU-Net's validation summary."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from nnunetv2.evaluation.evaluate_predictions import load_summary_json, save_summary_json

from nnunet_ext.training.summary import count_contoured_only

BOTH = (1, 2)


def summary(path: Path, dices: dict[str, dict[Any, float]]) -> Path:
    """As nnU-Net writes it, with its means, from case to organ to Dice."""
    organs = list(next(iter(dices.values())))
    cases = [
        {
            "reference_file": f"gt/{case}.nii.gz",
            "prediction_file": f"validation/{case}.nii.gz",
            "metrics": {organ: {"Dice": dice, "n_ref": 0} for organ, dice in scores.items()},
        }
        for case, scores in dices.items()
    ]
    mean = {organ: {"Dice": 0.123, "n_ref": 0.0} for organ in organs}
    save_summary_json({"metric_per_case": cases, "mean": mean, "foreground_mean": {"Dice": 0.1, "n_ref": 0}}, str(path))
    return path


def test_an_organ_that_was_not_contoured_has_no_score(tmp_path: Path):
    path = summary(tmp_path / "summary.json", {"pt.1": {1: 0.8, 2: 0.0}, "pt.2": {1: 0.6, 2: 0.5}})
    dice = count_contoured_only(path, {"pt.1": {(2,)}}, ".nii.gz")
    read = load_summary_json(str(path))
    assert [case["metrics"][1]["Dice"] for case in read["metric_per_case"]] == [0.8, 0.6]
    assert math.isnan(read["metric_per_case"][0]["metrics"][2]["Dice"])
    assert math.isnan(read["metric_per_case"][0]["metrics"][2]["n_ref"])
    assert {organ: scores["Dice"] for organ, scores in read["mean"].items()} == pytest.approx({1: 0.7, 2: 0.5})
    assert read["foreground_mean"]["Dice"] == dice == pytest.approx(0.6)


def test_a_region_goes_by_all_its_labels(tmp_path: Path):
    path = summary(tmp_path / "summary.json", {"a": {BOTH: 0.0, (1,): 0.9}, "b": {BOTH: 0.4, (1,): 0.7}})
    assert count_contoured_only(path, {"a": {BOTH}}, ".nii.gz") == pytest.approx((0.4 + 0.8) / 2)


def test_an_organ_that_no_case_has_is_left_out_of_the_mean(tmp_path: Path):
    path = summary(tmp_path / "summary.json", {"a": {1: 0.9, 2: 0.0}})
    assert count_contoured_only(path, {"a": {(2,)}}, ".nii.gz") == pytest.approx(0.9)
    assert math.isnan(load_summary_json(str(path))["mean"][2]["Dice"])
