from __future__ import annotations

import json
from pathlib import Path

import pytest

from nnunet_ext.errors import InputError
from nnunet_ext.io.numbered import check_elsewhere, check_name, dataset_numbered, splits_in_use, taken_by

SPLITS = [{"train": ["a"], "val": ["b"]}]
OTHERS = [{"train": ["b"], "val": ["a"]}]


@pytest.fixture
def roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    found = [tmp_path / name for name in ("preprocessed", "raw")]
    for root in found:
        (root / "Dataset011_Drawn").mkdir(parents=True)
        monkeypatch.setenv(f"nnUNet_{root.name}", str(root))
    return found


def write(root: Path, content: object) -> Path:
    path = root / "Dataset011_Drawn" / "splits_final.json"
    path.write_text(json.dumps(content))
    return path


def test_the_folds_in_use_are_those_that_nnunet_trains_with(roots):
    assert splits_in_use("Dataset011_Drawn") is None
    write(roots[1], SPLITS)
    assert splits_in_use("Dataset011_Drawn") == SPLITS
    write(roots[0], OTHERS)
    assert splits_in_use("Dataset011_Drawn") == splits_in_use("Dataset011_Drawn", roots) == OTHERS
    assert splits_in_use("Dataset011_Drawn", roots[1:]) == SPLITS


@pytest.mark.parametrize("content", [{}, [[]], [{"train": ["a"]}], [{"train": ["a"], "val": "b"}], [{"val": [1]}]])
def test_what_is_no_list_of_folds_is_refused_by_its_path(roots, content):
    path = write(roots[0], content)
    with pytest.raises(InputError, match=f"{path} must be a list of folds"):
        splits_in_use("Dataset011_Drawn")


def test_a_dataset_is_found_by_its_number_if_it_is_the_only_one(roots):
    raw = roots[1]
    assert taken_by(raw, 11) == [dataset_numbered(raw, 11)] == [raw / "Dataset011_Drawn"]
    (raw / "Dataset011_Other").mkdir()
    for number, count in ((11, 2), (12, 0)):
        with pytest.raises(InputError, match=f"holds {count} datasets with the number {number}, expected one"):
            dataset_numbered(raw, number)


@pytest.mark.parametrize(("number", "name"), [(0, "A"), (1000, "A"), (1, "a b"), (1, "a__b"), (1, ""), (1, "_a")])
def test_a_number_or_name_that_nnunet_could_not_find_is_refused(number, name):
    check_name(1, "A_b-9")
    with pytest.raises(InputError, match=r"is not between|must be letters"):
        check_name(number, name)


def test_a_number_under_another_name_elsewhere_is_refused(roots):
    check_elsewhere(roots, 11, "Dataset011_Drawn")
    with pytest.raises(InputError, match="has the number of Dataset011_New under another name"):
        check_elsewhere(roots, 11, "Dataset011_New")
