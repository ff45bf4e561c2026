from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from nnunet_ext.dataset_conversion.liver_target import open_source

from nnunet_ext.cli import main
from nnunet_ext.conversion import convert as module
from nnunet_ext.conversion.convert import convert
from nnunet_ext.errors import InputError
from nnunet_ext.geometry import Grid
from nnunet_ext.io.nifti import read_image, read_labels, write_labels, write_voxels

SHAPE = (10, 48, 64)
ANGLE = np.radians(10)
OBLIQUE_RAS = (-np.cos(ANGLE), np.sin(ANGLE), 0, -np.sin(ANGLE), -np.cos(ANGLE), 0, 0, 0, 1)
GRID = Grid(SHAPE, (3.0, 1.0, 1.0), (30.0, 40.0, -100.0), tuple(float(v) for v in OBLIQUE_RAS))
BODY = (slice(None), slice(14, 38), slice(12, 44))
LIVER = (slice(3, 7), slice(16, 30), slice(16, 32))
TARGET = (slice(4, 6), slice(20, 25), slice(20, 27))


def _mask(where: tuple[slice, ...]) -> np.ndarray:
    mask = np.zeros(SHAPE, np.uint8)
    mask[where] = 1
    return mask


def _ct(seed: int) -> np.ndarray:
    image = np.full(SHAPE, -1000.0)
    image[BODY] = 40.0
    image[LIVER] = 90.0
    return (image + np.random.default_rng(seed).integers(-20, 20, SHAPE)).astype(np.int16)


def _save_case(folder: Path, name: str, seed: int = 0, target: np.ndarray | None = None, liver: bool = False) -> None:
    write_voxels(folder / f"images/{name}.nii.gz", _ct(seed), GRID)
    write_labels(folder / f"labels/{name}.nii.gz", _mask(TARGET) if target is None else target, GRID)
    if liver:
        write_labels(folder / f"livers/{name}.nii.gz", _mask(LIVER), GRID)


def _json(path: Path):
    return json.loads(path.read_text())


def _same_place(path: Path, other: Path) -> tuple[np.ndarray, np.ndarray]:
    """The values of a file, and those of another one at the same places in the patient."""
    image, grid = read_image(path)
    source, source_grid = read_image(other)
    points = grid.points_mm(np.argwhere(np.ones(image.shape)))
    xyz = np.linalg.solve(source_grid.affine, np.column_stack([points, np.ones(len(points))]).T)[:3]
    np.testing.assert_allclose(xyz, np.rint(xyz), atol=1e-3)
    x, y, z = np.rint(xyz).astype(int)
    return image.ravel(), source[z, y, x]


@pytest.fixture
def run(tmp_path):
    def convert_folder(folder: Path, raw: str = "raw", overwrite: bool = False, seed: int = 12345, **options):
        source = open_source(folder, **options)
        return convert(source, tmp_path / raw, 401, "Liver", quiet=True, overwrite=overwrite, seed=seed)

    return convert_folder


def _draw(folder: Path, count: int, **fields) -> Path:
    for i in range(count):
        _save_case(folder, f"pt_{i}", seed=i, **fields)
    return folder


def test_fifty_patients_are_split_30_10_10_and_every_fold_is(tmp_path):
    for part in ("images", "labels"):
        (tmp_path / part).mkdir()
        for i in range(50):
            (tmp_path / part / f"pt_{i}.nii.gz").touch()
    source = module._with_test_cases(open_source(tmp_path), 12345)
    assert len(source.held_out) == 10
    training = {case.identifier: case.identifier for case in source.cases if case.identifier not in source.held_out}
    splits = module.patient_splits(training, source.folds, 12345)
    assert [(len(split["train"]), len(split["val"])) for split in splits] == [(30, 10)] * 4
    again = module._with_test_cases(open_source(tmp_path), 12345)
    assert again.held_out == source.held_out != module._with_test_cases(open_source(tmp_path), 1).held_out


def test_full_conversion_is_an_nnunet_dataset_with_labelled_test_cases(run, tmp_path):
    done = run(_draw(tmp_path / "s", 10), target="GTV")
    assert not done.failed
    names = {part: {p.name[:4] for p in (done.folder / part).iterdir()} for part in ("imagesTr", "labelsTr")}
    test = {part: {p.name[:4] for p in (done.folder / part).iterdir()} for part in ("imagesTs", "labelsTs")}
    assert names["imagesTr"] == names["labelsTr"]
    assert test["imagesTs"] == test["labelsTs"]
    assert (len(names["imagesTr"]), len(test["imagesTs"])) == (8, 2)
    assert not names["imagesTr"] & test["imagesTs"]
    splits = _json(done.folder / "splits_final.json")
    assert [(len(split["train"]), len(split["val"])) for split in splits] == [(6, 2)] * 4
    assert {case for split in splits for case in split["val"]} == names["imagesTr"]
    content = _json(done.folder / "dataset.json")
    assert content["labels"] == {"background": 0, "GTV": 1}
    assert content["numTraining"] == 8
    assert content["nnunet_ext"] == {
        "source": "liver-target",
        "converter_version": 1,
        "swap_pairs": [],
        "crop": {"to": "body", "margin_mm": 10.0},
        "split": {"test_share": 0.2, "seed": 12345},
    }
    assert (done.report["training_cases"], done.report["test_cases"]) == (8, 2)


