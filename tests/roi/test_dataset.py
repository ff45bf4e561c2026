from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnunet_ext.errors import InputError
from nnunet_ext.geometry import Grid, grid_difference
from nnunet_ext.io.atomic import read_json, write_json
from nnunet_ext.io.nifti import read_grid, read_image, read_labels, write_image, write_labels
from nnunet_ext.io.orientation import to_lps
from nnunet_ext.roi.dataset import SIDECAR, derive_dataset
from nnunet_ext.roi.pasting import paste_predictions, renumbered
from nnunet_ext.roi.region import Region
from nnunet_ext.roi.retention import absent_organs, cut_organs, retention_lines
from nnunet_ext.roi.survey import Locator

ORGANS = {"Brainstem": 1, "OpticChiasm": 2, "Pituitary": 3}
MODEL_ORGANS = {"Pituitary": 1, "OpticChiasm": 2}
"""Another order than the dataset's: a locator is asked by name."""
CASES = ["a", "b", "c", "d"]
SPLITS = [{"train": ["c", "d"], "val": ["a", "b"]}, {"train": ["a", "b"], "val": ["c", "d"]}]
SHAPE = (12, 31, 30)
SIZE = (5, 9, 8)
OFF = (1, -2, 3)
"""How far the model's predictions lie beside the truth."""


def drawn(seed: int) -> tuple[np.ndarray, np.ndarray, Grid]:
    """A body with three organs, elsewhere in every case, on an oblique and mirrored grid of 3 mm slices."""
    rng = np.random.default_rng(seed)
    image = np.full(SHAPE, -1000.0)
    image[1:11, 3:28, 3:27] = 40.0
    image += rng.normal(0, 5, SHAPE)
    z, y, x = rng.integers((3, 8, 8), (5, 12, 12))
    labels = np.zeros(SHAPE, np.uint8)
    labels[z : z + 4, y : y + 5, x : x + 5] = 1
    labels[z : z + 2, y + 7 : y + 9, x : x + 5] = 2
    labels[z + 2 : z + 4, y + 9 : y + 11, x + 1 : x + 4] = 3
    angle = np.radians(9.0)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    direction = tuple((turn @ np.diag([-1.0, 1.0, 1.0])).ravel())
    return image, labels, Grid(SHAPE, (3.0, 1.0, 1.0), (5.0 * seed, -20.0, 33.0), direction)


def canonical(seed: int) -> tuple[np.ndarray, Grid]:
    """The labels of a drawn case in the frame in which regions are cut."""
    _, labels, grid = drawn(seed)
    return to_lps(labels, grid)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A raw dataset of four cases with two channels."""
    folder = tmp_path / "Dataset101_Drawn"
    for seed, case in enumerate(CASES):
        image, labels, grid = drawn(seed)
        write_image(folder / "imagesTr" / f"{case}_0000.nii.gz", image, grid)
        write_image(folder / "imagesTr" / f"{case}_0001.nii.gz", image + 2000, grid)
        write_labels(folder / "labelsTr" / f"{case}.nii.gz", labels, grid)
    dataset = {
        "channel_names": {"0": "CT", "1": "MR"},
        "labels": {"background": 0, **ORGANS},
        "numTraining": 4,
        "file_ending": ".nii.gz",
    }
    write_json(folder / "dataset.json", dataset)
    return folder


def predicted(seed: int) -> np.ndarray:
    """What the model says: chiasm and pituitary under its own numbers, moved by OFF."""
    labels = np.roll(drawn(seed)[1], OFF, axis=(0, 1, 2))
    return renumbered(labels, {ORGANS[organ]: number for organ, number in MODEL_ORGANS.items()})


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A trained model: two folds with their validation predictions."""
    folder = tmp_path / "results" / "Trainer__Plans__2d"
    write_json(folder / "dataset.json", {"labels": {"background": 0, **MODEL_ORGANS}})
    for fold, split in enumerate(SPLITS):
        for case in split["val"]:
            seed = CASES.index(case)
            write_labels(folder / f"fold_{fold}" / "validation" / f"{case}.nii.gz", predicted(seed), drawn(seed)[2])
        (folder / f"fold_{fold}" / "checkpoint_final.pth").write_text(f"weights of fold {fold}")
    return folder


