from __future__ import annotations

import csv
import io
from dataclasses import replace

import numpy as np
import pytest

from nnunet_ext.evaluation.suspicion import Finding, csv_text, not_contoured, qualities, ranked, recall, unusual


def found(case: str, organ: str, assd_mm: float, *, distrust: float = float("nan"), **more: float) -> Finding:
    return Finding(case, organ, 0, "larger", assd_mm, assd_mm, 0.0, more.get("dsc", 0.9),
                   more.get("missing_slices", 0.0), distrust=distrust)  # fmt: skip


def test_a_distance_is_judged_beside_its_own_organ():
    lungs = [found(f"case_{i}", "Lung_L", 6.0 + 0.2 * i) for i in range(10)]
    lenses = [found(f"case_{i}", "Lens_L", 1.0 + 0.1 * i) for i in range(9)] + [found("case_9", "Lens_L", 4.0)]
    first = ranked(lungs + lenses)[0]
    assert (first.case, first.organ) == ("case_9", "Lens_L")
    assert first.suspicion > 3


class TestMissingSlices:
    def test_they_raise_a_contour_that_is_near_elsewhere_and_name_it(self):
        rows = [found(f"case_{i}", "Cord", 2.0 + 0.1 * i) for i in range(10)]
        rows[0] = found("case_0", "Cord", 2.0, missing_slices=0.2)
        first = ranked(rows)[0]
        assert (first.case, first.kind) == ("case_0", "missing part")
        assert first.suspicion == pytest.approx(0.2 / (0.25 * 0.1))

    def test_a_model_that_is_wrong_everywhere_says_less_of_them(self):
        good, weak = (
            ranked([found(f"case_{i}", "Cord", 2.0, dsc=dsc, missing_slices=0.1 * (i == 0)) for i in range(9)])
            for dsc in (0.9, 0.6)
        )
        assert good[0].suspicion == pytest.approx(4 * weak[0].suspicion)

    def test_what_all_contours_of_an_organ_lack_is_usual(self):
        rows = ranked([found(f"case_{i}", "Cord", 2.0, missing_slices=0.3) for i in range(9)])
        assert {(row.suspicion, row.kind) for row in rows} == {(0.0, "larger")}

    def test_a_kind_that_says_more_stays(self):
        rows = [found(f"case_{i}", "Cord", 2.0 + 0.1 * i) for i in range(10)]
        rows[0] = found("case_0", "Cord", 60.0, missing_slices=0.2)
        rows[1] = found("case_1", "Cord", 2.0, missing_slices=0.02)
        kinds = {row.case: row.kind for row in ranked(rows)}
        assert kinds["case_0"] == kinds["case_1"] == "larger"


class TestQuality:
    def test_a_case_that_is_distrusted_takes_one_line_of_the_list(self):
        distances = np.random.default_rng(0).normal(2.0, 0.1, (4, 10))
        rows = [
            found(f"case_{i}", organ, float(mm), distrust=9.0 if i < 3 else 0.0)
            for organ, own in zip(("Lens", "Lung", "Cord", "Heart"), distances, strict=True)
            for i, mm in enumerate(own)
        ]
        rows[7] = found("case_7", "Lens", 30.0, distrust=0.0)
        first = ranked(rows)[:4]
        assert [row.case for row in first] == ["case_7", "case_0", "case_1", "case_2"]
        assert [row.suspicion for row in first[1:]] == [9.0] * 3
        by_distance = ranked(found(row.case, row.organ, row.assd_mm) for row in rows)
        worst = {row.case: row.organ for row in by_distance[::-1]}
        assert all(row.organ == worst[row.case] for row in first[1:])
        assert sum(row.suspicion == 9.0 for row in ranked(rows)) == 3

    def test_trust_is_no_excuse_for_a_far_contour(self):
        rows = [found(f"case_{i}", "GTV", 2.0 + 0.1 * i, distrust=0.0) for i in range(10)]
        rows[4] = found("case_4", "GTV", 30.0, distrust=-5.0)
        first = ranked(rows)[0]
        assert first.case == "case_4"
        assert first == replace(ranked([replace(row, distrust=float("nan")) for row in rows])[0], distrust=-5.0)

    def test_weights_are_compared_by_their_ratio_with_those_beside_them(self):
        weights = {f"case_{i}": 1.0 + 0.01 * i for i in range(9)} | {"case_9": 0.2}
        said = qualities(weights)
        assert {case: quality.weight for case, quality in said.items()} == weights
        assert [case for case, quality in said.items() if quality.distrust > 3] == ["case_9"]
        halved = qualities({case: weight / 2 for case, weight in weights.items()})
        assert halved["case_9"].distrust == pytest.approx(said["case_9"].distrust)
        assert qualities({"a": 0.0, "b": 1.0, "c": 1.0})["a"].distrust > 3
        assert qualities({}) == {}


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


def test_an_organ_that_nobody_contoured_has_a_volume_and_no_suspicion():
    rows = [*ranked([found("a", "GTV", 1.0), found("b", "GTV", 2.0)]), not_contoured("c", "GTV", 1, 12.5)]
    line = list(csv.DictReader(io.StringIO(csv_text(rows))))[-1]
    assert (line["rank"], line["case"], line["organ"], line["fold"]) == ("3", "c", "GTV", "1")
    assert (line["kind"], line["predicted_ml"]) == ("not contoured", "12.500")
    assert {line[name] for name in ("assd_mm", "signed_mm", "shift_mm", "dsc", "missing_slices", "suspicion")} == {
        "nan"
    }
