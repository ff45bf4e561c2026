from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from nnunet_ext.dataset_conversion.openkbp import FILES, ORGANS, TARGETS, open_source

from nnunet_ext.conversion.convert import convert
from nnunet_ext.errors import InputError

SIDE = 128
DATA = Path(__file__).parents[2] / "../shared/data"


def _to_csv_axes(array: np.ndarray) -> np.ndarray:
    """(Z, Y, X) in LPS to the published axes: back, left, feet."""
    return array[::-1].transpose(1, 2, 0)


def _write_sparse(path: Path, array: np.ndarray, *, mask: bool = False) -> None:
    flat = np.ascontiguousarray(_to_csv_axes(array)).ravel()
    rows = [f"{i}," if mask else f"{i},{float(flat[i])}" for i in np.flatnonzero(flat)]
    path.write_text(",data\n" + "".join(row + "\n" for row in rows))


def _draw(folder: Path, seed: int, organs: tuple[str, ...]) -> dict[str, np.ndarray]:
    """A patient whose dose slab covers slices 50 to 79; the cord shows as a bare CT column beyond it."""
    folder.mkdir(parents=True)
    masks = {name: np.zeros((SIDE,) * 3, bool) for name in organs}
    boxes = {
        "Brainstem": (slice(70, 78), slice(60, 66), slice(60, 66)),
        "SpinalCord": (slice(20, 70), slice(60, 63), slice(62, 65)),
        "LeftParotid": (slice(60, 70), slice(50, 60), slice(80, 88)),
        "RightParotid": (slice(60, 70), slice(50, 60), slice(40, 48)),
        "Mandible": (slice(55, 62), slice(40, 45), slice(50, 78)),
        "Larynx": (slice(30, 40), slice(40, 45), slice(60, 66)),
    }
    for name, mask in masks.items():
        mask[boxes[name]] = True
    ct = np.zeros((SIDE,) * 3)
    ct[50:80, 30:90, 35:95] = 1060 + np.random.default_rng(seed).integers(-30, 30, (30, 60, 60))
    ct[50:80, 30:34, 35:95] = 20  # air in front
    for mask in masks.values():
        ct[mask] = np.maximum(ct[mask], 1050)
    _write_sparse(folder / "ct.csv", ct)
    for name, mask in masks.items():
        _write_sparse(folder / f"{name}.csv", mask, mask=True)
    (folder / "voxel_dimensions.csv").write_text("1.0\n1.0\n3.0\n")
    return masks


ALL = ("Brainstem", "SpinalCord", "LeftParotid", "RightParotid", "Mandible", "Larynx")


@pytest.fixture
def converted(tmp_path):
    _draw(tmp_path / "source/pt_2", 2, ALL)
    _draw(tmp_path / "source/pt_10", 10, ALL[:3])
    return convert(open_source(tmp_path / "source"), tmp_path / "raw", 104, "KBP", quiet=True)


def _read(converted, part: str, name: str) -> sitk.Image:
    return sitk.ReadImage(str(converted.folder / part / f"{name}.nii.gz"))


def test_slices_where_the_image_is_the_label_are_cut_off(converted):
    labels = _read(converted, "labelsTr", "pt_2")
    assert labels.GetSize() == (60, 60, 30)
    assert labels.GetOrigin() == (35.0, 30.0, 150.0)
    assert labels.GetSpacing() == (1.0, 1.0, 3.0)


def test_kept_fraction_is_reported_per_organ(converted):
    organs = converted.report["organs"]
    assert organs["SpinalCord"]["kept_median"] == 0.4  # slices 50 to 69 of 20 to 69
    assert organs["Brainstem"]["kept_min"] == 1.0
    assert organs["Larynx"]["kept_min"] == 0.0


def test_left_lies_on_the_left(converted):
    labels = sitk.GetArrayFromImage(_read(converted, "labelsTr", "pt_2"))
    left = np.argwhere(labels == ORGANS["Parotid_L"]).mean(axis=0)
    right = np.argwhere(labels == ORGANS["Parotid_R"]).mean(axis=0)
    assert left[2] - right[2] == 40
    assert np.argwhere(labels == ORGANS["Brainstem"]).mean(axis=0)[0] > left[0]


def test_values_become_hounsfield_units(converted):
    image = sitk.GetArrayFromImage(_read(converted, "imagesTr", "pt_2_0000"))
    assert image[0, 0, 0] == 20 - 1024
    assert 6 <= image[5, 20, 5] <= 66


def test_organ_without_a_file_was_not_contoured(converted):
    present = json.loads((converted.folder / "present_labels.json").read_text())
    assert present == {"pt_2": [1, 2, 3, 4, 6, 7], "pt_10": [1, 2, 4]}