def region(organs: tuple[str, ...] = ("OpticChiasm", "Pituitary"), source: str = "truth", **how: Any) -> Region:
    size = {} if {"size_mm", "fraction"} & set(how) else {"size_vox": SIZE}
    return Region.model_validate({"organs": organs, "from": source, **size, **how})


def located(source: Path, target: Path, model: Path, **how: Any) -> dict[str, Any]:
    """Regions around what the model found."""
    return derive_dataset(source, target, region(source="2d", **how), SPLITS, [Locator("2d", model, SPLITS)])


def overwrite_prediction(model: Path, case: str, labels: np.ndarray) -> None:
    for fold, split in enumerate(SPLITS):
        if case in split["val"]:
            path = model / f"fold_{fold}" / "validation" / f"{case}.nii.gz"
            write_labels(path, labels, drawn(CASES.index(case))[2])


# --- what is written -------------------------------------------------------------------------------------------------


def test_labels_are_numbered_in_the_order_of_the_regions_organs(source, tmp_path):
    sidecar = derive_dataset(source, tmp_path / "out", region(("Pituitary", "Brainstem")), SPLITS)
    assert sidecar["label_map"] == {"Pituitary": 1, "Brainstem": 2}
    derived = read_json(tmp_path / "out" / "dataset.json")
    assert derived["labels"] == {"background": 0, "Pituitary": 1, "Brainstem": 2}
    start = sidecar["cases"]["a"]["start"]
    stop = sidecar["cases"]["a"]["stop"]
    part, _ = read_labels(tmp_path / "out" / "labelsTr" / "a.nii.gz")
    truth = canonical(0)[0][tuple(slice(a, b) for a, b in zip(start, stop, strict=True))]
    np.testing.assert_array_equal(part, np.array([0, 2, 0, 1])[truth])


def test_what_was_done_to_the_scans_of_the_source_is_known_of_its_regions(source, tmp_path):
    facts = {"preprocessing": {"CT": ["remove_couch"]}, "crop": {"to": "liver", "margin_mm": 10}, "fixed_slices": 72}
    write_json(source / "dataset.json", {**read_json(source / "dataset.json"), "nnunet_ext": {**facts, "name": "x"}})
    derive_dataset(source, tmp_path / "out", region(copies=0), SPLITS)
    noted = read_json(tmp_path / "out" / "dataset.json")["nnunet_ext"]
    assert {key: noted.get(key) for key in (*facts, "name")} == {**facts, "name": None}


def test_the_dataset_json_is_one_that_nnunet_accepts(source, tmp_path):
    derive_dataset(source, tmp_path / "out", region(copies=1), SPLITS)
    derived = read_json(tmp_path / "out" / "dataset.json")
    assert derived["channel_names"] == {"0": "CT", "1": "MR"}
    assert derived["file_ending"] == ".nii.gz"
    assert derived["numTraining"] == 8
    assert len(list((tmp_path / "out" / "labelsTr").iterdir())) == 8
    assert len(list((tmp_path / "out" / "imagesTr").iterdir())) == 16


@pytest.mark.parametrize("size", [(5, 9, 8), (14, 40, 33)], ids=["inside", "larger than the image"])
def test_every_region_lies_where_it_lay_in_the_patient(source, tmp_path, size):
    sidecar = derive_dataset(source, tmp_path / "out", region(size_vox=size), SPLITS)
    for name, entry in sidecar["cases"].items():
        whole = canonical(CASES.index(entry["case"]))[1]
        for file in (f"labelsTr/{name}.nii.gz", f"imagesTr/{name}_0001.nii.gz"):
            part = read_grid(tmp_path / "out" / file)
            inner = np.argwhere(np.ones(part.shape, bool))
            assert np.abs(part.points_mm(inner) - whole.points_mm(inner + np.asarray(entry["start"]))).max() < 1e-4


def test_outside_the_image_is_air_in_the_first_channel_and_zero_in_others(source, tmp_path):
    sidecar = derive_dataset(source, tmp_path / "out", region(size_vox=(40, 9, 8)), SPLITS)
    above = -sidecar["cases"]["a"]["start"][0]
    assert above > 0
    for channel, value in (("0000", -1024.0), ("0001", 0.0)):
        part, _ = read_image(tmp_path / "out" / "imagesTr" / f"a_{channel}.nii.gz")
        assert (part[:above] == value).all()
        assert not (part[above] == value).any()


