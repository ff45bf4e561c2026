from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nnunet_ext.errors import InputError
from nnunet_ext.evaluation.dataset import (
    check_present,
    check_same_labels,
    default_present,
    find_dataset_json,
    is_test_case,
    read_file_ending,
    read_first_channel,
    read_organs,
    read_present,
)


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def test_background_and_ignore_are_not_organs(tmp_path: Path) -> None:
    path = write(tmp_path / "dataset.json", {"labels": {"background": 0, "Eye_L": 1, "ignore": 2}})
    dataset = read_organs(path)
    assert (dataset.organs, dataset.ignore) == ({"Eye_L": 1}, 2)


def test_regions_are_lists_of_labels(tmp_path: Path) -> None:
    path = write(tmp_path / "dataset.json", {"labels": {"background": 0, "whole": [1, 2], "core": [2]}})
    assert read_organs(path).organs == {"whole": (1, 2), "core": 2}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, 'no "labels"'),
        ([], 'no "labels"'),
        ({"labels": {"0": "background", "1": "Eye_L"}}, "v1 files"),
        ({"labels": {"background": 0}}, "names no organ"),
        ({"labels": {"a": []}}, "list of them"),
    ],
)
def test_a_wrong_dataset_json_is_named(tmp_path: Path, content: Any, message: str) -> None:
    path = write(tmp_path / "dataset.json", content)
    with pytest.raises(InputError, match=message) as caught:
        read_organs(path)
    assert str(path) in str(caught.value)


def test_a_damaged_or_missing_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text("{")
    for name in ("dataset.json", "nowhere.json"):
        with pytest.raises(InputError, match=name):
            read_organs(tmp_path / name)


def test_dataset_json_is_found_beside_the_references_first(tmp_path: Path) -> None:
    references, predictions = tmp_path / "raw" / "labelsTr", tmp_path / "predictions"
    for folder in (references, predictions):
        folder.mkdir(parents=True)
    with pytest.raises(InputError, match="-djfile"):
        find_dataset_json(predictions, references)
    second = write(predictions / "dataset.json", {})
    assert find_dataset_json(predictions, references) == second
    first = write(references.parent / "dataset.json", {})
    assert find_dataset_json(predictions, references) == first


def test_present_labels_are_read_from_beside_the_dataset_json(tmp_path: Path) -> None:
    dataset_json = tmp_path / "dataset.json"
    assert default_present(dataset_json) is None
    path = write(tmp_path / "present_labels.json", {"case_1": [1, 3]})
    assert default_present(dataset_json) == path
    assert read_present(path) == {"case_1": [1, 3]}


@pytest.mark.parametrize("content", [[1], {"case_1": 3}, {"case_1": ["Eye_L"]}, {"case_1": [1, True]}])
def test_present_labels_of_another_form_are_refused(tmp_path: Path, content: Any) -> None:
    with pytest.raises(InputError, match="must map each case"):
        read_present(write(tmp_path / "present_labels.json", content))


def test_organs_inside_another_are_read_and_an_empty_list_is_none(tmp_path: Path) -> None:
    labels = {"background": 0, "Eye_L": 1, "Eye_R": 2, "Lens_L": 3}
    content = {"labels": labels, "nnunet_ext": {"contains": {"Eye_L": ["Lens_L"], "Eye_R": []}}}
    assert read_organs(write(tmp_path / "dataset.json", content)).contains == {"Eye_L": ("Lens_L",)}


@pytest.mark.parametrize("block", [None, "x", {}, {"swap_pairs": [[1, 2]]}])
def test_a_dataset_without_the_block_has_no_inner_organs(tmp_path: Path, block: Any) -> None:
    content = {"labels": {"background": 0, "Eye_L": 1}, **({} if block is None else {"nnunet_ext": block})}
    assert read_organs(write(tmp_path / "dataset.json", content)).contains == {}


@pytest.mark.parametrize(
    ("contains", "message"),
    [
        (["Eye_L"], "expected organs and those inside"),
        ({"Eye_L": "Lens_L"}, "expected organs and those inside"),
        ({"Eye_L": [3]}, "expected organs and those inside"),
        ({"Eye_L": ["Lens"]}, "names Lens, which is no organ"),
        ({"Eye": ["Lens_L"]}, "names Eye, which is no organ"),
        ({"Eye_L": ["Eye_L"]}, "Eye_L as a part of itself"),
    ],
)
def test_a_wrong_block_of_inner_organs_is_named(tmp_path: Path, contains: Any, message: str) -> None:
    content = {"labels": {"background": 0, "Eye_L": 1, "Lens_L": 3}, "nnunet_ext": {"contains": contains}}
    path = write(tmp_path / "dataset.json", content)
    with pytest.raises(InputError, match=message) as caught:
        read_organs(path)
    assert str(path) in str(caught.value)


