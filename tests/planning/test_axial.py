from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from nnunet_ext.errors import InputError
from nnunet_ext.planning.axial import ExtPlanner, direction_read

LPS = (1.0, 0, 0, 0, 1, 0, 0, 0, 1)
SAGITTAL = (0.0, 0, 1, 1, 0, 0, 0, -1, 0)
"""Index axes x, y, z point to the back, to the feet, to the left."""

OPENKBP_SPACING_MM = (2.5, 3.9, 3.9)
"""(Z, Y, X): slices finer than pixels."""


def save(path: Path, direction: tuple[float, ...] = LPS, spacing_mm: tuple[float, ...] = OPENKBP_SPACING_MM) -> Path:
    image = sitk.GetImageFromArray(np.zeros((4, 5, 6), np.int16))
    image.SetSpacing(spacing_mm[::-1])
    image.SetDirection(direction)
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path), True)
    return path


@pytest.fixture
def planner(tmp_path, monkeypatch):
    """Makes a planner for a raw dataset of empty images with these directions."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(tmp_path / name))

    def make(
        *directions: tuple[float, ...], spacing_mm: tuple[float, ...] = OPENKBP_SPACING_MM, reader: str | None = None
    ) -> ExtPlanner:
        raw, preprocessed = (tmp_path / name / "Dataset902_Axes" for name in ("nnUNet_raw", "nnUNet_preprocessed"))
        for i, direction in enumerate(directions):
            save(raw / "imagesTr" / f"case_{i}_0000.nii.gz", direction, spacing_mm)
            save(raw / "labelsTr" / f"case_{i}.nii.gz", direction, spacing_mm)
        dataset = {
            "channel_names": {"0": "CT"},
            "labels": {"background": 0, "a": 1},
            "numTraining": len(directions),
            "file_ending": ".nii.gz",
            **({"overwrite_image_reader_writer": reader} if reader else {}),
        }
        (raw / "dataset.json").write_text(json.dumps(dataset))
        fingerprint = {
            "spacings": [list(spacing_mm)] * len(directions),
            "shapes_after_crop": [[4, 5, 6]] * len(directions),
        }
        preprocessed.mkdir(parents=True, exist_ok=True)
        (preprocessed / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))
        return ExtPlanner(902)

    return make


def test_axial_slices_stay_axial_where_stock_would_cut_coronally(planner):
    ours = planner(LPS)
    assert ours.determine_transpose() == ([0, 1, 2], [0, 1, 2])
    ours.keep_axial = False
    assert ours.determine_transpose() == ([1, 0, 2], [1, 0, 2])


def test_thick_slices_are_first_with_and_without_us(planner):
    ours = planner(LPS, spacing_mm=(3.0, 1.0, 1.0))
    assert ours.determine_transpose() == ([0, 1, 2], [0, 1, 2])
    ours.keep_axial = False
    assert ours.determine_transpose() == ([0, 1, 2], [0, 1, 2])


def test_a_sagittal_scan_is_turned_to_axial_slices_and_back(planner):
    forward, backward = planner(SAGITTAL).determine_transpose()
    assert (forward, backward) == ([1, 0, 2], [1, 0, 2])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_way_back_undoes_the_way_there(planner, axis):
    ours = planner(LPS)
    ours._head_foot_axis = lambda: axis
    forward, backward = ours.determine_transpose()
    assert forward[0] == axis
    assert np.transpose(np.transpose(np.zeros((4, 5, 6)), forward), backward).shape == (4, 5, 6)


def test_transposing_can_be_suppressed(planner):
    ours = planner(SAGITTAL)
    ours.suppress_transpose = True
    assert ours.determine_transpose() == ([0, 1, 2], [0, 1, 2])


def test_cases_that_disagree_on_head_and_foot_are_named_with_the_remedy(planner):
    with pytest.raises(InputError, match=r"axis 0: case_0; axis 1: case_1.*SimpleITKIOWithReorient"):
        planner(LPS, SAGITTAL).determine_transpose()


def test_the_remedy_helps(planner):
    ours = planner(LPS, SAGITTAL, reader="SimpleITKIOWithReorient")
    assert ours.determine_transpose()[0] == [0, 1, 2]


def test_plans_have_our_name_unless_told_otherwise(planner):
    assert planner(LPS).plans_identifier == "nnUNetPlansExt"
    assert ExtPlanner(902, plans_name="mine").plans_identifier == "mine"


@pytest.mark.parametrize("reader", ["SimpleITKIO", "NibabelIO"])
def test_direction_is_the_files_for_readers_that_take_it_as_it_is(tmp_path, reader):
    assert direction_read(save(tmp_path / "a.nii.gz", SAGITTAL), reader) == pytest.approx(SAGITTAL)


@pytest.mark.parametrize("reader", ["SimpleITKIOWithReorient", "NibabelIOWithReorient"])
@pytest.mark.parametrize("direction", [LPS, SAGITTAL])
def test_direction_is_ras_for_readers_that_reorient(tmp_path, reader, direction):
    read = direction_read(save(tmp_path / "a.nii.gz", direction), reader)
    assert read == pytest.approx((-1, 0, 0, 0, -1, 0, 0, 0, 1))


@pytest.mark.parametrize("reader", ["SimpleITKIO", "SimpleITKIOWithReorient"])
@pytest.mark.parametrize("direction", [LPS, SAGITTAL])
def test_direction_is_what_nnunets_reader_notes(tmp_path, reader, direction):
    from nnunetv2.imageio import simpleitk_reader_writer

    path = save(tmp_path / "a.nii.gz", direction)
    _, properties = getattr(simpleitk_reader_writer, reader)().read_images((str(path),))
    assert direction_read(path, reader) == pytest.approx(properties["sitk_stuff"]["direction"])


def test_a_flat_picture_has_no_axial_slices(tmp_path):
    sitk.WriteImage(sitk.Image([4, 4], sitk.sitkInt16), str(tmp_path / "a.nii.gz"))
    with pytest.raises(InputError, match="not a 3D volume"):
        direction_read(tmp_path / "a.nii.gz", "SimpleITKIO")
