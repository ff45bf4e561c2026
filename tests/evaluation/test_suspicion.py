from __future__ import annotations

import csv
import io

import numpy as np
import pytest

from nnunet_ext.evaluation.suspicion import Finding, csv_text, ranked, recall, unusual


def found(case: str, organ: str, assd_mm: float, weight: float = float("nan")) -> Finding:
    return Finding(case, organ, 0, "larger", assd_mm, assd_mm, 0.0, 0.9, weight)


def test_a_distance_is_judged_beside_its_own_organ():
    lungs = [found(f"case_{i}", "Lung_L", 6.0 + 0.2 * i) for i in range(10)]
    lenses = [found(f"case_{i}", "Lens_L", 1.0 + 0.1 * i) for i in range(9)] + [found("case_9", "Lens_L", 4.0)]
    first = ranked(lungs + lenses)[0]
    assert (first.case, first.organ) == ("case_9", "Lens_L")
    assert first.suspicion > 3


def test_a_low_quality_weight_makes_all_contours_of_a_case_suspicious():
    rows = [found(f"case_{i}", "GTV", 2.0 + 0.1 * i, weight=1.0 + 0.01 * i) for i in range(10)]
    rows[3] = found("case_3", "GTV", 2.3, weight=0.05)
    assert ranked(rows)[0].case == "case_3"


def test_a_high_weight_is_no_excuse_for_a_far_contour():
    rows = [found(f"case_{i}", "GTV", 2.0 + 0.1 * i, weight=1.0) for i in range(10)]
    rows[4] = found("case_4", "GTV", 30.0, weight=5.0)
    assert ranked(rows)[0].case == "case_4"


def test_one_bad_case_does_not_hide_another():
    """A mean and a standard deviation would: the worst case inflates them."""
    values = [1.0, 1.1, 0.9, 1.0, 1.05, 0.95, 6.0, 60.0]
    z = unusual(values, 0.0)
    assert z[6] > 10
    assert (np.array(values)[6] - np.mean(values)) / np.std(values) < 0


def test_equal_values_are_not_unusual():
    assert unusual([2.0, 2.0, 2.0], 0.0).tolist() == [0, 0, 0]
    assert unusual([], 0.1).size == 0
    assert unusual([2.0, 2.0, 2.3], 0.1)[2] == pytest.approx(3.0)


def test_the_order_does_not_depend_on_the_order_of_cases():
    rows = [found(f"case_{i}", "GTV", float(i % 3)) for i in range(9)]
    assert ranked(rows) == ranked(rows[::-1])


def test_recall_counts_each_kind_in_the_first_part():
    rows = [found(f"case_{i}", "GTV", 10.0 - i) for i in range(10)]
    planted = {("case_0", "GTV"): "larger", ("case_1", "GTV"): "shifted", ("case_9", "GTV"): "larger"}
    assert recall(rows, planted, 0.2) == {"all": (2, 3), "larger": (1, 2), "shifted": (1, 1)}
    assert recall(rows, planted, 1.0)["all"] == (3, 3)


def test_the_table_has_a_line_per_contour():
    lines = list(csv.DictReader(io.StringIO(csv_text(ranked([found("a", "GTV", 1.0), found("b", "GTV", 2.0)])))))
    assert [(line["rank"], line["case"]) for line in lines] == [("1", "b"), ("2", "a")]
    assert lines[0]["assd_mm"] == "2.000"