@pytest.mark.parametrize("size", [(11, 19, 17), (25, 50, 47)], ids=["inside", "larger than the image"])
def test_an_identity_model_pasted_back_is_the_truth_bit_by_bit(source, tmp_path, size):
    sidecar = derive_dataset(source, tmp_path / "out", region(tuple(ORGANS), size_vox=size, copies=0), SPLITS)
    paste_predictions(sidecar, tmp_path / "out" / "labelsTr", source / "labelsTr", tmp_path / "whole")
    for case in CASES:
        truth, grid = read_labels(source / "labelsTr" / f"{case}.nii.gz")
        whole, pasted_grid = read_labels(tmp_path / "whole" / f"{case}.nii.gz")
        np.testing.assert_array_equal(whole, truth)
        assert grid_difference(grid, pasted_grid) is None


def test_the_middle_of_the_image_can_be_the_region(source, tmp_path):
    middle = region(tuple(ORGANS), source="centre", fraction=(1.0, 0.5, 0.5))
    sidecar = derive_dataset(source, tmp_path / "out", middle, SPLITS)
    assert list(sidecar["cases"]) == CASES  # the same place in every case: nothing to jitter
    assert {tuple(entry["start"]) for entry in sidecar["cases"].values()} == {(0, 7, 8)}
    assert {entry["rung"] for entry in sidecar["cases"].values()} == {"centre"}


# --- how much is kept ------------------------------------------------------------------------------------------------


def test_a_region_around_the_organs_keeps_them(source, tmp_path):
    sidecar = derive_dataset(source, tmp_path / "out", region(size_mm=(27.0, 15.0, 15.0)), SPLITS)
    for kept in sidecar["retention"].values():
        assert kept["mean"] >= 0.99
        assert kept["below_99_percent"] == []


def test_a_region_of_10_mm_fails_the_retention_test_and_names_the_cases(source, tmp_path):
    small = region(("Brainstem", "OpticChiasm", "Pituitary"), size_mm=(10.0, 10.0, 10.0))
    retention = derive_dataset(source, tmp_path / "out", small, SPLITS)["retention"]
    assert min(kept["mean"] for kept in retention.values()) < 0.99
    assert retention["Pituitary"]["below_99_percent"] == CASES
    assert retention["Pituitary"]["min"] <= retention["Pituitary"]["mean"]


def test_an_organ_that_no_case_contains_is_said_so_now_and_when_read_again(source, tmp_path):
    for case in CASES:
        path = source / "labelsTr" / f"{case}.nii.gz"
        labels, grid = read_labels(path)
        write_labels(path, np.where(labels == 3, 0, labels), grid)
    written = derive_dataset(source, tmp_path / "out", region(copies=0), SPLITS)
    for sidecar in (written, read_json(tmp_path / "out" / SIDECAR)):
        assert sidecar["retention"]["Pituitary"] == {"mean": None, "min": None, "below_99_percent": []}
        assert retention_lines(sidecar)[1].startswith("Pituitary: no case contains it")
        assert (cut_organs(sidecar), absent_organs(sidecar)) == ([], ["Pituitary"])


def test_an_organ_that_a_case_lacks_does_not_count_against_the_region(source, tmp_path):
    path = source / "labelsTr" / "a.nii.gz"
    labels, grid = read_labels(path)
    labels[labels == 3] = 0
    write_labels(path, labels, grid)
    retention = derive_dataset(source, tmp_path / "out", region(size_mm=(27.0, 15.0, 15.0)), SPLITS)["retention"]
    assert retention["Pituitary"]["min"] == 1.0


# --- where the centre comes from -------------------------------------------------------------------------------------


def test_the_centre_is_the_models_and_not_the_truths(source, model, tmp_path):
    by_truth = derive_dataset(source, tmp_path / "truth", region(copies=0), SPLITS)["cases"]
    by_model = located(source, tmp_path / "model", model, copies=0)["cases"]
    for case in CASES:
        off = np.subtract(by_model[case]["start"], by_truth[case]["start"])
        np.testing.assert_array_equal(off, (1, -2, -3))  # OFF, but the regions lie in LPS: x runs the other way
        assert by_model[case]["rung"] == "located"


