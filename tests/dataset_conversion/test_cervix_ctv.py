from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from nnunet_ext.dataset_conversion.cervix_ctv import open_source

from nnunet_ext.conversion import convert as module
from nnunet_ext.conversion.checks import read_checked_image
from nnunet_ext.conversion.convert import convert
from nnunet_ext.errors import InputError
from nnunet_ext.geometry import Grid
from nnunet_ext.io.nifti import read_image, read_labels, write_labels, write_voxels

GRID = Grid((9, 20, 24), (5.0, 1.2, 1.2), (-10.0, 20.0, 30.0))


def _volumes(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """CT in HU and the contour (Z, Y, X)."""
    image = np.full(GRID.shape, -1000.0)
    image[:, 3:17, 3:21] = 30.0
    image[:, 12:15, 10:14] = 700.0
    image += np.random.default_rng(seed).integers(-10, 10, GRID.shape)
    labels = np.zeros(GRID.shape, np.uint8)
    labels[3:6, 6:11, 8:15] = 1
    return image.astype(np.int16), labels


def _save_nifti(folder: Path, count: int, offset: int = 0) -> Path:
    for i in range(count):
        image, labels = _volumes(i)
        write_voxels(folder / f"images/s_{i}.nii.gz", image + np.int16(offset), GRID)
        write_labels(folder / f"labels/s_{i}.nii.gz", labels, GRID)
    return folder


def _save_h5(path: Path, seed: int = 0, offset: int = 1024, keys=("image", "label"), **attributes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image, labels = _volumes(seed)
    with h5py.File(path, "w") as file:
        file[keys[0]] = image + np.int16(offset)
        file[keys[1]] = labels
        for name, value in attributes.items():
            file[keys[0]].attrs[name] = value
    return path


def _json(path: Path):
    return json.loads(path.read_text())


@pytest.fixture
def run(tmp_path):
    def convert_folder(folder: Path, raw: str = "raw", **options):
        return convert(open_source(folder, **options), tmp_path / raw, 402, "Cervix", quiet=True)

    return convert_folder


@pytest.fixture
def cause(run):
    """Function that converts a folder whose every case is bad and gives the message."""

    def convert_folder(folder: Path, **options) -> str:
        with pytest.raises(InputError, match="no usable training case") as caught:
            run(folder, **options)
        return str(caught.value)

    return convert_folder


def test_nifti_in_hu_is_left_alone_in_three_folds(run, tmp_path):
    done = run(_save_nifti(tmp_path / "s", 6), values="hu")
    np.testing.assert_array_equal(read_image(done.folder / "imagesTr/s_2_0000.nii.gz")[0], _volumes(2)[0])
    splits = _json(done.folder / "splits_final.json")
    assert [(len(split["train"]), len(split["val"])) for split in splits] == [(4, 2)] * 3
    content = _json(done.folder / "dataset.json")
    assert content["labels"] == {"background": 0, "CTV": 1}
    assert content["nnunet_ext"] == {"source": "cervix-ctv", "converter_version": 1, "swap_pairs": []}
    assert done.report["test_cases"] == 0


def test_values_without_the_intercept_become_hu_and_are_declared(run, tmp_path):
    done = run(_save_nifti(tmp_path / "s", 3, offset=1024))
    path = done.folder / "imagesTr/s_1_0000.nii.gz"
    np.testing.assert_array_equal(read_image(path)[0], _volumes(1)[0])
    assert "CT: stored as HU + 1024, 1024 subtracted" in done.report["cases"]["s_1"]["notes"]
    written = _json(done.folder / "dataset.json")["nnunet_ext"]
    assert written["values"] == {"stored": "auto", "written": "hu"}
    assert read_checked_image(path, "CT")[2] == []


def test_a_new_patient_without_the_intercept_is_refused_at_prediction(tmp_path):
    path = _save_nifti(tmp_path / "s", 1, offset=1024) / "images/s_0.nii.gz"
    with pytest.raises(InputError, match="no CT in Hounsfield"):
        read_checked_image(path, "CT")


def test_hu_is_seen_as_hu_and_not_shifted_on_request(run, cause, tmp_path):
    folder = _save_nifti(tmp_path / "s", 2)
    assert "not stored as HU + 1024" in cause(folder, values="plus1024")
    assert not any("subtracted" in note for note in run(folder).report["cases"]["s_0"]["notes"])


def test_hdf5_with_named_data_sets_and_spacing_attribute(run, tmp_path):
    for i in range(3):
        _save_h5(tmp_path / f"s/c{i}.h5", i, keys=("scan/ct", "drawn/ctv"), spacing_mm=(5.0, 1.2, 1.2))
    done = run(tmp_path / "s", image_key="scan/ct", label_key="drawn/ctv")
    assert not done.failed
    image, grid = read_image(done.folder / "imagesTr/c1_0000.nii.gz")
    np.testing.assert_array_equal(image, _volumes(1)[0])
    np.testing.assert_allclose(grid.spacing_mm, (5.0, 1.2, 1.2), rtol=1e-6)
    np.testing.assert_array_equal(read_labels(done.folder / "labelsTr/c1.nii.gz")[0], _volumes(1)[1])


@pytest.mark.parametrize(("empty", "listed"), [("not-contoured", []), ("absent", [1])])
def test_a_patient_without_the_target_is_what_the_user_says(tmp_path, empty, listed):
    for i in range(3):
        _save_h5(tmp_path / f"s/c{i}.h5", i, spacing_mm=(5.0, 1.2, 1.2))
    with h5py.File(tmp_path / "s/c0.h5", "a") as file:
        file["label"][...] = 0
    done = convert(replace(open_source(tmp_path / "s"), empty=empty), tmp_path / "raw", 9, "CTV", quiet=True)
    assert _json(done.folder / "present_labels.json")["c0"] == listed


def test_hdf5_takes_spacing_and_axes_from_the_options(run, tmp_path):
    for i in range(2):
        image, labels = _volumes(i)
        path = tmp_path / f"s/c{i}.hdf5"
        path.parent.mkdir(exist_ok=True)
        with h5py.File(path, "w") as file:
            file["image"] = image.transpose(2, 1, 0)[::-1]
            file["label"] = labels.transpose(2, 1, 0)[::-1]
    done = run(tmp_path / "s", axes="RPS", spacing_mm="1.2,1.2,5")
    image, grid = read_image(done.folder / "imagesTr/c0_0000.nii.gz")
    np.testing.assert_array_equal(image, _volumes(0)[0])
    np.testing.assert_allclose(grid.spacing_mm, (5.0, 1.2, 1.2), rtol=1e-6)
    assert done.report["cases"]["c0"]["orientation"] == "SPR"


def test_hdf5_under_images_ts_is_a_test_case(run, tmp_path):
    for i in range(2):
        _save_h5(tmp_path / f"s/c{i}.h5", i)
    _save_h5(tmp_path / "s/imagesTs/new.h5", 7)
    done = run(tmp_path / "s", spacing_mm="5,1.2,1.2")
    assert (done.folder / "imagesTs/new_0000.nii.gz").is_file()
    assert not (done.folder / "labelsTs").exists()


def test_bad_hdf5_files_are_named(run, tmp_path):
    good = {"spacing_mm": (5.0, 1.2, 1.2)}
    for i in range(2):
        _save_h5(tmp_path / f"s/good{i}.h5", i, **good)
    _save_h5(tmp_path / "s/keys.h5", keys=("ct", "label"), **good)
    _save_h5(tmp_path / "s/bare.h5")
    _save_h5(tmp_path / "s/pair.h5", spacing_mm=(5.0, 1.2))
    cut = _save_h5(tmp_path / "s/cut.h5", **good)
    cut.write_bytes(cut.read_bytes()[:500])
    for name, label in (("half", np.full(GRID.shape, 0.5)), ("two", np.full(GRID.shape, 2)), ("flat", np.ones((4, 4)))):
        with h5py.File(_save_h5(tmp_path / f"s/{name}.h5", 5, **good), "a") as file:
            del file["label"]
            file["label"] = label
    with h5py.File(_save_h5(tmp_path / "s/shape.h5", 5, **good), "a") as file:
        del file["label"]
        file["label"] = np.zeros((9, 20, 23), np.uint8)
    with h5py.File(_save_h5(tmp_path / "s/nan.h5", 5, **good), "a") as file:
        spacing = file["image"].attrs["spacing_mm"]
        del file["image"]
        file["image"] = np.where(np.indices(GRID.shape)[0] == 3, np.nan, 1000.0)
        file["image"].attrs["spacing_mm"] = spacing
    _save_h5(tmp_path / "s/scaled.h5", 5, offset=3000, **good)
    failed = run(tmp_path / "s").failed
    words = {
        "keys": "no data set 'image', only ct, label; name it with --image-key",
        "bare": "give it with --spacing-mm",
        "pair": "expected three voxel sizes",
        "cut": "truncated or damaged",
        "half": "not whole numbers",
        "two": "unknown label value 2",
        "flat": "expected one 3D volume",
        "shape": "they must be equal",
        "nan": "NaN",
        "scaled": "no CT in Hounsfield",
    }
    assert set(failed) == set(words)
    for case, text in words.items():
        assert text in failed[case], failed[case]
        assert f"{case}.h5" in failed[case]


def test_a_spacing_that_contradicts_the_file_is_refused(cause, tmp_path):
    _save_h5(tmp_path / "s/a.h5", element_size_um=(5000.0, 1200.0, 1200.0))
    assert "5×1.2×1.2 mm in its attribute element_size_um" in cause(tmp_path / "s", spacing_mm="3,1,1")


def test_without_h5py_the_extra_is_named(cause, tmp_path, monkeypatch):
    _save_h5(tmp_path / "s/a.h5")
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    assert "pip install 'nnunet-ext[hdf5]'" in cause(tmp_path / "s", spacing_mm="5,1,1")


def test_fixed_slices_keep_length_and_place_and_are_declared(run, tmp_path):
    done = run(_save_nifti(tmp_path / "s", 2), fixed_slices="15")
    image, grid = read_image(done.folder / "imagesTr/s_0_0000.nii.gz")
    assert image.shape == (15, 20, 24)
    np.testing.assert_allclose(grid.spacing_mm, (3.0, 1.2, 1.2), rtol=1e-6)
    np.testing.assert_allclose(grid.origin_mm, (-10.0, 20.0, 29.0), rtol=1e-6)  # the outer edge stays at 27.5 mm
    labels = read_labels(done.folder / "labelsTr/s_0.nii.gz")[0]
    assert np.flatnonzero(labels.any(axis=(1, 2))).tolist() == [5, 6, 7, 8, 9]  # 42.5 to 57.5 mm, as before
    assert _json(done.folder / "dataset.json")["nnunet_ext"]["fixed_slices"] == 15
    assert any("for reproducing only" in text for text in done.report["warnings"])
    assert "resampled from 9 slices of 5.00 mm to 15 of 3.00 mm" in done.report["cases"]["s_0"]["notes"]


def test_nifti_and_hdf5_together_are_refused(tmp_path):
    _save_nifti(tmp_path, 1)
    _save_h5(tmp_path / "a.h5")
    with pytest.raises(InputError, match=r"holds NIfTI \(s_0\.nii\.gz\) and HDF5 \(a\.h5\)"):
        open_source(tmp_path)


def test_dicom_is_refused(tmp_path):
    (tmp_path / "a.dcm").touch()
    with pytest.raises(InputError, match="comes in a later version"):
        open_source(tmp_path)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"spacing_mm": "5,1"}, "three numbers"),
        ({"spacing_mm": "5,1,x"}, "from 0.1 to 20"),
        ({"fixed_slices": "1"}, "from 2 to 2000"),
        ({"patient": "nobody"}, "finds nothing"),
    ],
)
def test_options_that_are_not_understood_are_refused(tmp_path, options, word):
    _save_h5(tmp_path / "a.h5")
    with pytest.raises(InputError, match=word):
        open_source(tmp_path, **options)