def test_the_crop_keeps_body_and_margin_and_every_voxel_in_its_place(run, tmp_path):
    done = run(_draw(tmp_path / "s", 3))
    record = done.report["cases"]["pt_0"]
    # body 24×32 voxels of 1 mm, 10 mm around it, axes turned to LPS: rows 14..37 become 10..33 of 48
    assert record["crop"] == {"start": [0, 0, 10], "stop": [10, 44, 62], "of": [10, 48, 64]}
    assert "cropped to the body and 10 mm: 74% of the voxels kept" in record["notes"]
    part = "Ts" if record["test"] else "Tr"
    written, source = _same_place(done.folder / f"images{part}/pt_0_0000.nii.gz", tmp_path / "s/images/pt_0.nii.gz")
    assert written.size == 10 * 44 * 52
    np.testing.assert_array_equal(written, source)
    written, source = _same_place(done.folder / f"labels{part}/pt_0.nii.gz", tmp_path / "s/labels/pt_0.nii.gz")
    np.testing.assert_array_equal(written, source)
    assert written.sum() == _mask(TARGET).sum()


def test_liver_masks_of_all_cases_are_cropped_to_and_a_warning_says_so(run, tmp_path):
    done = run(_draw(tmp_path / "s", 3, liver=True), margin_mm="2")
    record = done.report["cases"]["pt_1"]
    # 4×14×16 voxels: 1 slice and 2 voxels around
    assert [b - a for a, b in zip(record["crop"]["start"], record["crop"]["stop"], strict=True)] == [6, 18, 20]
    assert _json(done.folder / "dataset.json")["nnunet_ext"]["crop"] == {"to": "liver", "margin_mm": 2.0}
    assert any("crop new patients alike" in text for text in done.report["warnings"])


def test_one_missing_liver_mask_means_the_body_and_asking_for_the_liver_names_it(run, tmp_path):
    folder = _draw(tmp_path / "s", 3, liver=True)
    (folder / "livers/pt_2.nii.gz").unlink()
    assert _json(run(folder).folder / "dataset.json")["nnunet_ext"]["crop"]["to"] == "body"
    with pytest.raises(InputError, match=r"1 of 3 have none, such as pt_2; expected livers/pt_2\.nii\.gz"):
        open_source(folder, crop="liver")


def test_without_a_crop_nothing_is_cut_and_nothing_recorded(run, tmp_path):
    done = run(_draw(tmp_path / "s", 2), crop="none")
    assert "crop" not in _json(done.folder / "dataset.json")["nnunet_ext"]
    assert done.report["cases"]["pt_0"]["crop"] == {}
    assert done.report["cases"]["pt_0"]["shape"] == SHAPE


def test_case_folders_with_label_or_target_name_are_understood(run, tmp_path):
    for i, name in enumerate(("label", "CTV", "label")):
        write_voxels(tmp_path / f"s/{i}/CT.nii.gz", _ct(i), GRID)
        write_labels(tmp_path / f"s/{i}/{name}.nii.gz", _mask(TARGET), GRID)
        write_labels(tmp_path / f"s/{i}/liver.nii.gz", _mask(LIVER), GRID)
    done = run(tmp_path / "s", target="CTV")
    assert not done.failed
    assert set(done.report["cases"]) == {"0", "1", "2"}
    assert _json(done.folder / "dataset.json")["nnunet_ext"]["crop"]["to"] == "liver"


def test_all_scans_of_a_patient_are_set_aside_together(tmp_path):
    for part in ("images", "labels"):
        (tmp_path / part).mkdir()
        for i in range(20):
            (tmp_path / part / f"pt_{i // 2}_{i % 2}.nii.gz").touch()
    held_out = module._with_test_cases(open_source(tmp_path, patient=r"^pt_\d+"), 12345).held_out
    assert len(held_out) == 4
    assert all(f"{name[:-1]}{1 - int(name[-1])}" in held_out for name in held_out)


def test_test_cases_without_labels_stay_beside_the_drawn_ones(run, tmp_path):
    folder = _draw(tmp_path / "s", 5)
    write_voxels(folder / "imagesTs/new.nii.gz", _ct(77), GRID)
    done = run(folder)
    assert done.report["test_cases"] == 2
    assert len(list((done.folder / "labelsTs").iterdir())) == 1
    assert (done.folder / "imagesTs/new_0000.nii.gz").is_file()


def test_another_label_value_is_taken_when_said(run, tmp_path):
    _draw(tmp_path / "s", 2, target=_mask(TARGET) * 2)
    with pytest.raises(InputError, match=r"unknown label value 2 \(70 voxels\)"):
        run(tmp_path / "s")
    done = run(tmp_path / "s", label_value="2")
    assert read_labels(done.folder / "labelsTr/pt_0.nii.gz")[0].max() == 1