def test_the_note_of_a_case_names_the_fold_that_held_it_out(source, model, tmp_path):
    notes = {n: e["locator"] for n, e in located(source, tmp_path / "out", model, copies=0)["cases"].items()}
    assert {case: note["fold"] for case, note in notes.items()} == {"a": 0, "b": 0, "c": 1, "d": 1}
    assert notes["a"]["checkpoint_sha256"] == notes["b"]["checkpoint_sha256"] != notes["c"]["checkpoint_sha256"]


@pytest.mark.parametrize("voxels", [0, 4])
def test_when_the_model_finds_nothing_the_next_model_is_asked(source, model, tmp_path, voxels):
    second = tmp_path / "results" / "Trainer__Plans__3d"
    second.mkdir()
    for file in model.rglob("*"):
        if file.is_file():
            (second / file.relative_to(model)).parent.mkdir(parents=True, exist_ok=True)
            (second / file.relative_to(model)).write_bytes(file.read_bytes())
    labels = np.zeros(SHAPE, np.uint8)
    labels[3, 3, 3 : 3 + voxels] = 1
    overwrite_prediction(model, "b", labels)
    locators = [Locator("2d", model, SPLITS), Locator("3d", second, SPLITS)]
    wanted = region(source="2d", fallback=("3d",), copies=0)
    cases = derive_dataset(source, tmp_path / "out", wanted, SPLITS, locators)["cases"]
    assert [cases[case]["rung"] for case in CASES] == ["located", "fallback:3d", "located", "located"]
    assert cases["b"]["locator"]["model"] == "3d"


def test_two_models_of_one_name_are_refused(source, model, tmp_path):
    wanted = region(source="2d", fallback=("3d",), copies=0)
    with pytest.raises(InputError, match="two locating models are named 2d; give every model once"):
        derive_dataset(source, tmp_path / "out", wanted, SPLITS, [Locator("2d", model, SPLITS)] * 2)
    assert not (tmp_path / "out").exists()


def test_when_no_model_finds_anything_the_usual_place_in_the_body_is_used(source, model, tmp_path):
    overwrite_prediction(model, "b", np.zeros(SHAPE, np.uint8))
    cases = located(source, tmp_path / "out", model, copies=0)["cases"]
    assert cases["b"]["rung"] == "fallback:body"
    assert cases["b"]["locator"] == {}
    truth = np.argwhere(drawn(1)[1] >= 2).mean(axis=0)
    middle = (np.asarray(cases["b"]["start"]) + cases["b"]["stop"]) / 2
    assert np.abs(middle - truth).max() < 6  # the organs move by up to 4 voxels between cases


def test_a_case_that_trained_the_model_which_shall_locate_it_is_named(source, model, tmp_path):
    leaky = [{"train": ["c", "d", "b"], "val": ["a", "b"]}, SPLITS[1]]
    with pytest.raises(InputError, match=r"fold 0 .* trained on its own validation cases: b;"):
        derive_dataset(source, tmp_path / "out", region(source="2d"), SPLITS, [Locator("2d", model, leaky)])
    assert not (tmp_path / "out").exists()


def test_a_case_without_a_held_out_prediction_is_named(source, model, tmp_path):
    (model / "fold_1" / "validation" / "c.nii.gz").unlink()
    with pytest.raises(InputError, match=r"no held-out prediction for 1 cases \(c\)"):
        located(source, tmp_path / "out", model)


def test_a_fold_without_its_final_weights_is_named(source, model, tmp_path):
    (model / "fold_1" / "checkpoint_final.pth").unlink()
    with pytest.raises(InputError, match=r"fold_1/checkpoint_final\.pth is missing"):
        located(source, tmp_path / "out", model)


def test_a_prediction_on_another_grid_is_refused(source, model, tmp_path):
    write_labels(model / "fold_0" / "validation" / "a.nii.gz", predicted(0), Grid(SHAPE, (3.0, 1.0, 1.0)))
    with pytest.raises(InputError, match=r"fold_0/validation/a\.nii\.gz lies on another grid"):
        located(source, tmp_path / "out", model)


def test_a_region_that_names_a_model_is_not_cut_without_it(source, tmp_path):
    with pytest.raises(ValueError, match="got 0 locators"):
        derive_dataset(source, tmp_path / "out", region(source="2d"), SPLITS)


