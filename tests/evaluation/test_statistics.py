from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from nnunet_ext.evaluation.metrics import OrganScore
from nnunet_ext.evaluation.statistics import compare, comparison_table, holm, wilcoxon_p

NAN = float("nan")


def scores(*values: float, organ: str = "organ") -> dict[str, list[OrganScore]]:
    return {f"case_{i}": [OrganScore(1, organ, "scored", dsc=value)] for i, value in enumerate(values)}


def test_equal_predictions_have_p_one() -> None:
    assert wilcoxon_p([0.0, 0.0, 0.0]) == 1.0


def test_without_a_pair_there_is_no_p() -> None:
    assert math.isnan(wilcoxon_p([NAN, NAN]))
    assert math.isnan(wilcoxon_p([]))


def test_five_cases_that_all_agree_cannot_be_significant() -> None:
    assert wilcoxon_p([0.1, 0.2, 0.3, 0.4, 0.5]) == pytest.approx(2 / 2**5)


@pytest.mark.parametrize("cases", [7, 12])
def test_few_cases_agree_with_scipys_exact_test(cases: int) -> None:
    differences = np.random.default_rng(cases).normal(0.3, 1, cases)
    assert wilcoxon_p(differences) == pytest.approx(stats.wilcoxon(differences, method="exact").pvalue)


def test_many_cases_agree_with_scipy() -> None:
    differences = np.random.default_rng(5).normal(0.3, 1, 40)
    assert wilcoxon_p(differences) == pytest.approx(stats.wilcoxon(differences, method="approx").pvalue)


def test_zero_and_missing_differences_are_dropped() -> None:
    differences = [0.3, -0.1, 0.2, 0.5, 0.4, 0.6]
    assert wilcoxon_p([*differences, 0.0, NAN]) == wilcoxon_p(differences)


def test_tied_differences_raise_no_warning() -> None:
    assert wilcoxon_p([0.1] * 6) == pytest.approx(2 / 2**6)
    assert 0 < wilcoxon_p([0.1] * 20) < 1e-3


def test_holm_multiplies_the_smallest_most_and_stays_monotone() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]


def test_holm_leaves_untested_organs_out_of_the_count() -> None:
    corrected = holm([0.01, NAN, 0.02])
    assert [corrected[0], corrected[2]] == pytest.approx([0.02, 0.02])
    assert math.isnan(corrected[1])
    assert holm([]) == []


def test_only_cases_scored_in_both_are_compared() -> None:
    (row,) = compare(scores(0.5, NAN, 0.7), scores(0.6, 0.9, 0.6))
    assert (row.cases, row.mean_a, row.mean_b) == (2, pytest.approx(0.6), pytest.approx(0.6))
    assert row.gain == pytest.approx(0)


def test_few_differing_cases_are_said_to_be_few() -> None:
    (few,) = compare(scores(0.5, 0.6, 0.7), scores(0.6, 0.7, 0.8))
    assert few.note == "only 3 cases differ; p cannot fall below 0.25"
    (same,) = compare(scores(0.5, 0.6), scores(0.5, 0.6))
    assert (same.p, same.note) == (1.0, "no difference in any case")


def test_an_organ_without_common_cases_breaks_nothing() -> None:
    (row,) = compare(scores(0.5, organ="a"), scores(0.5, organ="b"))
    assert (row.cases, row.note) == (0, "no case scored in both")
    assert "no case scored in both" in comparison_table([row])


def test_the_table_names_the_test() -> None:
    text = comparison_table(compare(scores(*np.linspace(0.5, 0.6, 8)), scores(*np.linspace(0.6, 0.75, 8))))
    assert "+" not in text.splitlines()[0]
    assert "Wilcoxon" in text
    assert "Holm over 1 organs" in text