@pytest.mark.parametrize(("empty", "listed"), [("not-contoured", [1, 2, 4]), ("absent", [1, 2, 4, 5])])
def test_a_file_without_a_row_says_what_the_user_says(tmp_path, empty, listed):
    for name in ("pt_1", "pt_2"):
        _draw(tmp_path / f"source/{name}", int(name[3:]), ALL[:3])
        (tmp_path / f"source/{name}/Esophagus.csv").write_text(",data\n")
    source = replace(open_source(tmp_path / "source"), empty=empty)
    assert source.organs["Esophagus"] == 5
    done = convert(source, tmp_path / "raw", 104, "KBP", quiet=True)
    assert json.loads((done.folder / "present_labels.json").read_text())["pt_1"] == listed


def test_later_organ_wins_where_two_overlap(tmp_path):
    for name in ("pt_1", "pt_2"):
        masks = _draw(tmp_path / f"source/{name}", int(name[3:]), ALL)
        cord = masks["SpinalCord"].copy()
        cord[72, 62, 62] = True  # inside the brainstem
        _write_sparse(tmp_path / f"source/{name}/SpinalCord.csv", cord, mask=True)
    done = convert(open_source(tmp_path / "source"), tmp_path / "raw", 104, "KBP", quiet=True)
    labels = sitk.GetArrayFromImage(_read(done, "labelsTr", "pt_1"))
    assert labels[72 - 50, 62 - 30, 62 - 35] == ORGANS["SpinalCord"]


def test_damaged_patients_are_named_and_the_others_converted(tmp_path):
    source = tmp_path / "source"
    for i in range(5):
        _draw(source / f"pt_{i}", i, ALL[:2])
    (source / "pt_0/ct.csv").write_bytes((source / "pt_0/ct.csv").read_bytes()[:5001])
    (source / "pt_1/voxel_dimensions.csv").unlink()
    (source / "pt_2/Brainstem.csv").write_text(",data\n99999999,\n")
    done = convert(open_source(source), tmp_path / "raw", 104, "KBP", quiet=True)
    assert set(done.failed) == {"pt_0", "pt_1", "pt_2"}
    assert "voxel_dimensions.csv does not exist" in done.failed["pt_1"]
    assert set(done.report["cases"]) == {"pt_3", "pt_4"}


def test_published_parent_folders_are_searched(tmp_path):
    for part in ("train-pats", "test-pats"):
        (tmp_path / f"provided-data/{part}/pt_{len(part)}").mkdir(parents=True)
    assert [case.identifier for case in open_source(tmp_path).cases] == ["pt_9", "pt_10"]


def test_folder_without_patients_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no pt_<n>/ct.csv"):
        open_source(tmp_path)


def test_every_structure_file_has_an_organ():
    assert set(FILES.values()) == set(ORGANS)
    assert not set(FILES) & set(TARGETS)


@pytest.mark.realdata
def test_real_patients_equal_their_published_nifti_conversion(tmp_path):
    original, reference = DATA / "openkbp_original", DATA / "openkbp_hn"
    if not original.is_dir() or not reference.is_dir():
        pytest.skip(f"no OpenKBP patients at {DATA}")
    done = convert(open_source(original), tmp_path / "raw", 104, "KBP", quiet=True)
    assert not done.failed
    assert not any("right of" in text for text in done.report["warnings"])
    for name in done.report["cases"]:
        for ours, theirs in (("imagesTr", "images"), ("labelsTr", "labels")):
            suffix = "_0000" if ours == "imagesTr" else ""
            a = _read(done, ours, name + suffix)
            b = sitk.ReadImage(str(reference / theirs / f"{name}.nii.gz"))
            np.testing.assert_array_equal(*_overlap(a, b), err_msg=f"{name} {ours}")


def _overlap(a: sitk.Image, b: sitk.Image) -> list[np.ndarray]:
    """The voxels that two crops of one grid share; both must hold the same axial slices."""
    starts = [np.rint(np.divide(i.GetOrigin(), i.GetSpacing())).astype(int)[::-1] for i in (a, b)]
    sizes = [np.array(i.GetSize())[::-1] for i in (a, b)]
    assert (starts[0][0], sizes[0][0]) == (starts[1][0], sizes[1][0])
    low, high = np.maximum(*starts), np.minimum(*(s + n for s, n in zip(starts, sizes, strict=True)))
    return [
        sitk.GetArrayFromImage(image)[tuple(slice(p, q) for p, q in zip(low - start, high - start, strict=True))]
        for image, start in zip((a, b), starts, strict=True)
    ]