# --- folds and copies ------------------------------------------------------------------------------------------------


def test_folds_are_inherited_and_shifted_copies_only_train(source, model, tmp_path):
    located(source, tmp_path / "out", model, copies=2)
    splits = read_json(tmp_path / "out" / "splits_final.json")
    for derived, original in zip(splits, SPLITS, strict=True):
        assert derived["val"] == original["val"]
        names = {name for case in original["train"] for name in (case, f"{case}_jitter1", f"{case}_jitter2")}
        assert set(derived["train"]) == names
    assert not {n for split in splits for n in split["val"] if "jitter" in n}


def test_shifted_copies_differ_from_each_other_and_from_the_case(source, tmp_path):
    jittered = region(jitter_vox=(2.0, 4.0, 4.0), copies=3)
    cases = derive_dataset(source, tmp_path / "out", jittered, SPLITS)["cases"]
    for case in CASES:
        starts = {tuple(e["start"]) for e in cases.values() if e["case"] == case}
        assert len(starts) == 4


def test_the_same_regions_come_out_again_whatever_the_other_cases_are(source, tmp_path):
    first = derive_dataset(source, tmp_path / "first", region(), SPLITS)
    second = derive_dataset(source, tmp_path / "second", region(), SPLITS)
    assert first == second
    for file in sorted((tmp_path / "first").rglob("*.nii.gz")):
        other = tmp_path / "second" / file.relative_to(tmp_path / "first")
        np.testing.assert_array_equal(read_image(file)[0], read_image(other)[0])
    for file in [*(source / "imagesTr").glob("a_*"), source / "labelsTr" / "a.nii.gz"]:
        file.unlink()
    fewer = derive_dataset(source, tmp_path / "fewer", region(), SPLITS)
    assert fewer["cases"] == {n: e for n, e in first["cases"].items() if e["case"] != "a"}


def test_another_seed_shifts_otherwise(source, tmp_path):
    first = derive_dataset(source, tmp_path / "first", region(seed=1), SPLITS)["cases"]
    second = derive_dataset(source, tmp_path / "second", region(seed=2), SPLITS)["cases"]
    assert [first[c]["start"] for c in CASES] == [second[c]["start"] for c in CASES]
    assert [e["start"] for e in first.values()] != [e["start"] for e in second.values()]


# --- what is refused -------------------------------------------------------------------------------------------------


def test_the_sidecar_is_what_was_returned(source, tmp_path):
    sidecar = derive_dataset(source, tmp_path / "out", region(), SPLITS)
    assert read_json(tmp_path / "out" / SIDECAR) == json.loads(json.dumps(sidecar))
    assert sidecar["source_dataset"] == source.name


def test_a_finished_dataset_is_not_overwritten_and_an_unfinished_one_is_completed(source, tmp_path):
    derive_dataset(source, tmp_path / "out", region(), SPLITS)
    with pytest.raises(InputError, match="exists; choose another number"):
        derive_dataset(source, tmp_path / "out", region(), SPLITS)
    (tmp_path / "out" / "dataset.json").unlink()
    derive_dataset(source, tmp_path / "out", region(), SPLITS)


def test_an_unknown_organ_is_refused_with_those_that_there_are(source, tmp_path):
    with pytest.raises(InputError, match="no organ Lens_L; it has Brainstem, OpticChiasm, Pituitary"):
        derive_dataset(source, tmp_path / "out", region(("Lens_L",)), SPLITS)


def test_labels_that_are_regions_are_refused(source, tmp_path):
    content = read_json(source / "dataset.json")
    content["labels"]["whole"] = [1, 2]
    write_json(source / "dataset.json", content)
    with pytest.raises(InputError, match="labels whole are lists"):
        derive_dataset(source, tmp_path / "out", region(), SPLITS)


def test_a_case_without_an_image_is_named(source, tmp_path):
    for file in (source / "imagesTr").glob("b_*"):
        file.unlink()
    with pytest.raises(InputError, match="no image of case b"):
        derive_dataset(source, tmp_path / "out", region(), SPLITS)


def test_unlisted_numbers_become_background():
    labels = np.array([[[0, 1, 2, 9]]], np.uint16)
    assert renumbered(labels, {2: 1, 9: 2, 40: 3}).tolist() == [[[0, 0, 1, 2]]]


