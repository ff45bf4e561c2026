from __future__ import annotations

from pathlib import Path

import pytest

from nnunet_ext.errors import InputError
from nnunet_ext.recipe.inputs import find_cases


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).touch()
    return folder


def test_cases_follow_nnunets_names_and_come_sorted(tmp_path: Path) -> None:
    touch(tmp_path, "b_0000.nii.gz", "a_0000.nii.gz", "a_0001.nii.gz", "b_0001.nii.gz", "notes.txt", ".hidden.nii")
    cases, refused = find_cases(tmp_path, 2)
    assert [case.case for case in cases] == ["a", "b"]
    assert cases[0].require_channels({"CT": 0, "MR": 1}) == (tmp_path / "a_0000.nii.gz", tmp_path / "a_0001.nii.gz")
    assert refused == {}


def test_a_case_name_may_itself_end_in_four_digits(tmp_path: Path) -> None:
    cases, _ = find_cases(touch(tmp_path, "pt_0003_0000.nii.gz"), 1)
    assert [case.case for case in cases] == ["pt_0003"]


def test_a_missing_channel_0000_is_named_and_never_taken_from_0001(tmp_path: Path) -> None:
    (case,), refused = find_cases(touch(tmp_path, "a_0001.nii.gz"), 2)
    assert refused == {}
    with pytest.raises(InputError, match=r"case a lacks channel CT \(a_0000\.nii\.gz\)"):
        case.require_channels({"CT": 0, "MR": 1})


def test_only_the_files_of_needed_channels_must_be_there_and_keep_their_numbers(tmp_path: Path) -> None:
    (with_both, without), refused = find_cases(touch(tmp_path, "a_0000.nii.gz", "a_0001.nii.gz", "b_0001.nii.gz"), 2)
    assert refused == {}
    assert with_both.require_channels({"T2w": 1}) == (tmp_path / "a_0001.nii.gz",)
    assert without.require_channels({"T2w": 1}) == (tmp_path / "b_0001.nii.gz",)


def test_a_channel_that_the_models_do_not_know_is_refused_by_name(tmp_path: Path) -> None:
    cases, refused = find_cases(touch(tmp_path, "a_0000.nii.gz", "a_0001.nii.gz"), 1)
    assert [case.case for case in cases] == ["a"]
    assert refused == {"a_0001.nii.gz": "channel 0001 is not known, the recipe's dataset has 1"}


@pytest.mark.parametrize("name", ["a.nii", "a_0000.nii", "a.nii.gz", "a_00.nii.gz", "a.nrrd", "a.mha", "a.dcm"])
def test_an_image_of_another_form_is_refused_beside_the_good_ones(tmp_path: Path, name: str) -> None:
    cases, refused = find_cases(touch(tmp_path, name, "b_0000.nii.gz"), 1)
    assert [case.case for case in cases] == ["b"]
    assert "rename" in refused[name]


@pytest.mark.parametrize("names", [[], ["readme.txt", "dataset.json"]])
def test_a_folder_without_images_is_refused(tmp_path: Path, names: list[str]) -> None:
    with pytest.raises(InputError, match=r"holds no images; expected <case>_0000\.nii\.gz"):
        find_cases(touch(tmp_path, *names), 1)


def test_a_folder_that_is_not_there_or_a_file_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "file")
    for name in ("missing", "file"):
        with pytest.raises(InputError, match="is no folder"):
            find_cases(tmp_path / name, 1)
