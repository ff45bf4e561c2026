from __future__ import annotations

import math
import random

import numpy as np
import pytest

from nnunet_ext.fusion.select import CaseScore, choose_owners, nested_estimate, selection_table

NAN = float("nan")


def rows(model: str, organ: str, values: list[float], folds: int = 2) -> list[CaseScore]:
    return [CaseScore(model, i % folds, f"case_{i}", organ, value) for i, value in enumerate(values)]


def steady(value: float, count: int = 8) -> list[float]:
    return [value] * count


def test_a_clear_gain_makes_another_model_the_owner() -> None:
    scores = [*rows("2d", "Lens", steady(0.8)), *rows("3d", "Lens", steady(0.6))]
    scores += [*rows("2d", "Parotid", steady(0.7)), *rows("3d", "Parotid", steady(0.95))]
    choices = choose_owners(scores, ["Lens", "Parotid"])
    assert {organ: choice.owner for organ, choice in choices.items()} == {"Lens": "2d", "Parotid": "3d"}
    assert choices["Lens"].gain == pytest.approx(0.2)
    assert choices["Lens"].means == pytest.approx({"2d": 0.8, "3d": 0.6})
    assert choices["Parotid"].gain == 0.0


def test_a_small_gain_needs_a_significant_test() -> None:
    scores = [*rows("3d", "Lens", steady(0.8, 4)), *rows("2d", "Lens", steady(0.804, 4))]
    scores += [*rows("3d", "Cord", steady(0.9, 4)), *rows("2d", "Cord", steady(0.5, 4))]
    assert choose_owners(scores, ["Lens", "Cord"])["Lens"].owner == "3d"
    scores = [*rows("3d", "Lens", steady(0.8)), *rows("2d", "Lens", steady(0.804))]
    scores += [*rows("3d", "Cord", steady(0.9)), *rows("2d", "Cord", steady(0.5))]
    choice = choose_owners(scores, ["Lens", "Cord"])["Lens"]
    assert (choice.owner, choice.p_value) == ("2d", pytest.approx(2 / 2**8))


def test_equal_models_keep_the_preferred_one() -> None:
    scores = [*rows("a", "Lens", steady(0.8)), *rows("b", "Lens", steady(0.8))]
    assert choose_owners(scores, ["Lens"], base=["b", "a"])["Lens"].owner == "b"
    assert choose_owners(scores, ["Lens"], base=["a", "b"])["Lens"].owner == "a"


def test_the_order_of_the_scores_has_no_influence() -> None:
    rng = np.random.default_rng(0)
    organs = ["A", "B", "C"]
    scores = [s for m in "xyz" for o in organs for s in rows(m, o, list(rng.uniform(0.5, 0.9, 10)))]
    expected = {organ: choice.owner for organ, choice in choose_owners(scores, organs).items()}
    for seed in range(5):
        random.Random(seed).shuffle(scores)
        assert {o: c.owner for o, c in choose_owners(scores, organs).items()} == expected


def test_the_gain_is_paired_over_the_cases_that_both_have() -> None:
    # the small model was only judged on the two hard cases, where it is better than the base model
    scores = rows("3d", "Chiasm", [0.9, 0.9, 0.9, 0.9, 0.3, 0.3])
    scores += [s for s in rows("small", "Chiasm", [0.0] * 4 + [0.5, 0.5]) if s.case in ("case_4", "case_5")]
    choice = choose_owners(scores, ["Chiasm"], base=["3d"])["Chiasm"]
    assert (choice.owner, choice.gain) == ("small", pytest.approx(0.2))


def test_a_model_that_knows_one_organ_does_not_become_the_base_by_its_easy_mean() -> None:
    scores = [*rows("3d", "Brainstem", steady(0.80, 4)), *rows("3d", "Chiasm", steady(0.4, 4))]
    scores += rows("small", "Brainstem", steady(0.803, 4))
    choice = choose_owners(scores, ["Brainstem", "Chiasm"])
    assert (choice["Brainstem"].owner, choice["Chiasm"].owner) == ("3d", "3d")
    assert "only model" in choice["Chiasm"].reason