def test_only_the_channels_asked_for_are_cut_and_renumbered(source, tmp_path):
    described = json.loads((source / "dataset.json").read_text())
    described["channel_names"] = {"0": "CT", "1": "MR"}
    (source / "dataset.json").write_text(json.dumps(described))
    for path in sorted((source / "imagesTr").glob("*_0000.nii.gz")):
        image, grid = read_image(path)
        write_image(path.with_name(path.name.replace("_0000", "_0001")), np.full_like(image, 7), grid)
    derive_dataset(source, tmp_path / "out", region(copies=0), SPLITS, channels=["MR"])
    assert json.loads((tmp_path / "out" / "dataset.json").read_text())["channel_names"] == {"0": "MR"}
    files = sorted((tmp_path / "out" / "imagesTr").iterdir())
    assert all(path.name.endswith("_0000.nii.gz") for path in files)
    assert set(np.unique(read_image(files[0])[0])) <= {0.0, 7.0}
    with pytest.raises(InputError, match="no channel PET"):
        derive_dataset(source, tmp_path / "other", region(), SPLITS, channels=["PET"])


def test_a_landmark_place_outside_the_image_is_passed_over(source, tmp_path):
    splits = [{"train": [c for c in CASES if c != case], "val": [case]} for case in CASES]
    folder = tmp_path / "results" / "Trainer__Plans__2d"
    write_json(folder / "dataset.json", {"labels": {"background": 0, **MODEL_ORGANS}})
    for fold, case in enumerate(CASES):
        labels = predicted(fold)
        if case == "a":  # no chiasm; it lies above the pituitary, which is seen in the lowest slices
            labels = np.zeros(SHAPE, np.uint8)
            labels[0:2, 10:13, 10:13] = MODEL_ORGANS["Pituitary"]
        write_labels(folder / f"fold_{fold}" / "validation" / f"{case}.nii.gz", labels, drawn(fold)[2])
        (folder / f"fold_{fold}" / "checkpoint_final.pth").write_text(f"weights of fold {fold}")
    wanted = region(("OpticChiasm",), source="2d", size_mm=(3.0, 1.0, 1.0), copies=2)
    sidecar = derive_dataset(source, tmp_path / "out", wanted, splits, [Locator("2d", folder, splits)])
    entry = sidecar["cases"]["a"]
    assert entry["rung"] == "fallback:body"
    assert entry["refused"]["fallback:landmark"] == "the region there lies outside the image"


def test_a_case_that_shows_no_place_for_the_region_is_named(source, tmp_path, model, monkeypatch):
    monkeypatch.setattr(Region, "is_in", lambda self, grid, located, learned: False)
    with pytest.raises(InputError, match=r"Dataset101_Drawn, case a: no place for the region of .* leave the case out"):
        located(source, tmp_path / "out", model)


# --- either side, landmarks, and proof -------------------------------------------------------------------------------


def as_pair(source: Path) -> None:
    """Call the drawn chiasm and pituitary left and right lens."""
    description = read_json(source / "dataset.json")
    description["labels"] = {"background": 0, "Brainstem": 1, "Lens_L": 2, "Lens_R": 3}
    write_json(source / "dataset.json", description)


def test_either_side_is_a_region_of_its_own_and_the_right_one_is_mirrored(source, tmp_path):
    as_pair(source)
    sidecar = derive_dataset(source, tmp_path / "out", region(("Lens_L", "Lens_R"), copies=1, flip_right=True), SPLITS)
    assert read_json(tmp_path / "out" / "dataset.json")["labels"] == {"background": 0, "Lens": 1}
    assert sorted(sidecar["cases"])[:4] == ["a_L", "a_L_jitter1", "a_R", "a_R_jitter1"]
    for name, number in (("a_L", 2), ("a_R", 3)):
        entry = sidecar["cases"][name]
        truth = canonical(0)[0][tuple(slice(a, b) for a, b in zip(entry["start"], entry["stop"], strict=True))]
        seen = (truth == number)[..., ::-1] if name == "a_R" else truth == number
        np.testing.assert_array_equal(read_labels(tmp_path / "out" / "labelsTr" / f"{name}.nii.gz")[0], seen)
        assert list(entry["kept"]) == [{"a_L": "Lens_L", "a_R": "Lens_R"}[name]]
    assert sidecar["retention"]["Lens_R"]["mean"] == 1.0
    splits = read_json(tmp_path / "out" / "splits_final.json")
    assert splits[0]["val"] == ["a_L", "a_R", "b_L", "b_R"]
    assert "a_L_jitter1" in splits[1]["train"]


