from __future__ import annotations

import pytest

from nnunet_ext.conversion.splits import held_out_cases, patient_splits

PATIENTS = {f"case_{i}": f"patient_{i // 2}" for i in range(24)}  # two scans each


def test_every_case_is_held_out_once():
    splits = patient_splits(PATIENTS, folds=5, seed=1)
    assert sorted(case for split in splits for case in split["val"]) == sorted(PATIENTS)
    assert all(set(split["train"]) == set(PATIENTS) - set(split["val"]) for split in splits)


def test_no_patient_is_in_both_parts_of_a_fold():
    for split in patient_splits(PATIENTS, folds=5, seed=1):
        parts = [{PATIENTS[case] for case in split[part]} for part in ("train", "val")]
        assert parts[0].isdisjoint(parts[1])


def test_fold_sizes_differ_by_one_patient_at_most():
    sizes = [len(split["val"]) // 2 for split in patient_splits(PATIENTS, folds=5, seed=1)]
    assert max(sizes) - min(sizes) <= 1


def test_same_seed_gives_the_same_folds_in_any_input_order():
    shuffled = dict(reversed(PATIENTS.items()))
    assert patient_splits(PATIENTS, 5, seed=7) == patient_splits(shuffled, 5, seed=7)
    assert patient_splits(PATIENTS, 5, seed=7) != patient_splits(PATIENTS, 5, seed=8)


def test_folds_are_those_of_the_first_release():
    patients = {name: name for name in "abcdef"}
    splits = patient_splits(patients, folds=3, seed=12345)
    assert [split["val"] for split in splits] == [["a", "f"], ["c", "d"], ["b", "e"]]


def test_fewer_patients_than_folds_gives_one_fold_each():
    assert len(patient_splits({"a": "a", "b": "b", "c": "c"}, folds=5, seed=1)) == 3


@pytest.mark.parametrize("patients", [{}, {"a": "x"}, {"a": "x", "b": "x"}])
def test_one_patient_cannot_be_split(patients):
    assert patient_splits(patients, folds=5, seed=1) == []


def test_one_fold_is_no_cross_validation():
    with pytest.raises(ValueError, match="at least 2 folds, got 1"):
        patient_splits(PATIENTS, folds=1, seed=1)


@pytest.mark.parametrize(("patients", "expected"), [(50, 10), (12, 2), (13, 3), (5, 1), (3, 1), (2, 0), (1, 0), (0, 0)])
def test_a_fifth_of_the_patients_is_held_out_and_two_are_left(patients, expected):
    assert len(held_out_cases({f"c{i}": f"p{i}" for i in range(patients)}, 0.2, seed=1)) == expected


def test_all_scans_of_a_patient_are_held_out_together_and_the_seed_decides():
    held_out = held_out_cases(PATIENTS, 0.25, seed=1)
    assert len(held_out) == 6
    assert len({PATIENTS[case] for case in held_out}) == 3
    assert held_out == held_out_cases(dict(reversed(PATIENTS.items())), 0.25, seed=1)
    assert held_out != held_out_cases(PATIENTS, 0.25, seed=2)