def test_an_organ_that_was_never_judged_gets_a_model_that_knows_it_and_no_nan_winner() -> None:
    scores = [*rows("3d", "Cord", steady(0.9)), *rows("2d", "Cord", steady(0.8)), *rows("2d", "Lens", steady(NAN))]
    choices = choose_owners(scores, ["Cord", "Lens", "Eye"])
    assert choices["Lens"].owner == "2d"
    assert choices["Eye"].owner == "3d"
    assert choices["Lens"].means == {}
    assert "never judged" in choices["Lens"].reason


def test_unjudged_cases_do_not_poison_a_mean() -> None:
    scores = [*rows("2d", "Lens", [0.5, NAN, 0.7, NAN]), *rows("3d", "Lens", [NAN, 0.9, 0.6, NAN])]
    choice = choose_owners(scores, ["Lens"])["Lens"]
    assert choice.means == pytest.approx({"3d": 0.75, "2d": 0.6})
    assert choice.owner == "2d"  # on the one common case 2d gains 0.1 over the base model


def test_without_any_model_there_is_nothing_to_choose() -> None:
    with pytest.raises(ValueError, match="no model to choose from"):
        choose_owners([], ["Lens"])
    assert choose_owners([], ["Lens"], base=["3d"])["Lens"].owner == "3d"


def leaky_scores() -> list[CaseScore]:
    """Two equally good models; in each fold another one is lucky, by more in the fold where it is.

    Fold 0: x 0.9, y 0.5. Fold 1: x 0.5, y 0.8. Chosen on both folds x wins (0.70 against 0.65); chosen without fold 0
    y wins and is scored 0.5, without fold 1 x wins and is scored 0.5.
    """
    scores = []
    for case in range(10):
        fold = case % 2
        scores.append(CaseScore("x", fold, f"case_{case}", "Lens", (0.9, 0.5)[fold]))
        scores.append(CaseScore("y", fold, f"case_{case}", "Lens", (0.5, 0.8)[fold]))
    return scores


def test_the_nested_estimate_does_not_see_the_fold_that_it_scores() -> None:
    scores = leaky_scores()
    choice = choose_owners(scores, ["Lens"])["Lens"]
    nested = nested_estimate(scores, ["Lens"])
    assert choice.means[choice.owner] == pytest.approx(0.70)
    assert nested.means["Lens"] == pytest.approx(0.50)
    assert nested.overall == pytest.approx(0.50)
    assert nested.owners == {0: {"Lens": "y"}, 1: {"Lens": "x"}}


def test_changing_a_folds_scores_does_not_change_the_owners_chosen_without_it() -> None:
    scores = leaky_scores()
    changed = [s if s.fold else CaseScore(s.model, s.fold, s.case, s.organ, 1 - s.dsc) for s in scores]
    assert nested_estimate(changed, ["Lens"]).owners[0] == nested_estimate(scores, ["Lens"]).owners[0]


def test_nested_equals_naive_where_the_choice_is_clear_in_every_fold() -> None:
    scores = [*rows("2d", "Lens", steady(0.8)), *rows("3d", "Lens", steady(0.6))]
    assert nested_estimate(scores, ["Lens"]).means["Lens"] == pytest.approx(0.8)


def test_absent_organs_are_in_no_nested_mean() -> None:
    scores = [*rows("2d", "Lens", steady(0.8)), *rows("2d", "Eye", steady(NAN))]
    nested = nested_estimate(scores, ["Lens", "Eye"])
    assert math.isnan(nested.means["Eye"])
    assert nested.overall == pytest.approx(0.8)


def test_one_fold_gives_no_nested_estimate() -> None:
    nested = nested_estimate(rows("2d", "Lens", steady(0.8), folds=1), ["Lens"])
    assert math.isnan(nested.overall)
    assert nested.owners == {}


def test_the_table_marks_the_owner_and_shows_the_honest_column() -> None:
    scores = [*leaky_scores(), *rows("x", "Eye", steady(NAN))]
    organs = ["Lens", "Eye"]
    text = selection_table(choose_owners(scores, organs), nested_estimate(scores, organs))
    lens = next(line for line in text.splitlines() if line.startswith("Lens"))
    assert lens.split()[1:5] == ["0.7000*", "0.6500", "0.7000", "0.5000"]
    mean = next(line for line in text.splitlines() if line.startswith("mean of organs"))
    assert mean.split()[3:] == ["0.7000", "0.6500", "0.7000", "0.5000"]
    assert "never judged" in text
    assert "optimistic" in text