def test_scans_of_a_patient_share_a_fold(run, tmp_path):
    for i in range(6):
        _save_h5(tmp_path / f"s/p{i // 2}_{i}.h5", i)
    done = run(tmp_path / "s", patient=r"^p\d", spacing_mm="5,1.2,1.2")
    for split in _json(done.folder / "splits_final.json"):
        assert {name[:2] for name in split["train"]}.isdisjoint({name[:2] for name in split["val"]})


@pytest.mark.parametrize(
    "options",
    [{"fixed_slices": "12"}, {"values": "plus1024"}, {"axes": "IPL"}, {"spacing_mm": "5,1,1"}, {"image_key": "ct"}],
)
def test_an_unfinished_conversion_with_other_options_is_not_continued(run, tmp_path, monkeypatch, options):
    for i in range(2):
        _save_h5(tmp_path / f"s/c{i}.h5", i)
    with monkeypatch.context() as patch:
        patch.setattr(module, "load_case", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "s", spacing_mm="5,1.2,1.2")
    with pytest.raises(InputError, match="other options"):
        run(tmp_path / "s", **{"spacing_mm": "5,1.2,1.2", **options})
    assert not run(tmp_path / "s", spacing_mm="5,1.2,1.2").failed


def _interrupted(case, source):
    raise KeyboardInterrupt