def test_an_unnamed_target_is_a_warning(run, tmp_path):
    _draw(tmp_path / "s", 2)
    assert any("--target" in text for text in run(tmp_path / "s").report["warnings"])
    assert not any("--target" in text for text in run(tmp_path / "s", raw="b", target="GTV").report["warnings"])


def test_bad_cases_are_named_and_the_others_converted(run, tmp_path):
    folder = _draw(tmp_path / "s", 7, liver=True)
    beyond = _mask(TARGET)
    beyond[4, 16, 50:53] = 1
    write_labels(folder / "labels/pt_0.nii.gz", beyond, GRID)
    write_labels(folder / "livers/pt_1.nii.gz", np.zeros(SHAPE, np.uint8), GRID)
    moved = Grid(SHAPE, GRID.spacing_mm, (0.0, 0.0, 0.0), GRID.direction)
    write_labels(folder / "livers/pt_2.nii.gz", _mask(LIVER), moved)
    cut = folder / "images/pt_3.nii.gz"
    cut.write_bytes(cut.read_bytes()[:100])
    (folder / "labels/pt_4.nii.gz").unlink()
    done = run(folder, target="CTV")
    words = {
        "pt_0": "crop to the liver and 10 mm would cut CTV (3 voxels)",
        "pt_1": "pt_1.nii.gz is empty",
        "pt_2": "lies on another grid than",
        "pt_3": "truncated",
        "pt_4": "no label file",
    }
    assert set(done.failed) == set(words)
    for case, text in words.items():
        assert text in done.failed[case]


def test_dicom_is_refused_in_one_sentence(tmp_path):
    (tmp_path / "pt_1").mkdir()
    (tmp_path / "pt_1/IM0001").write_bytes(b"\0" * 128 + b"DICM")
    with pytest.raises(InputError, match="holds DICOM files; DICOM with RTSTRUCT comes in a later version"):
        open_source(tmp_path)


def test_a_dicom_contour_beside_a_nifti_image_is_no_test_case(tmp_path):
    write_voxels(tmp_path / "pt_1/CT.nii.gz", _ct(0), GRID)
    (tmp_path / "pt_1/RS.dcm").touch()
    (case,) = open_source(tmp_path).cases
    assert "RS.dcm is DICOM" in case.fault


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"<case>/CT\.nii\.gz"):
        open_source(tmp_path)


@pytest.mark.parametrize(("option", "value"), [("margin_mm", "wide"), ("margin_mm", "-1"), ("label_value", "0")])
def test_options_outside_their_range_are_refused(tmp_path, option, value):
    _save_case(tmp_path, "a")
    with pytest.raises(InputError, match="must be a number from"):
        open_source(tmp_path, **{option: value})


def test_a_killed_conversion_resumes_other_options_do_not_and_another_seed_moves_the_cases(run, tmp_path, monkeypatch):
    _draw(tmp_path / "s", 6)
    loaded: list[str] = []
    original = module.load_case

    def load(case, source):
        loaded.append(case.identifier)
        if len(loaded) == 6:
            raise KeyboardInterrupt
        return original(case, source)

    monkeypatch.setattr(module, "load_case", load)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "s")
    for options in ({"margin_mm": "12"}, {"crop": "none"}, {"target": "GTV"}, {"label_value": "2"}):
        with pytest.raises(InputError, match="other options"):
            run(tmp_path / "s", **options)
    seed = next(seed for seed in range(100) if _held_out(tmp_path / "s", seed) != _held_out(tmp_path / "s", 12345))
    done = run(tmp_path / "s", seed=seed)
    moved = (_held_out(tmp_path / "s", seed) | _held_out(tmp_path / "s", 12345)) - {"pt_5"}
    assert set(loaded[6:]) == moved | {"pt_5"}
    assert {p.name for p in (done.folder / "labelsTs").iterdir()} == {
        f"{case}.nii.gz" for case in _held_out(tmp_path / "s", seed)
    }
    assert len(list((done.folder / "labelsTr").iterdir())) == 5


def _held_out(folder: Path, seed: int) -> frozenset[str]:
    return module._with_test_cases(open_source(folder), seed).held_out


def test_the_command_line_takes_the_folds_of_the_paper_unless_told_otherwise(tmp_path, monkeypatch, capsys):
    _draw(tmp_path / "s", 10)
    for key in ("nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    for number, more, folds in ((1, [], 4), (2, ["--folds", "2"], 2)):
        words = ["convert", "liver-target", str(tmp_path / "s"), "-d", str(number), "--target", "GTV", *more]
        monkeypatch.setattr(sys, "argv", ["nnunet-ext", *words])
        with pytest.raises(SystemExit) as end:
            main()
        assert not end.value.code
        assert "8 training cases, 2 test cases converted" in capsys.readouterr().out
        assert len(_json(tmp_path / f"raw/Dataset00{number}_LiverTarget/splits_final.json")) == folds
