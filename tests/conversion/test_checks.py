from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nnunet_ext.conversion.checks import (
    check_spacing,
    check_values,
    read_checked_image,
    renumber_labels,
)
from nnunet_ext.errors import InputError
from nnunet_ext.geometry import Grid


def _saved(draw, tmp_path: Path, change=None, **how) -> Path:
    image, _ = draw.phantom()
    return draw.save(tmp_path / "ct.nii.gz", image if change is None else change(image), **how)


def _refusal(path: Path, modality: str = "CT") -> str:
    with pytest.raises(InputError) as caught:
        read_checked_image(path, modality)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_good_image_comes_back_unchanged(draw, tmp_path):
    path = _saved(draw, tmp_path)
    image, grid, repairs = read_checked_image(path, "CT")
    np.testing.assert_array_equal(image, np.rint(draw.phantom()[0]))
    assert grid.spacing_mm == (3.0, 1.0, 1.0)
    assert repairs == []


def test_truncated_file_is_refused(draw, tmp_path):
    path = _saved(draw, tmp_path)
    draw.truncate(path)
    assert "truncated" in _refusal(path)


def test_flipped_byte_is_refused(draw, tmp_path):
    path = _saved(draw, tmp_path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))
    assert "damaged" in _refusal(path)


@pytest.mark.parametrize("content", [b"", b"no gzip at all"])
def test_file_that_is_no_nifti_is_refused(tmp_path, content):
    path = tmp_path / "ct.nii.gz"
    path.write_bytes(content)
    assert "damaged" in _refusal(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_are_refused(draw, tmp_path, value):
    def spoil(image):
        image[4, 4, 4] = value
        return image

    assert "1 NaN or infinite" in _refusal(_saved(draw, tmp_path, spoil, dtype=np.float32))


def test_constant_image_is_refused_for_every_modality(draw, tmp_path):
    path = _saved(draw, tmp_path, np.zeros_like)
    assert "constant" in _refusal(path, "CT")
    assert "constant" in _refusal(path, "MR")


@pytest.mark.parametrize("spacing_mm", [(3.0, 0.01, 0.01), (150.0, 1.0, 1.0)])
def test_impossible_spacing_is_refused(draw, tmp_path, spacing_mm):
    assert "spacing" in _refusal(_saved(draw, tmp_path, spacing_mm=spacing_mm))


@pytest.mark.parametrize("size", [0.1, 20.0])
def test_spacing_at_the_limits_is_accepted(size):
    check_spacing(Grid((4, 4, 4), (size, 1.0, 1.0)), "ct")


def test_header_without_spacing_is_refused(draw, tmp_path):
    path = _saved(draw, tmp_path)
    draw.rewrite_header(path, pixdim=[1, 1, 1, 1, 0, 0, 0, 0], qform_code=0, sform_code=0)
    assert "no spacing" in _refusal(path)


def test_one_millimetre_with_an_orientation_is_accepted(draw, tmp_path):
    read_checked_image(_saved(draw, tmp_path, spacing_mm=(1.0, 1.0, 1.0)), "CT")


def test_padding_below_air_is_clipped_and_recorded(draw, tmp_path):
    def pad(image):
        image[0, 0, :5] = -3024
        return image

    image, _, repairs = read_checked_image(_saved(draw, tmp_path, pad), "CT")
    assert image.min() == -1024
    assert repairs == ["5 voxels below -1024 HU (lowest -3024) clipped to -1024"]


def test_padding_is_no_fault_of_other_modalities():
    image, repairs = check_values(np.array([[[-3024.0, 5.0]]], np.float32), "PET", "pet")
    assert image.min() == -3024
    assert repairs == []


def test_unsigned_wrap_is_refused(draw, tmp_path):
    path = _saved(draw, tmp_path, lambda image: image.astype(np.int16).astype(np.uint16), dtype=np.uint16)
    assert "wrapped" in _refusal(path)


def test_ct_without_rescale_intercept_is_refused(draw, tmp_path):
    assert "rescale" in _refusal(_saved(draw, tmp_path, lambda image: image + 1024))


def test_four_dimensions_are_refused(draw, tmp_path):
    import nibabel

    path = tmp_path / "ct.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4, 2), np.int16), np.diag([1, 1, 3, 1])), path)
    assert "expected one 3D volume" in _refusal(path)


def test_skewed_axes_are_refused_and_rounding_is_repaired(tmp_path):
    import nibabel

    image = np.arange(60, dtype=np.int16).reshape(3, 4, 5) - 1000
    path = tmp_path / "ct.nii.gz"
    for skew, accepted in ((5e-4, True), (5e-2, False)):
        affine = np.diag([-1.0, -1.0, 3.0, 1.0])
        affine[0, 1] = skew
        nibabel.save(nibabel.Nifti1Image(image, affine), path)
        if accepted:
            direction = np.reshape(read_checked_image(path, "CT")[1].direction, (3, 3))
            np.testing.assert_allclose(direction @ direction.T, np.eye(3), atol=1e-12)
        else:
            assert "right angles" in _refusal(path)


def test_labels_are_renumbered():
    labels = np.array([[[0, 7, 4]]], np.uint16)
    renumbered, dropped = renumber_labels(labels, {0: 0, 7: 1, 4: 2}, "label")
    assert renumbered.tolist() == [[[0, 1, 2]]]
    assert dropped == []


def test_unknown_label_is_refused_with_value_and_count():
    labels = np.array([[[0, 1, 9, 9]]], np.uint16)
    with pytest.raises(InputError, match=r"unknown label value 9 \(2 voxels\), expected 0, 1"):
        renumber_labels(labels, {0: 0, 1: 1}, "label")


def test_ignored_label_becomes_background_and_is_recorded():
    labels = np.array([[[0, 1, 9, 9]]], np.uint16)
    renumbered, dropped = renumber_labels(labels, {0: 0, 1: 1, 9: 0}, "label")
    assert renumbered.tolist() == [[[0, 1, 0, 0]]]
    assert dropped == ["label 9 (2 voxels) became background"]


def test_unlisted_labels_become_background_on_request():
    labels = np.array([[[0, 1, 9]]], np.uint16)
    renumbered, dropped = renumber_labels(labels, {0: 0, 1: 1}, "label", unlisted_is_background=True)
    assert renumbered.tolist() == [[[0, 1, 0]]]
    assert len(dropped) == 1


def test_a_ct_without_its_intercept_is_told_by_its_tissue_whatever_its_padding(draw, tmp_path):
    image = draw.phantom()[0]
    raw = image + 1024
    raw[0, 0] = -2000
    read, _, notes = read_checked_image(draw.save(tmp_path / "raw.nii.gz", raw), "CT", "auto")
    np.testing.assert_array_equal(read[1:], image[1:].astype(np.int16))
    assert notes[0] == "stored as HU + 1024, 1024 subtracted"
    read, _, notes = read_checked_image(draw.save(tmp_path / "hu.nii.gz", image), "CT", "auto")
    assert not notes
    np.testing.assert_array_equal(read, image.astype(np.int16))


def test_hu_is_not_shifted_and_other_channels_are_left_alone(draw, tmp_path):
    path = draw.save(tmp_path / "hu.nii.gz", draw.phantom()[0])
    with pytest.raises(InputError, match=r"not stored as HU \+ 1024"):
        read_checked_image(path, "CT", "plus1024")
    assert not read_checked_image(path, "MR", "plus1024")[2]
