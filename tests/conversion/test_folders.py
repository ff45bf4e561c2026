from __future__ import annotations

from pathlib import Path

import pytest

from nnunet_ext.conversion.folders import is_dicom, other_files, paired_cases, target_cases
from nnunet_ext.conversion.source import in_order, natural_key
from nnunet_ext.errors import InputError


def _touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def _cases(folder: Path, channels: int = 1) -> dict:
    return {case.identifier: case for case in paired_cases(folder, channels)}


def test_images_and_labels_are_paired_by_name(tmp_path):
    cases = _cases(_touch(tmp_path, "images/a.nii.gz", "labels/a.nii.gz", "images/b_0000.nii.gz", "labels/b.nii"))
    assert set(cases) == {"a", "b"}
    assert not any(case.fault for case in cases.values())
    assert cases["b"].label == tmp_path / "labels/b.nii"


def test_nnunet_folders_are_understood(tmp_path):
    cases = _cases(_touch(tmp_path, "imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz", "imagesTs/t_0000.nii.gz"))
    assert cases["a"].label is not None
    assert cases["t"].label is None
    assert not cases["t"].fault


def test_channels_are_collected_in_order(tmp_path):
    folder = _touch(tmp_path, "images/a_0001.nii.gz", "images/a_0000.nii.gz", "labels/a.nii.gz")
    assert [path.name for path in _cases(folder, 2)["a"].images] == ["a_0000.nii.gz", "a_0001.nii.gz"]


@pytest.mark.parametrize(
    ("names", "channels", "word"),
    [
        (["images/a_0001.nii.gz", "labels/a.nii.gz"], 1, "expected 1 channel"),
        (["images/a_0000.nii.gz", "labels/a.nii.gz"], 2, "expected 2 channel"),
        (["images/a_0000.nii.gz", "images/a_0001.nii.gz", "labels/a.nii.gz"], 1, "list every --channel"),
        (["images/a.nii.gz", "images/a.nii", "labels/a.nii.gz"], 1, "a.nii, a.nii.gz"),
        (["images/a.nii.gz", "labels/a.nii.gz", "labels/a.nii"], 1, "two label files"),
        (["images/a.nii.gz", "labels/b.nii.gz"], 1, "no label file"),
    ],
)
def test_files_that_do_not_fit_are_a_fault_of_the_case(tmp_path, names, channels, word):
    assert word in _cases(_touch(tmp_path, *names), channels)["a"].fault


def test_label_without_image_is_a_fault(tmp_path):
    cases = _cases(_touch(tmp_path, "images/a.nii.gz", "labels/a.nii.gz", "labels/b.nii.gz"))
    assert "no image" in cases["b"].fault


def test_case_name_that_looks_like_a_channel_is_a_name(tmp_path):
    folder = _touch(tmp_path, *(f"{part}/pt_000{i}.nii.gz" for part in ("images", "labels") for i in (1, 2)))
    cases = _cases(folder)
    assert set(cases) == {"pt_0001", "pt_0002"}
    assert not any(case.fault for case in cases.values())


@pytest.mark.parametrize("names", [["labels/a.nii.gz"], ["images/a.nii.gz"], ["images/x.txt", "labels/x.txt"]])
def test_folder_without_images_or_labels_is_refused(tmp_path, names):
    with pytest.raises(InputError, match="expected"):
        list(paired_cases(_touch(tmp_path, *names)))


def test_other_files_are_listed_and_hidden_ones_are_not(tmp_path):
    folder = _touch(tmp_path, "images/a.nrrd", "images/.DS_Store", "labels/a.nii.gz")
    assert other_files(folder) == ["images/a.nrrd"]


def test_numbers_sort_as_numbers(tmp_path):
    folder = _touch(tmp_path, *(f"{part}/pt_{i}.nii.gz" for part in ("images", "labels") for i in (10, 2, 1)))
    assert [case.identifier for case in in_order(paired_cases(folder))] == ["pt_1", "pt_2", "pt_10"]
    assert sorted(["2", "a", "10"], key=natural_key) == ["2", "10", "a"]


def test_a_target_and_its_guide_are_found_in_pools_and_in_case_folders(tmp_path):
    pool = _touch(tmp_path / "pool", "images/a.nii.gz", "labels/a.nii.gz", "livers/a.nii.gz", "imagesTs/t.nii.gz")
    cases = {case.identifier: case for case in target_cases(pool, "GTV", guide="liver")}
    assert cases["a"].guide == pool / "livers/a.nii.gz"
    assert cases["a"].guide in cases["a"].files
    assert cases["t"].guide is None
    assert not cases["t"].has_labels
    single = _touch(tmp_path / "single", "p1/image.nii", "p1/GTV.nii.gz", "p1/liver.nii.gz")
    (case,) = target_cases(single, "GTV", guide="liver")
    assert (case.identifier, case.guide, case.has_labels) == ("p1", single / "p1/liver.nii.gz", True)


def test_dicom_is_known_by_ending_or_mark(tmp_path):
    (tmp_path / "a").write_bytes(b"\0" * 128 + b"DICM")
    (tmp_path / "b").write_bytes(b"DICM")
    _touch(tmp_path, "c.DCM")
    assert [is_dicom(tmp_path / name) for name in ("a", "b", "c.DCM")] == [True, False, True]
