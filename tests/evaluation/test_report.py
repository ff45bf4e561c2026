from __future__ import annotations

import csv
import io
import json
import math

import pytest

from nnunet_ext.evaluation.metrics import DEFINITIONS, OrganScore
from nnunet_ext.evaluation.report import csv_text, json_content, mean_dsc, spread, summarise, table

SCORES = {
    "case_1": [
        OrganScore(1, "Brainstem", "scored", 0.8, 2.0, 1.0, 0.1),
        OrganScore(2, "Chiasm", "not_contoured"),
        OrganScore(3, "Lens", "both_empty"),
    ],
    "case_2": [
        OrganScore(1, "Brainstem", "missed", 0.0, rve=-1.0),
        OrganScore(2, "Chiasm", "spurious", 0.0),
        OrganScore(3, "Lens", "both_empty"),
    ],
    "case_3": [
        OrganScore(1, "Brainstem", "scored", 0.6, 4.0, 2.0, -0.1),
        OrganScore(2, "Chiasm", "scored", 0.5, 1.0, 0.5, 0.0),
        OrganScore(3, "Lens", "both_empty"),
    ],
}


def test_missed_and_spurious_organs_count_as_dsc_zero_but_not_as_zero_mm() -> None:
    brainstem = summarise(SCORES)["Brainstem"]
    assert brainstem.dsc == pytest.approx((1.4 / 3, 0.4163331998932265, 3))
    assert brainstem.hd95_mm == pytest.approx((3.0, math.sqrt(2), 2))
    assert brainstem.rve.cases == 3
    assert (brainstem.scored, brainstem.missed) == (2, 1)


def test_not_contoured_and_empty_organs_are_counted_and_in_no_mean() -> None:
    summary = summarise(SCORES)
    assert (summary["Chiasm"].not_contoured, summary["Chiasm"].spurious, summary["Chiasm"].dsc.mean) == (
        1,
        1,
        0.25,
    )
    assert summary["Lens"].both_empty == 3
    assert math.isnan(summary["Lens"].dsc.mean)
    assert mean_dsc(SCORES) == pytest.approx((1.4 / 3 + 0.25) / 2)


def test_one_case_has_no_standard_deviation() -> None:
    one = spread([0.5, float("nan")])
    assert (one.mean, one.cases, math.isnan(one.sd)) == (0.5, 1, True)


def test_csv_is_tidy_with_empty_fields_for_what_does_not_exist() -> None:
    rows = list(csv.DictReader(io.StringIO(csv_text(SCORES))))
    assert list(rows[0]) == ["case", "label", "organ", "status", "dsc", "hd95_mm", "assd_mm", "rve"]
    assert len(rows) == 9
    assert rows[0]["dsc"] == "0.8"
    assert rows[1] == {
        "case": "case_1",
        "label": "2",
        "organ": "Chiasm",
        "status": "not_contoured",
        **dict.fromkeys(("dsc", "hd95_mm", "assd_mm", "rve"), ""),
    }


def test_json_is_valid_and_carries_the_definitions() -> None:
    content = json.loads(json.dumps(json_content(SCORES), allow_nan=False))
    assert content["definitions"] == list(DEFINITIONS)
    assert content["organs"]["Lens"]["dsc"] == {"mean": None, "sd": None, "cases": 0}
    assert content["cases"]["case_2"][0]["hd95_mm"] is None
    assert content["cases"]["case_3"][0]["dsc"] == 0.6


def test_the_table_shows_mean_and_sd_counts_and_definitions() -> None:
    text = table(SCORES)
    brainstem = next(line for line in text.splitlines() if line.startswith("Brainstem"))
    assert "0.467 ± 0.416" in brainstem
    assert "3.00 ± 1.41" in brainstem
    assert brainstem.split()[-5:] == ["2", "1", "0", "0", "0"]
    for definition in DEFINITIONS:
        assert definition in text


def test_without_cases_the_table_says_so() -> None:
    assert "over 0 cases" in table({})