def test_an_identity_model_of_both_sides_pasted_back_is_the_truth_bit_by_bit(source, tmp_path):
    as_pair(source)
    sides = region(("Lens_L", "Lens_R"), size_vox=(11, 19, 17), copies=0, flip_right=True)
    sidecar = derive_dataset(source, tmp_path / "out", sides, SPLITS)
    paste_predictions(sidecar, tmp_path / "out" / "labelsTr", source / "labelsTr", tmp_path / "whole")
    for case in CASES:
        truth, _ = read_labels(source / "labelsTr" / f"{case}.nii.gz")
        whole, _ = read_labels(tmp_path / "whole" / f"{case}.nii.gz")
        np.testing.assert_array_equal(whole, np.array([0, 0, 1, 2])[truth])


def test_an_implausible_centre_is_refused_and_the_reason_is_kept(source, model, tmp_path):
    labels = np.zeros(SHAPE, np.uint8)
    labels[0:2, 0:3, 0:3] = 1
    overwrite_prediction(model, "b", labels)
    wanted = region(source="2d", copies=0, plausible_mm=5.0)
    entry = derive_dataset(source, tmp_path / "out", wanted, SPLITS, [Locator("2d", model, SPLITS)])["cases"]["b"]
    assert entry["rung"] == "fallback:body"
    assert "mm from the usual place" in entry["refused"]["located"]


def test_the_usual_place_of_a_case_is_learned_from_the_cases_beside_it_only(source, model, tmp_path):
    overwrite_prediction(model, "b", np.zeros(SHAPE, np.uint8))
    before = located(source, tmp_path / "one", model, copies=0)["cases"]["b"]
    for case in ("a", "b"):  # the truth of b's own fold moves; its regions must not
        path = source / "labelsTr" / f"{case}.nii.gz"
        labels, grid = read_labels(path)
        write_labels(path, np.roll(labels, 3, axis=1), grid)
    after = located(source, tmp_path / "two", model, copies=0)["cases"]["b"]
    assert (before["rung"], before["start"]) == (after["rung"], after["start"])


def test_what_a_training_noted_is_believed_more_than_the_folds(source, model, tmp_path):
    write_json(model / "fold_1" / "cases.json", {"train": ["a", "b", "d"], "val": ["c"]})
    with pytest.raises(InputError, match=r"fold 1 .* trained on its own validation cases: d; train it again"):
        located(source, tmp_path / "out", model)


def test_a_cut_out_copy_of_a_case_counts_as_that_case(source, model, tmp_path):
    write_json(model / "fold_0" / "cases.json", {"train": ["c", "d", "a_jitter1"], "val": ["a", "b"]})
    locator = Locator("2d", model, SPLITS, origins={"a_jitter1": "a"})
    with pytest.raises(InputError, match=r"own validation cases: a;"):
        derive_dataset(source, tmp_path / "out", region(source="2d"), SPLITS, [locator])


def test_margins_that_follow_the_model_are_learned_and_written_down(source, model, tmp_path):
    auto = region(source="2d", size_vox=None, margin_mm="auto", copies=0)
    sidecar = derive_dataset(source, tmp_path / "out", auto, SPLITS, [Locator("2d", model, SPLITS)])
    assert sidecar["learned"]["both"]["margin_mm"] == [10.0, 10.0, 10.0]
    assert sidecar["retention"]["Pituitary"]["mean"] == 1.0
    written = read_json(tmp_path / "out" / "dataset.json")["nnunet_ext"]
    assert written["learned"] == sidecar["learned"]


def test_the_usual_place_in_the_body_can_be_the_region_without_any_model(source, tmp_path):
    sidecar = derive_dataset(source, tmp_path / "out", region(source="body", size_vox=(8, 20, 18), copies=0), SPLITS)
    assert {entry["rung"] for entry in sidecar["cases"].values()} == {"body"}
    assert sidecar["retention"]["Pituitary"]["mean"] == 1.0


