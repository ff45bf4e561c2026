from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from nnunet_ext.conversion import convert as module
from nnunet_ext.conversion.convert import convert
from nnunet_ext.conversion.source import NiftiCase
from nnunet_ext.conversion.workplace import Workplace
from nnunet_ext.errors import BusyError, InputError

NAME = "Dataset101_Drawn"


def _hashes(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def _json(folder: Path, name: str):
    return json.loads((folder / name).read_text())


@pytest.fixture
def run(tmp_path, source_of):
    def convert_folder(folder: Path, raw: str = "raw", number: int = 101, name: str = "Drawn", **options):
        changes = options.pop("changes", {})
        return convert(source_of(folder, **changes), tmp_path / raw, number, name, quiet=True, **options)

    return convert_folder


def test_dataset_is_an_ordinary_nnunet_dataset(run, good_folder):
    done = run(good_folder)
    assert done.folder.name == NAME
    assert sorted(path.name for path in done.folder.iterdir()) == [
        "conversion_report.json",
        "dataset.json",
        "imagesTr",
        "labelsTr",
        "present_labels.json",
        "splits_final.json",
    ]
    content = _json(done.folder, "dataset.json")
    assert content["channel_names"] == {"0": "CT"}
    assert content["labels"] == {"background": 0, "Brainstem": 1, "Parotid_L": 2, "Parotid_R": 3}
    assert content["numTraining"] == 7
    assert content["overwrite_image_reader_writer"] == "SimpleITKIOWithReorient"
    assert content["nnunet_ext"] == {"source": "drawn", "converter_version": 1, "swap_pairs": [[2, 3]]}


def test_voxels_and_grid_survive(run, draw, good_folder):
    folder = run(good_folder).folder
    image = sitk.ReadImage(str(folder / "imagesTr/case_3_0000.nii.gz"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), draw.phantom(3)[0].astype(np.int16))
    assert image.GetSpacing() == (1.0, 1.0, 3.0)
    assert image.GetPixelID() == sitk.sitkInt16


@pytest.mark.parametrize(
    "direction",
    [(-1, 0, 0, 0, -1, 0, 0, 0, 1), (0, 0, -1, 1, 0, 0, 0, -1, 0), (1, 0, 0, 0, 1, 0, 0, 0, -1)],
    ids=["RAS", "permuted", "feet-first"],
)
def test_left_stays_left(run, draw, tmp_path, direction):
    for i in range(2):
        image, labels = draw.phantom(i)
        lps = [sitk.GetImageFromArray(a.astype(np.int16)) for a in (image, labels)]
        frame = sitk.GetImageFromArray(np.zeros((2, 2, 2), np.int16))
        frame.SetDirection([float(v) for v in direction])
        codes = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(frame.GetDirection())
        for part, volume in zip(("images", "labels"), lps, strict=True):
            volume.SetSpacing((1.0, 1.0, 3.0))
            path = tmp_path / f"source/{part}/c{i}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            sitk.WriteImage(sitk.DICOMOrient(volume, codes), str(path))
    done = run(tmp_path / "source")
    written = sitk.ReadImage(str(done.folder / "labelsTr/c0.nii.gz"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(written), draw.phantom(0)[1])
    left, right = (np.argwhere(sitk.GetArrayFromImage(written) == n).mean(axis=0) for n in (2, 3))
    assert left[2] > right[2]
    assert done.report["cases"]["c0"]["orientation"] == codes
    assert not any("right of" in text for text in done.report["warnings"])


def test_swapped_sides_are_reported(run, draw, good_folder):
    _, labels = draw.phantom(0)
    swapped = np.array([0, 1, 3, 2])[labels]
    draw.save(good_folder / "labels/case_0.nii.gz", swapped)
    assert any("case_0: Parotid_L lies" in text for text in run(good_folder).report["warnings"])


def test_oblique_grid_survives(run, draw, tmp_path):
    angle = np.radians(12)
    direction = (np.cos(angle), -np.sin(angle), 0, np.sin(angle), np.cos(angle), 0, 0, 0, 1)
    for i in range(2):
        image, labels = draw.phantom(i)
        for part, array in (("images", image), ("labels", labels)):
            draw.save(tmp_path / f"s/{part}/c{i}.nii.gz", array, direction=direction, origin_mm=(5, -7, 9))
    written = sitk.ReadImage(str(run(tmp_path / "s").folder / "imagesTr/c0_0000.nii.gz"))
    np.testing.assert_allclose(written.GetDirection(), direction, atol=1e-6)
    np.testing.assert_allclose(written.GetOrigin(), (5, -7, 9), atol=1e-5)


def _spoil(draw, folder: Path) -> dict[str, str]:
    """One case per fault; returns case to the words that must name it."""
    image, labels = draw.phantom(9)
    draw.truncate(folder / "images/case_0.nii.gz")
    spoilt = image.copy()
    spoilt[4, 4, 4] = np.nan
    draw.save(folder / "images/case_1.nii.gz", spoilt, dtype=np.float32)
    draw.save(folder / "labels/case_2.nii.gz", labels, origin_mm=(2.0, 0.0, 0.0))
    unknown = labels.copy()
    unknown[0, 0, :3] = 9
    draw.save(folder / "labels/case_3.nii.gz", unknown)
    return {"case_0": "truncated", "case_1": "NaN", "case_2": "another grid", "case_3": "label value 9 (3 voxels)"}


def test_bad_cases_are_all_named_and_good_ones_converted(run, draw, good_folder):
    expected = _spoil(draw, good_folder)
    done = run(good_folder)
    assert set(done.failed) == set(expected)
    for case, words in expected.items():
        assert words in done.failed[case]
        assert str(good_folder) in done.failed[case]
    assert [p.name for p in sorted((done.folder / "labelsTr").iterdir())] == [f"case_{i}.nii.gz" for i in (4, 5, 6)]
    assert len(list((done.folder / "imagesTr").iterdir())) == 3
    assert _json(done.folder, "dataset.json")["numTraining"] == 3
    assert {c for split in _json(done.folder, "splits_final.json") for c in split["val"]} == {
        "case_4",
        "case_5",
        "case_6",
    }


def test_dataset_holds_no_path(run, draw, good_folder, tmp_path):
    _spoil(draw, good_folder)
    folder = run(good_folder).folder
    for path in folder.glob("*.json"):
        assert str(tmp_path) not in path.read_text()


def test_same_scan_under_two_names_is_refused_in_any_orientation(run, draw, good_folder):
    image, labels = draw.phantom(0)
    ras = (-1, 0, 0, 0, -1, 0, 0, 0, 1)
    draw.save(good_folder / "images/case_9.nii.gz", image[:, ::-1, ::-1], direction=ras)
    draw.save(good_folder / "labels/case_9.nii.gz", labels[:, ::-1, ::-1], direction=ras)
    failed = run(good_folder).failed
    assert set(failed) == {"case_9"}
    assert "case case_0" in failed["case_9"]


def test_float_labels_that_are_no_whole_numbers_are_refused(run, draw, good_folder):
    labels = draw.phantom(0)[1].astype(np.float32)
    labels[4, 5, 7] = 1.5
    draw.save(good_folder / "labels/case_0.nii.gz", labels, dtype=np.float32)
    assert "whole numbers" in run(good_folder).failed["case_0"]


def test_no_usable_case_leaves_nothing(run, draw, good_folder, tmp_path):
    for path in (good_folder / "images").iterdir():
        draw.truncate(path)
    with pytest.raises(InputError, match=r"no usable training case[\s\S]*case_6: "):
        run(good_folder)
    assert list((tmp_path / "raw").iterdir()) == []


def test_organ_that_was_never_contoured_is_recorded_so(run, draw, good_folder):
    labels = draw.phantom(0)[1]
    labels[labels == 3] = 0
    draw.save(good_folder / "labels/case_0.nii.gz", labels)
    done = run(good_folder)
    present = _json(done.folder, "present_labels.json")
    assert present["case_0"] == [1, 2]
    assert present["case_1"] == [1, 2, 3]
    assert done.report["organs"]["Parotid_R"]["not_contoured"] == 1


def test_test_cases_go_to_images_ts(run, draw, good_folder):
    draw.save(good_folder / "imagesTs/t.nii.gz", draw.phantom(50)[0])
    done = run(good_folder)
    assert (done.folder / "imagesTs/t_0000.nii.gz").is_file()
    assert "t" not in _json(done.folder, "present_labels.json")
    assert _json(done.folder, "dataset.json")["numTraining"] == 7
    assert done.report["test_cases"] == 1


def test_two_channels_are_written_and_must_share_a_grid(run, draw, tmp_path):
    for i in range(3):
        image, labels = draw.phantom(i)
        draw.save(tmp_path / f"s/c{i}_ct.nii.gz", image)
        draw.save(tmp_path / f"s/c{i}_mr.nii.gz", image[::-1], origin_mm=(0, 0, 30.0 if i == 2 else 0))
        draw.save(tmp_path / f"s/c{i}_label.nii.gz", labels)
    files = [[tmp_path / f"s/c{i}_{kind}.nii.gz" for kind in ("ct", "mr", "label")] for i in range(3)]
    cases = tuple(NiftiCase(f"c{i}", (ct, mr), label) for i, (ct, mr, label) in enumerate(files))
    done = run(tmp_path / "s", changes={"cases": cases, "channels": ("CT", "MR")})
    assert _json(done.folder, "dataset.json")["channel_names"] == {"0": "CT", "1": "MR"}
    assert (done.folder / "imagesTr/c0_0001.nii.gz").is_file()
    assert set(done.failed) == {"c2"}


def test_values_outside_int16_stay_float(run, draw, tmp_path):
    for i in range(2):
        image, labels = draw.phantom(i)
        draw.save(tmp_path / f"s/images/c{i}.nii.gz", image + 0.25, dtype=np.float32)
        draw.save(tmp_path / f"s/labels/c{i}.nii.gz", labels)
    written = sitk.ReadImage(str(run(tmp_path / "s").folder / "imagesTr/c0_0000.nii.gz"))
    assert written.GetPixelID() == sitk.sitkFloat32


def test_taken_number_is_refused_whatever_its_name(run, good_folder):
    run(good_folder, name="First")
    with pytest.raises(InputError, match=r"number 101 is taken by .*Dataset101_First"):
        run(good_folder, name="Second")


def test_overwrite_replaces_the_dataset_of_that_number(run, good_folder, tmp_path):
    run(good_folder, name="First")
    run(good_folder, name="Second", overwrite=True)
    assert [path.name for path in (tmp_path / "raw").iterdir()] == ["Dataset101_Second"]


def test_failed_overwrite_keeps_the_old_dataset(run, draw, good_folder):
    before = _hashes(run(good_folder).folder)
    for path in (good_folder / "images").iterdir():
        draw.truncate(path)
    with pytest.raises(InputError):
        run(good_folder, overwrite=True)
    assert _hashes(good_folder.parent / "raw" / NAME) == before


def test_number_that_another_name_holds_in_preprocessed_is_refused(run, good_folder, tmp_path):
    (tmp_path / "preprocessed/Dataset101_Other").mkdir(parents=True)
    with pytest.raises(InputError, match="Dataset101_Other"):
        run(good_folder, elsewhere=[tmp_path / "preprocessed"])


@pytest.mark.parametrize(("number", "name"), [(0, "A"), (1000, "A"), (1, ""), (1, "a b"), (1, "a__b"), (1, "../a")])
def test_unusable_number_or_name_is_refused(run, good_folder, number, name):
    with pytest.raises(InputError, match=r"dataset n"):
        run(good_folder, number=number, name=name)


@contextlib.contextmanager
def _killed_after(monkeypatch, cases: int):
    original = Workplace.remember
    left = [cases]

    def remember(self, record):
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        original(self, record)

    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(Workplace, "remember", remember)
        yield
        pytest.fail("the conversion ended before it could be interrupted")


def test_killed_conversion_resumes_to_the_same_files(run, draw, good_folder, tmp_path, monkeypatch):
    _spoil(draw, good_folder)
    with _killed_after(monkeypatch, cases=2):
        run(good_folder)
    assert not (tmp_path / "raw" / NAME).exists()
    loaded = []
    original = module.load_case
    monkeypatch.setattr(module, "load_case", lambda case, source: loaded.append(case) or original(case, source))
    resumed = run(good_folder)
    assert {case.identifier for case in loaded}.isdisjoint({"case_4", "case_5"})
    whole = run(good_folder, raw="whole")
    assert _hashes(resumed.folder) == _hashes(whole.folder)
    assert resumed.failed == whole.failed
    assert [path.name for path in (tmp_path / "raw").iterdir()] == [NAME]


def test_changed_source_file_is_converted_again(run, draw, good_folder, tmp_path, monkeypatch):
    with _killed_after(monkeypatch, cases=3):
        run(good_folder)
    draw.save_case(good_folder, "case_0", seed=77)
    assert _hashes(run(good_folder).folder) == _hashes(run(good_folder, raw="whole").folder)


def test_case_that_left_the_source_leaves_the_unfinished_dataset(run, good_folder, monkeypatch):
    with _killed_after(monkeypatch, cases=3):
        run(good_folder)
    for part in ("images", "labels"):
        (good_folder / part / "case_1.nii.gz").unlink()
    assert _hashes(run(good_folder).folder) == _hashes(run(good_folder, raw="whole").folder)


def test_unfinished_conversion_of_another_source_is_not_mixed_in(run, draw, good_folder, tmp_path, monkeypatch):
    with _killed_after(monkeypatch, cases=3):
        run(good_folder)
    for i in (20, 21):
        draw.save_case(tmp_path / "other", f"o{i}", seed=i)
    with pytest.raises(InputError, match="unfinished conversion of another source"):
        run(tmp_path / "other")
    done = run(tmp_path / "other", overwrite=True)
    assert set(done.report["cases"]) == {"o20", "o21"}


def test_second_process_on_the_same_dataset_is_sent_away(run, good_folder, tmp_path):
    with Workplace(tmp_path / "raw", NAME).locked(), pytest.raises(BusyError, match="another process"):
        run(good_folder)
    run(good_folder)


def test_patients_scans_share_a_fold(run, good_folder):
    cases = tuple(
        NiftiCase(
            f"case_{i}",
            (good_folder / f"images/case_{i}.nii.gz",),
            good_folder / f"labels/case_{i}.nii.gz",
            patient=f"p{i // 2}",
        )
        for i in range(7)
    )
    splits = _json(run(good_folder, changes={"cases": cases}, folds=2).folder, "splits_final.json")
    assert all(("case_0" in split["val"]) == ("case_1" in split["val"]) for split in splits)


def test_two_cases_of_one_name_are_refused(run, good_folder):
    case = NiftiCase("a", (good_folder / "images/case_0.nii.gz",), good_folder / "labels/case_0.nii.gz")
    with pytest.raises(InputError, match="several cases named a"):
        run(good_folder, changes={"cases": (case, case)})


def test_organs_must_be_numbered_without_gaps(run, good_folder):
    with pytest.raises(InputError, match="expected 1 to n"):
        run(good_folder, changes={"organs": {"Brainstem": 1, "Parotid_L": 3}})


def test_source_is_never_written_to(run, good_folder):
    before = {path: path.stat().st_mtime_ns for path in good_folder.rglob("*")}
    run(good_folder)
    assert {path: path.stat().st_mtime_ns for path in good_folder.rglob("*")} == before


def test_an_organ_without_a_voxel_is_not_contoured_unless_the_user_says_that_it_is_absent(run, draw, good_folder):
    for name, organ in (("case_0", 3), ("case_1", 3), ("case_2", 1)):
        labels = draw.phantom(0)[1]
        labels[labels == organ] = 0
        draw.save(good_folder / f"labels/{name}.nii.gz", labels)
    done = run(good_folder)
    present = _json(done.folder, "present_labels.json")
    assert (present["case_0"], present["case_2"], present["case_3"]) == ([1, 2], [2, 3], [1, 2, 3])
    (line,) = [text for text in done.report["warnings"] if "no voxel" in text]
    assert line.startswith("no voxel of Brainstem in 1, Parotid_R in 2 of 7 cases: taken as not contoured")
    assert line.endswith("convert with --empty absent")
    done = run(good_folder, overwrite=True, changes={"empty": "absent"})
    assert set(map(tuple, _json(done.folder, "present_labels.json").values())) == {(1, 2, 3)}
    assert done.report["organs"]["Parotid_R"]["not_contoured"] == 0
    (line,) = [text for text in done.report["warnings"] if "no voxel" in text]
    assert "Parotid_R in 2 of 7 cases: taken as absent" in line


def test_a_patient_without_the_tumour_is_a_case_without_tumour(run, draw, good_folder):
    for i in range(7):
        labels = draw.phantom(i)[1]
        draw.save(good_folder / f"labels/case_{i}.nii.gz", (labels == 1) * (i > 0))
    done = run(good_folder, changes={"organs": {"GTV": 1}, "empty": "absent"})
    assert _json(done.folder, "present_labels.json")["case_0"] == [1]
    assert not any("no organ is contoured" in text for text in done.report["warnings"])


def test_what_was_not_contoured_in_a_test_case_is_stated_too(run, draw, good_folder):
    labels = draw.phantom(0)[1]
    labels[labels == 3] = 0
    for i in range(7):
        draw.save(good_folder / f"labels/case_{i}.nii.gz", labels)
    draw.save(good_folder / "imagesTs/t.nii.gz", draw.phantom(50)[0])
    done = run(good_folder, changes={"test_share": 0.3})
    tests = {path.name.removesuffix(".nii.gz") for path in (done.folder / "labelsTs").iterdir()}
    assert len(tests) == 2
    present = _json(done.folder, "present_labels.json")
    assert set(present) == {f"case_{i}" for i in range(7)}
    assert all(present[case] == [1, 2] for case in tests)


def test_a_conversion_that_was_killed_is_not_continued_with_another_meaning_of_empty(
    run, good_folder, monkeypatch, tmp_path
):
    with monkeypatch.context() as patched:
        patched.setattr(Workplace, "publish", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(good_folder)
    with pytest.raises(InputError, match="unfinished conversion of another source or with other options"):
        run(good_folder, changes={"empty": "absent"})
