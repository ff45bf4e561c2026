from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest

from nnunet_ext.errors import InputError
from nnunet_ext.roi.raw_data import case_digests, changed_cases, contoured_in, image_digests


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / folder).mkdir()
    for case in ("a", "a_0001", "b*"):
        (tmp_path / "imagesTr" / f"{case}_0000.nii.gz").write_bytes(gzip.compress(bytes(1000), mtime=0))
        (tmp_path / "labelsTr" / f"{case}.nii.gz").write_bytes(gzip.compress(bytes(1000), mtime=0))
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "Eye_L": 1, "Eye_R": 2}}))
    return tmp_path


def changed(dataset: Path, before: dict[str, str]) -> str:
    return changed_cases(before, case_digests(dataset))


def test_every_training_case_has_a_digest_and_times_do_not_count(dataset: Path) -> None:
    before = case_digests(dataset)
    assert list(before) == ["a", "a_0001", "b*"]
    for path in dataset.rglob("*.nii.gz"):
        os.utime(path, (1, 1))
    assert changed(dataset, before) == ""


def test_an_image_of_the_same_size_but_other_content_is_another_one(dataset: Path) -> None:
    before, labelled = image_digests(dataset), case_digests(dataset)
    path = dataset / "imagesTr" / "a_0000.nii.gz"
    size = path.stat().st_size
    path.write_bytes(gzip.compress(b"\1" * 1000, mtime=0))
    assert path.stat().st_size == size
    assert changed_cases(before, image_digests(dataset)) == changed(dataset, labelled) == "a"


def test_contours_change_the_labelled_digest_alone(dataset: Path) -> None:
    before, images = case_digests(dataset), image_digests(dataset)
    (dataset / "labelsTr" / "b*.nii.gz").write_bytes(b"other")
    assert changed(dataset, before) == "b*"
    assert image_digests(dataset) == images


def test_the_list_of_contoured_labels_counts_case_by_case_in_any_order(dataset: Path) -> None:
    (dataset / "present_labels.json").write_text(json.dumps({"a": [1, 2]}))
    before = case_digests(dataset)
    (dataset / "present_labels.json").write_text(json.dumps({"a": [2, 1]}))
    assert changed(dataset, before) == ""
    (dataset / "present_labels.json").write_text(json.dumps({"a": [1, 2], "a_0001": []}))
    assert changed(dataset, before) == "a_0001"
    assert contoured_in(dataset) == {"a": [1, 2], "a_0001": []}


@pytest.mark.parametrize(
    ("listed", "named"), [({"a": [3]}, "lists label 3 in a"), ({"c": [1]}, "lists c, but the dataset has no such case")]
)
def test_a_list_of_what_the_dataset_does_not_have_is_refused(dataset: Path, listed: object, named: str) -> None:
    (dataset / "present_labels.json").write_text(json.dumps(listed))
    with pytest.raises(InputError, match=named):
        contoured_in(dataset)


def test_many_changed_cases_are_counted_after_the_fifth() -> None:
    assert changed_cases({str(n): "" for n in range(7)}, {}) == "0, 1, 2, 3, 4 and 2 more"


def test_an_image_that_is_a_link_to_nothing_is_named_with_the_dataset_to_restore(dataset: Path) -> None:
    path = dataset / "imagesTr" / "a_0000.nii.gz"
    path.unlink()
    path.symlink_to("../../Dataset301_Clean/imagesTr/a_0000.nii.gz")
    with pytest.raises(InputError) as caught:
        case_digests(dataset)
    assert str(caught.value) == (
        f"{path} cannot be read (No such file or directory); restore it, or the clean dataset that it is a link to "
        "(`nnunet-ext noise` links to the images of its source)."
    )
