from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from nnunet_ext.dataset_conversion.structseg_han import ORGANS, open_source

from nnunet_ext.conversion.convert import convert
from nnunet_ext.errors import InputError
from nnunet_ext.labels import partner, swap_pairs


def _touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def _found(folder: Path) -> dict[str, bool]:
    """Case to whether it has a label."""
    return {case.identifier: case.label is not None for case in open_source(folder).cases}


def _save(path: Path, array: np.ndarray) -> None:
    image = sitk.GetImageFromArray(array.astype(np.int16))
    image.SetSpacing((1.0, 1.0, 3.0))
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))


def test_table_is_that_of_the_files():
    assert list(ORGANS.values()) == list(range(1, 23))
    assert swap_pairs(ORGANS) == [(2, 3), (4, 5), (6, 7), (9, 10), (12, 13), (14, 15), (16, 17), (18, 19), (21, 22)]
    assert all(partner(name) in ORGANS for name in ORGANS if partner(name))


def test_official_layout(tmp_path):
    folder = _touch(tmp_path, *(f"HaN_OAR/{n}/{f}.nii.gz" for n in (1, 2, 10) for f in ("data", "label")))
    assert list(_found(folder)) == list(_found(folder / "HaN_OAR")) == ["HaN_001", "HaN_002", "HaN_010"]


def test_extra_parent_folder_and_uncompressed_files(tmp_path):
    folder = _touch(tmp_path, "Task1_HaN_OAR/HaN_OAR/1/data.nii", "Task1_HaN_OAR/HaN_OAR/1/label.nii")
    assert _found(folder) == {"HaN_001": True}


def test_split_folders_keep_equal_numbers_apart(tmp_path):
    folder = _touch(
        tmp_path,
        "train/HaN_OAR/1/data.nii",
        "train/HaN_OAR/1/label.nii",
        "valid/HaN_OAR/1/data.nii",
        "valid/HaN_OAR/1/label.nii",
        "test/HaN_OAR/1/data.nii",
    )
    assert _found(folder) == {"HaN_001": True, "HaN_valid_001": True, "HaN_test_001": False}


def test_other_tasks_beside_it_are_left_alone(tmp_path):
    folder = _touch(tmp_path, "HaN_OAR/1/data.nii.gz", "Naso_GTV/1/data.nii.gz", "Lung_GTV/1/data.nii.gz")
    assert list(_found(folder)) == ["HaN_001"]


def test_redistribution_in_nnunet_form(tmp_path):
    folder = _touch(tmp_path, "imagesTr/7_0000.nii.gz", "labelsTr/7.nii.gz")
    assert _found(folder) == {"7": True}


def test_both_forms_of_one_file_are_a_fault(tmp_path):
    folder = _touch(tmp_path, "HaN_OAR/1/data.nii.gz", "HaN_OAR/1/data.nii", "HaN_OAR/1/label.nii.gz")
    assert "keep one" in open_source(folder).cases[0].fault


def test_folder_without_the_task_is_refused(tmp_path):
    with pytest.raises(InputError, match="HaN_OAR"):
        open_source(_touch(tmp_path, "Naso_GTV/1/data.nii.gz"))


def test_cases_are_converted_and_a_case_without_label_is_a_test_case(tmp_path):
    for n in (1, 2, 11):
        image = np.full((6, 10, 46), -1000) + np.random.default_rng(n).integers(-20, 20, (6, 10, 46))
        image[1:5, 2:8, 1:45] += 1040
        labels = np.zeros((6, 10, 46))
        for name, number in ORGANS.items():
            x = 23 if not partner(name) else 23 + (number if name.endswith("_L") else 1 - number)
            labels[2:4, 3:6, x] = number
        _save(tmp_path / f"s/HaN_OAR/{n}/data.nii.gz", image)
        if n != 11:
            _save(tmp_path / f"s/HaN_OAR/{n}/label.nii.gz", labels)
    done = convert(open_source(tmp_path / "s"), tmp_path / "raw", 101, "HaN", quiet=True)
    assert not done.failed
    assert sorted(p.name for p in (done.folder / "imagesTs").iterdir()) == ["HaN_011_0000.nii.gz"]
    assert list(json.loads((done.folder / "present_labels.json").read_text())) == ["HaN_001", "HaN_002"]
    content = json.loads((done.folder / "dataset.json").read_text())
    assert content["nnunet_ext"]["swap_pairs"][0] == [2, 3]
    assert len(content["labels"]) == 23