def test_what_was_not_contoured_in_a_case_is_not_contoured_in_its_regions(source, tmp_path):
    as_pair(source)
    write_json(source / "present_labels.json", {"a": [1, 3], "b": [1, 2, 3]})
    derive_dataset(source, tmp_path / "out", region(("Lens_R", "Brainstem"), copies=1), SPLITS)
    listed = read_json(tmp_path / "out" / "present_labels.json")
    assert listed == {"a": [1, 2], "a_jitter1": [1, 2], "b": [1, 2], "b_jitter1": [1, 2]}
    both = region(("Lens_L", "Lens_R"), copies=0, flip_right=True)
    derive_dataset(source, tmp_path / "sides", both, SPLITS)
    assert read_json(tmp_path / "sides" / "present_labels.json") == {"a_L": [], "a_R": [1], "b_L": [1], "b_R": [1]}


def test_a_source_without_a_list_of_contoured_organs_gives_none(source, tmp_path):
    derive_dataset(source, tmp_path / "out", region(copies=0), SPLITS)
    assert not (tmp_path / "out" / "present_labels.json").exists()


@pytest.mark.parametrize("sides", [False, True])
def test_what_nobody_judged_stays_the_highest_label_of_the_regions(source, tmp_path, sides):
    described = read_json(source / "dataset.json")
    labels = {"background": 0, "Lens_L": 1, "Lens_R": 2} if sides else {"background": 0, **ORGANS}
    write_json(source / "dataset.json", {**described, "labels": {**labels, "ignore": 3 if sides else 4}})
    for case in CASES:
        path = source / "labelsTr" / f"{case}.nii.gz"
        drawn_labels, grid = read_labels(path)
        drawn_labels[drawn_labels == (3 if sides else 1)] = 3 if sides else 4
        write_labels(path, drawn_labels, grid)
    organs = ("Lens_L", "Lens_R") if sides else ("Pituitary", "OpticChiasm")
    how = {"flip_right": sides, "copies": 1, "size_vox": (12, 30, 30)}
    derive_dataset(source, tmp_path / "out", region(organs, **how), SPLITS)
    ignore = 2 if sides else 3
    assert read_json(tmp_path / "out" / "dataset.json")["labels"]["ignore"] == ignore
    for path in (tmp_path / "out" / "labelsTr").iterdir():
        part, _ = read_labels(path)
        assert (part == ignore).any()
        assert part.max() == ignore


def test_a_dataset_without_an_ignore_label_gets_none(source, tmp_path):
    derive_dataset(source, tmp_path / "out", region(), SPLITS)
    assert "ignore" not in read_json(tmp_path / "out" / "dataset.json")["labels"]


# --- the proof -------------------------------------------------------------------------------------------------------


def test_a_trainer_that_noted_its_cases_proves_them_and_a_stock_one_is_warned_of(source, model, tmp_path):
    for fold, split in enumerate(SPLITS[:1]):
        write_json(model / f"fold_{fold}" / "cases.json", {"train": split["train"], "val": split["val"]})
    warnings = located(source, tmp_path / "out", model)["warnings"]
    assert len(warnings) == 1
    assert warnings[0].startswith("Trainer__Plans__2d, fold 1: out-of-fold not provable, trained by a trainer")
    assert read_json(tmp_path / "out" / SIDECAR)["warnings"] == warnings
    write_json(model / "fold_1" / "cases.json", {"train": SPLITS[1]["train"], "val": SPLITS[1]["val"]})
    assert located(source, tmp_path / "proven", model)["warnings"] == []


def test_folds_that_changed_after_a_stock_training_are_refused(source, model, tmp_path):
    swapped = [{"train": ["b", "d"], "val": ["a", "c"]}, {"train": ["a", "c"], "val": ["b", "d"]}]
    locators = [Locator("2d", model, swapped)]
    with pytest.raises(InputError, match=r"fold_0/validation holds predictions of b, which the fold does not hold out"):
        derive_dataset(source, tmp_path / "out", region(source="2d"), swapped, locators)
    assert not (tmp_path / "out").exists()


def test_regions_without_a_model_have_nothing_to_prove(source, tmp_path):
    assert derive_dataset(source, tmp_path / "out", region(), SPLITS)["warnings"] == []