def test_labels_of_an_organ_alone_and_with_those_inside_it(tmp_path: Path) -> None:
    labels = {"background": 0, "Eye_L": 1, "Eye_R": 2, "Lens_L": 3, "both": [1, 2], "ignore": 9}
    content = {"labels": labels, "nnunet_ext": {"contains": {"Eye_L": ["Lens_L"], "both": ["Lens_L"]}}}
    dataset = read_organs(write(tmp_path / "dataset.json", content))
    assert dataset.own == {"Eye_L": (1,), "Eye_R": (2,), "Lens_L": (3,), "both": (1, 2)}
    assert dataset.whole == {"Eye_L": (1, 3), "Eye_R": (2,), "Lens_L": (3,), "both": (1, 2, 3)}
    assert dataset.numbers == {0, 1, 2, 3, 9}


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ({"case_O": [1]}, "lists case_O, but the dataset has no such case"),
        ({"case_0": [1, 7, -1]}, "lists label -1, 7 in case_0, but the dataset has 0, 1, 2;"),
    ],
)
def test_contoured_labels_that_the_dataset_does_not_have_are_named(tmp_path: Path, listed: Any, message: str) -> None:
    path = tmp_path / "present_labels.json"
    with pytest.raises(InputError, match=message) as caught:
        check_present(path, listed, {0, 1, 2}, {"case_0"})
    assert str(path) in str(caught.value)


def test_a_listed_test_case_is_known_and_its_labels_are_looked_at(tmp_path: Path) -> None:
    write(tmp_path / "labelsTs" / "new.nii.gz", {})
    path = tmp_path / "present_labels.json"
    check_present(path, {"new": [1], "case_0": []}, {0, 1}, {"case_0"})
    with pytest.raises(InputError, match="label 2 in new"):
        check_present(path, {"new": [2]}, {0, 1}, {"case_0"})


def test_labels_are_compared_by_name_and_number(tmp_path: Path) -> None:
    now = write(tmp_path / "a.json", {"labels": {"background": 0, "Eye_L": 1, "both": [1, 2]}})
    check_same_labels(now, write(tmp_path / "b.json", {"labels": {"both": [2, 1], "Eye_L": [1], "background": 0}}))
    then = write(tmp_path / "c.json", {"labels": {"background": 0, "Eye_L": 2, "both": [1, 2], "Lens_L": 3}})
    with pytest.raises(
        InputError, match=r"name or number Eye_L \(1 and 2\), Lens_L \(none and 3\) differently"
    ) as caught:
        check_same_labels(now, then)
    assert str(now) in str(caught.value)
    assert str(then) in str(caught.value)


def test_first_channel_and_ending_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "dataset.json", {"channel_names": {"1": "PET", "0": "CT"}, "file_ending": ".nii.gz"})
    assert (read_first_channel(path), read_file_ending(path)) == ("CT", ".nii.gz")
    assert read_first_channel(write(tmp_path / "old.json", {"modality": {"0": "MR"}})) == "MR"


@pytest.mark.parametrize("read", [read_first_channel, read_file_ending])
@pytest.mark.parametrize("content", [[], {}, {"channel_names": {"0": 7}, "file_ending": 7}, {"channel_names": "CT"}])
def test_a_dataset_json_without_them_is_named(tmp_path: Path, read: Any, content: Any) -> None:
    path = write(tmp_path / "dataset.json", content)
    with pytest.raises(InputError) as caught:
        read(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("file", ["imagesTs/new[1]_0000.nii.gz", "imagesTs/new[1]_0000.png", "labelsTs/new[1].nii.gz"])
def test_a_test_case_is_known_by_its_image_or_its_labels(tmp_path, file):
    assert not is_test_case(tmp_path, "new[1]")
    (tmp_path / file).parent.mkdir()
    (tmp_path / file).write_text("")
    assert is_test_case(tmp_path, "new[1]")
    assert not is_test_case(tmp_path, "new")
