"""The pipeline around the networks, with a model that reads the labels off the image: everything must be exact."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from nnunet_ext.errors import BusyError, InputError
from nnunet_ext.geometry import Box, Grid, grid_difference
from nnunet_ext.io.nifti import read_labels, write_image, write_labels
from nnunet_ext.io.orientation import to_lps
from nnunet_ext.recipe.composed import Composed, needed_models
from tests.recipe.drawn import (
    GRIDS,
    ORGANS,
    SHAPE,
    SPACING_MM,
    FakeModel,
    composed,
    failure,
    image_of,
    nothing,
    only_brainstem,
    patient,
    run,
    stored,
    threshold,
    write_cases,
)


@pytest.mark.parametrize("matrix", GRIDS.values(), ids=GRIDS.keys())
def test_an_identity_model_gives_the_labels_back_bit_by_bit_whatever_the_orientation(
    matrix: NDArray[np.floating],
) -> None:
    labels, grid = stored(patient(), matrix)
    found, report = composed().predict(image_of(labels)[None], grid)
    np.testing.assert_array_equal(found, labels)
    assert found.shape == grid.shape
    assert report["regions"]["small"]["rung"] == "located"
    assert (report["missing_organs"], report["warnings"], report["contested_voxels"]) == ([], [], {})
    assert all(side["judged"] and side["plausible"] for side in report["laterality"])


def test_the_drawn_orientations_are_different_and_hold_the_same_patient() -> None:
    arrays = [stored(patient(), matrix) for matrix in GRIDS.values()]
    assert len({array.tobytes() + bytes(array.shape) for array, _ in arrays}) == 4
    for array, grid in arrays:
        np.testing.assert_array_equal(to_lps(array, grid)[0], patient())


@pytest.mark.parametrize("shape", [(7, 13, 19), (5, 40, 21), (21, 15, 17)])
@pytest.mark.parametrize("spacing", [(3.0, 1.0, 1.0), (1.5, 0.7, 0.9), (0.8, 2.5, 2.5)])
def test_odd_and_anisotropic_grids_come_back_exactly(
    shape: tuple[int, int, int], spacing: tuple[float, float, float]
) -> None:
    labels = patient(shape, (1, 3, 8))
    found, _ = composed().predict(image_of(labels)[None], Grid(shape, spacing))
    np.testing.assert_array_equal(found, labels)


@pytest.mark.parametrize("corner", [(0, 0, 0), (6, 16, 8), (0, 16, 8)])
def test_a_region_at_the_border_is_padded_and_loses_nothing(corner: tuple[int, int, int]) -> None:
    labels = patient(corner=corner)
    model = composed()
    found, report = model.predict(image_of(labels)[None], Grid(SHAPE, SPACING_MM))
    np.testing.assert_array_equal(found, labels)
    region = report["regions"]["small"]
    assert min(region["start"]) < 0 or any(b > n for b, n in zip(region["stop"], SHAPE, strict=True))
    assert model.models["small"].seen == [(1, 5, 7, 9)]  # type: ignore[attr-defined]


def test_outside_the_image_the_region_model_sees_air_and_zero_in_other_channels() -> None:
    seen: list[NDArray[np.float32]] = []

    def remember(images: NDArray[np.float32]) -> NDArray[np.integer]:
        seen.append(images)
        return only_brainstem(images)

    labels = patient(corner=(0, 0, 0))
    images = np.stack([image_of(labels), np.full(SHAPE, 7, np.float32)])
    model = composed(channels=("CT", "MR"), small=FakeModel(remember, {"Brainstem": 1}))
    model.predict(images, Grid(SHAPE, SPACING_MM))
    assert (seen[0][0, 0, 0, 0], seen[0][1, 0, 0, 0]) == (-1024, 0)
    assert set(np.unique(seen[0][1])) == {0, 7}


def test_a_model_sees_only_the_channels_that_it_was_trained_on() -> None:
    labels = patient()
    images = np.stack([image_of(labels), np.full(SHAPE, 7, np.float32)])
    mr = FakeModel(
        lambda seen: np.full(seen.shape[1:], int((seen == 7).all()), np.uint8), {"Brainstem": 1}, channels=["MR"]
    )
    model = composed(channels=("CT", "MR"), **{"2d": FakeModel(channels=["CT"])}, small=mr)
    _, report = model.predict(images, Grid(SHAPE, SPACING_MM))
    assert model.models["2d"].seen == [(1, *SHAPE)]  # type: ignore[attr-defined]
    assert report["volumes_ml"]["Brainstem"] > 0


def test_a_contour_at_the_border_of_the_image_is_not_called_cut_off() -> None:
    labels = patient(corner=(0, 0, 0))
    _, report = composed().predict(image_of(labels)[None], Grid(SHAPE, SPACING_MM))
    assert not report["regions"]["small"]["touches_border"]


def test_an_image_more_than_twenty_degrees_oblique_is_reported() -> None:
    direction = tuple(Rotation.from_euler("z", 30, degrees=True).as_matrix().ravel().tolist())
    _, report = composed().predict(image_of(patient())[None], Grid(SHAPE, SPACING_MM, direction=direction))
    assert any("30° oblique" in line for line in report["warnings"])


def test_a_contour_at_the_edge_of_its_region_makes_it_grow_and_is_reported() -> None:
    labels = patient()
    found, report = composed(size_vox=(3, 3, 3)).predict(image_of(labels)[None], Grid(SHAPE, SPACING_MM))
    np.testing.assert_array_equal(found, labels)
    assert report["regions"]["small"]["grown"] == 1
    assert "region of small: enlarged 1 times, a contour touched its border" in report["warnings"]


def test_an_organ_that_the_locator_misses_is_found_by_the_next_model_and_reported() -> None:
    labels = patient()
    blind = FakeModel(lambda images: np.where(threshold(images) == 1, 0, threshold(images)))
    found, report = composed(**{"2d": blind}).predict(image_of(labels)[None], Grid(SHAPE, SPACING_MM))
    np.testing.assert_array_equal(found, labels)
    assert report["regions"]["small"]["rung"] == "fallback:3d"
    assert any(line.startswith("region of small: organ not found, fallback:3d (") for line in report["warnings"])


def test_an_organ_that_no_locator_finds_is_looked_for_at_its_usual_place_in_the_body() -> None:
    labels = patient()
    model = composed(**{"2d": FakeModel(nothing), "3d": FakeModel(nothing)})
    found, report = model.predict(image_of(labels)[None], Grid(SHAPE, SPACING_MM))
    region = report["regions"]["small"]
    assert region["rung"] == "fallback:body"
    middle = [(a + b) / 2 for a, b in zip(region["start"], region["stop"], strict=True)]
    assert middle == pytest.approx([n / 2 for n in SHAPE], abs=1.0)
    assert (found == 1).any()
    assert report["missing_organs"] == ["Parotid_L", "Parotid_R"]
    assert any("fallback:body" in line for line in report["warnings"])


def test_a_speck_is_no_organ_and_does_not_move_the_region() -> None:
    def speck(images: NDArray[np.float32]) -> NDArray[np.integer]:
        labels = nothing(images)
        labels[0, 0, :4] = ORGANS["Brainstem"]
        return labels

    model = composed(**{"2d": FakeModel(speck)})
    assert (
        model.predict(image_of(patient())[None], Grid(SHAPE, SPACING_MM))[1]["regions"]["small"]["rung"]
        == "fallback:3d"
    )


def test_swapped_sides_are_reported_and_not_corrected() -> None:
    def swapped(images: NDArray[np.float32]) -> NDArray[np.integer]:
        return np.array([0, 1, 3, 2], np.uint8)[threshold(images)]

    labels = patient()
    found, report = composed(**{"2d": FakeModel(swapped)}).predict(image_of(labels)[None], Grid(SHAPE, SPACING_MM))
    np.testing.assert_array_equal(found, np.array([0, 1, 3, 2], np.uint8)[labels])
    (side,) = report["laterality"]
    assert (side["left"], side["right"], side["judged"], side["plausible"]) == (2, 3, True, False)
    assert side["left_x_mm"] < side["right_x_mm"]
    assert report["warnings"] == ["Parotid_L and Parotid_R lie on each other's side"]


def test_a_voxel_size_far_from_the_training_is_reported() -> None:
    model = composed(**{"3d": FakeModel(median_mm=(3.0, 0.2, 0.2))})
    report = model.predict(image_of(patient())[None], Grid(SHAPE, SPACING_MM))[1]
    assert report["warnings"] == ["voxel size far from what 3d was trained on"]


def test_only_models_that_own_or_locate_are_run_and_locators_come_first() -> None:
    recipe = composed().recipe
    assert needed_models(recipe, ["3d"]) == ["3d"]
    assert needed_models(recipe, ["small"]) == ["2d", "3d", "small"]


# --- folders ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    return write_cases(tmp_path)


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("good_*")}


def test_every_case_comes_out_on_the_grid_of_its_input(folders: tuple[Path, Path]) -> None:
    said = run(folders)
    source, output = folders
    assert [line.split(":")[0] for line in said] == [f"[{i}/3] good_{i - 1}" for i in (1, 2, 3)]
    for i in range(3):
        labels, grid = read_labels(output / f"good_{i}.nii.gz")
        truth, expected = read_labels(source.parent / "truth" / f"good_{i}.nii.gz")
        np.testing.assert_array_equal(labels, truth)
        assert grid_difference(grid, expected, tolerance_vox=1e-5) is None
    assert json.loads((output / "dataset.json").read_text())["labels"] == {"background": 0, **ORGANS}


def test_the_report_of_a_case_says_who_owned_what_where_it_looked_and_what_it_is_made_from(
    folders: tuple[Path, Path],
) -> None:
    run(folders)
    report = json.loads((folders[1] / "good_0.json").read_text())
    assert report["case"] == "good_0"
    assert report["organs"] == list(ORGANS)
    assert report["owner"] == {"Brainstem": "small", "Parotid_L": "2d", "Parotid_R": "2d"}
    assert report["regions"] == {
        "small": {
            "rung": "located",
            **report_box((3, 8, 12), (5, 7, 9)),
            "refused": {},
            "grown": 0,
            "touches_border": [],
            "organs": {"Brainstem": "region"},
            "left_out_voxels": {},
            "disagreements": {},
            "models_apart_mm": 0.0,
        }
    }
    assert [(s["left"], s["right"], s["plausible"]) for s in report["laterality"]] == [(2, 3, True)]
    assert report["volumes_ml"] == {"Brainstem": 0.144, "Parotid_L": 0.216, "Parotid_R": 0.162}
    assert set(report["stages"]) == {"2d", "3d", "small", "fusion"}  # nothing to preprocess: no stage
    assert all(stage["seconds"] >= 0 for stage in report["stages"].values())
    assert {len(report["models"]), len(report["inputs"][0]), len(report["output_sha256"])} == {64}
    assert (report["repairs"], report["warnings"], report["missing_organs"]) == ([], [], [])


def report_box(corner: tuple[int, int, int], shape: tuple[int, int, int]) -> dict[str, list[int]]:
    z, y, x = corner
    box = Box.around((z + 1, y + 1.5, x + 1.5), shape)
    return {"start": list(box.start), "stop": list(box.stop)}


def test_padding_below_air_is_repaired_and_recorded(folders: tuple[Path, Path]) -> None:
    labels = patient()
    image = image_of(labels)
    image[0, 0] = -3024
    write_image(folders[0] / "good_0_0000.nii.gz", image, Grid(SHAPE, SPACING_MM))
    run(folders)
    (repair,) = json.loads((folders[1] / "good_0.json").read_text())["repairs"]
    assert repair == "31 voxels below -1024 HU (lowest -3024) clipped to -1024"


def test_a_second_run_keeps_what_is_finished(folders: tuple[Path, Path]) -> None:
    run(folders)
    before = times(folders[1])
    said = run(folders)
    assert [line.partition(": ")[2] for line in said] == ["done before, kept"] * 3
    assert times(folders[1]) == before


def test_a_changed_image_is_done_again_and_the_others_are_kept(folders: tuple[Path, Path]) -> None:
    run(folders)
    before = times(folders[1])
    labels = patient(corner=(2, 9, 13))
    write_image(folders[0] / "good_0_0000.nii.gz", image_of(labels), Grid(SHAPE, SPACING_MM))
    said = run(folders)
    assert sum("kept" in line for line in said) == 2
    assert {name for name, t in times(folders[1]).items() if t != before[name]} == {"good_0.nii.gz", "good_0.json"}
    np.testing.assert_array_equal(read_labels(folders[1] / "good_0.nii.gz")[0], labels)


def test_other_models_do_every_case_again(folders: tuple[Path, Path]) -> None:
    run(folders)
    said = run(folders, composed(**{"3d": FakeModel(digest="4567")}))
    assert not any("kept" in line for line in said)


@pytest.mark.parametrize("digest", ["0123", "4567"])
def test_a_contour_that_was_corrected_by_hand_is_kept_and_its_case_fails(
    folders: tuple[Path, Path], digest: str
) -> None:
    model = composed(**{"3d": FakeModel(digest=digest)})
    run(folders)
    path = folders[1] / "good_1.nii.gz"
    labels, grid = read_labels(path)
    labels[0, 0, :7] = 2
    write_labels(path, labels, grid)
    message = failure(folders, model)
    assert message.splitlines()[1:] == [
        f"  good_1: {path} was changed after nnunet-ext wrote it, and is kept; to contour the case anew, move it and "
        "good_1.json elsewhere."
    ]
    np.testing.assert_array_equal(read_labels(path)[0], labels)
    assert len(times(folders[1])) == 6
    for name in ("good_1.nii.gz", "good_1.json"):
        (folders[1] / name).unlink()
    assert "kept" not in run(folders, model)[1]


def test_a_corrected_contour_is_kept_where_its_image_is_broken_now(folders: tuple[Path, Path]) -> None:
    run(folders)
    (folders[1] / "good_1.nii.gz").write_bytes(b"corrected")
    (folders[0] / "good_1_0000.nii.gz").write_bytes(b"broken")
    assert "good_1" in failure(folders)
    assert (folders[1] / "good_1.nii.gz").read_bytes() == b"corrected"


def test_a_contour_that_is_corrected_while_its_case_is_predicted_is_kept(folders: tuple[Path, Path]) -> None:
    run(folders)

    def correct(images: NDArray[np.float32]) -> NDArray[np.integer]:
        (folders[1] / "good_1.nii.gz").write_bytes(b"corrected")
        return threshold(images)

    assert "good_1.nii.gz was changed after" in failure(folders, composed(**{"2d": FakeModel(correct, digest="4567")}))
    assert (folders[1] / "good_1.nii.gz").read_bytes() == b"corrected"


@pytest.mark.parametrize("content", [None, "", "{}", '{"case": '])
@pytest.mark.parametrize("image", ["good", "broken"])
def test_a_map_that_no_report_vouches_for_is_never_replaced_or_removed(
    folders: tuple[Path, Path], content: str | None, image: str
) -> None:
    run(folders)
    (folders[1] / "good_1.nii.gz").write_bytes(b"of somebody else")
    (folders[1] / "good_1.json").unlink()
    if content is not None:
        (folders[1] / "good_1.json").write_text(content)
    if image == "broken":
        (folders[0] / "good_1_0000.nii.gz").write_bytes(b"xx")
    message = failure(folders)
    assert f"good_1: {folders[1] / 'good_1.nii.gz'} was not written by nnunet-ext" in message
    assert "good_0" not in message
    assert (folders[1] / "good_1.nii.gz").read_bytes() == b"of somebody else"


def test_another_recipe_may_not_write_into_the_same_folder(folders: tuple[Path, Path]) -> None:
    run(folders)
    before = content_of(folders[1])
    model = composed()
    model.recipe = model.recipe.model_copy(update={"name": "other"})
    with pytest.raises(InputError, match=r"OUT holds contours of recipe drawn, not of recipe other; choose another"):
        run(folders, model)
    assert content_of(folders[1]) == before


def test_other_numbers_and_fewer_organs_may_not_be_written_into_the_same_folder(folders: tuple[Path, Path]) -> None:
    run(folders)
    before = content_of(folders[1])
    table = composed().table
    swapped = {"Parotid_R": 1, "Parotid_L": 2, "Brainstem": 3}
    for other, named in (
        (replace(table, organs=swapped), "Brainstem, Parotid_R"),
        (table.only(["Parotid_L"]), "Brainstem, Parotid_R"),
    ):
        with pytest.raises(InputError, match=rf"recipe drawn with other organs or numbers \({named}\)"):
            run(folders, replace(composed(), table=other))
    assert content_of(folders[1]) == before


@pytest.mark.parametrize("name", ["labelsTr", "IN"])
def test_contours_are_not_written_among_files_of_others(folders: tuple[Path, Path], name: str) -> None:
    output = folders[0].parent / name
    if name == "labelsTr":
        (folders[0].parent / "truth").rename(output)
    before = content_of(output)
    with pytest.raises(
        InputError, match=r"labelsTr holds good_0\.nii\.gz, .* and no dataset\.json|IN is also an input"
    ):
        run((folders[0], output))
    assert content_of(output) == before


def test_the_dataset_json_of_a_dataset_is_not_overwritten(folders: tuple[Path, Path]) -> None:
    folders[1].mkdir()
    (folders[1] / "dataset.json").write_text('{"labels": {"background": 0, "Brainstem": 1}}')
    with pytest.raises(InputError, match="OUT holds contours of another program, not of recipe drawn"):
        run(folders)
    assert [path.name for path in folders[1].iterdir()] == ["dataset.json"]


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_kept_case_repeats_its_warnings(folders: tuple[Path, Path]) -> None:
    model = composed(**{"3d": FakeModel(median_mm=(3.0, 0.2, 0.2))})
    first, second = run(folders, model), run(folders, model)
    warning = "voxel size far from what 3d was trained on"
    assert warning in first[0]
    assert second[0] == f"[1/3] good_0: done before, kept; {warning}"


def test_an_image_that_is_a_link_to_nothing_fails_its_case(folders: tuple[Path, Path]) -> None:
    (folders[0] / "good_1_0000.nii.gz").unlink()
    (folders[0] / "good_1_0000.nii.gz").symlink_to("nowhere.nii.gz")
    message = failure(folders)
    assert message.splitlines()[1:] == [
        f"  good_1: {folders[0] / 'good_1_0000.nii.gz'} is missing; restore it, or what it is a link to."
    ]


def test_bad_cases_are_named_with_their_cause_and_the_good_ones_come_out(folders: tuple[Path, Path]) -> None:
    source, output = folders
    grid = Grid(SHAPE, SPACING_MM)
    image = image_of(patient())
    write_image(source / "cut_0000.nii.gz", image, grid)
    content = (source / "cut_0000.nii.gz").read_bytes()
    (source / "cut_0000.nii.gz").write_bytes(content[: len(content) // 2])
    image[4, 5, 6] = np.nan
    write_image(source / "nan_0000.nii.gz", image, grid)
    write_image(source / "flat_0000.nii.gz", np.full(SHAPE, 40, np.float32), grid)
    (source / "plain.nii").write_bytes(b"")
    message = failure(folders)
    assert message.startswith("4 inputs failed, 6 cases were tried:\n")
    causes = dict(line.strip().split(": ", 1) for line in message.splitlines()[1:])
    assert set(causes) == {"cut", "nan", "flat", "plain.nii"}
    for name, cause in {"cut": "truncated", "nan": "1 NaN", "flat": "constant", "plain.nii": "rename"}.items():
        assert cause in causes[name]
    names = {f"good_{i}{ending}" for i in range(3) for ending in (".nii.gz", ".json")}
    assert {path.name for path in output.iterdir()} == names | {"dataset.json", ".lock"}


def test_a_missing_channel_fails_its_case_and_is_never_filled_in(folders: tuple[Path, Path]) -> None:
    model = composed(channels=("CT", "MR"))
    shutil.copy(folders[0] / "good_0_0000.nii.gz", folders[0] / "good_0_0001.nii.gz")
    message = failure(folders, model)
    assert "case good_1 lacks channel MR (good_1_0001.nii.gz)" in message
    assert "good_0" not in message
    assert sorted(times(folders[1])) == ["good_0.json", "good_0.nii.gz"]


def test_an_earlier_contour_of_a_case_that_now_fails_is_removed(folders: tuple[Path, Path]) -> None:
    source, output = folders
    run(folders)
    path = source / "good_1_0000.nii.gz"
    path.write_bytes(path.read_bytes()[:-40])
    assert "good_1" in failure(folders)
    assert sorted(p.name for p in output.glob("good_*.nii.gz")) == ["good_0.nii.gz", "good_2.nii.gz"]
    assert not (output / "good_1.json").exists()


def test_channels_on_different_grids_fail_their_case(folders: tuple[Path, Path]) -> None:
    labels = patient()
    write_image(folders[0] / "good_0_0001.nii.gz", image_of(labels), Grid(SHAPE, (3.0, 1.0, 1.1)))
    message = failure(folders, composed(channels=("CT", "MR")))
    assert "good_0_0001.nii.gz lies on another grid than good_0_0000.nii.gz: corners up to" in message


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), ValueError("strange"), MemoryError()])
def test_a_case_that_a_model_cannot_digest_does_not_take_the_others_with_it(
    folders: tuple[Path, Path], error: Exception
) -> None:
    calls: list[int] = []

    def fails_once(images: NDArray[np.float32]) -> NDArray[np.integer]:
        calls.append(1)
        if len(calls) == 1:
            raise error
        return threshold(images)

    message = failure(folders, composed(**{"2d": FakeModel(fails_once)}))
    assert f"good_0: {error or 'MemoryError'}" in message
    assert sorted(times(folders[1])) == ["good_1.json", "good_1.nii.gz", "good_2.json", "good_2.nii.gz"]


def test_a_full_disk_ends_the_run_with_its_own_code(folders: tuple[Path, Path]) -> None:
    def full(images: NDArray[np.float32]) -> NDArray[np.integer]:
        raise BusyError("no space left")

    with pytest.raises(BusyError):
        run(folders, composed(**{"2d": FakeModel(full)}))


def test_a_folder_without_images_leaves_no_output(tmp_path: Path) -> None:
    (tmp_path / "IN").mkdir()
    with pytest.raises(InputError, match="holds no images"):
        run((tmp_path / "IN", tmp_path / "OUT"))
    assert not (tmp_path / "OUT").exists()


def test_a_second_process_on_the_same_output_is_turned_away(folders: tuple[Path, Path]) -> None:
    output = folders[1]
    output.mkdir()
    ready, go = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover (another process)
        with (output / ".lock").open("w") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            os.write(ready[1], b"x")
            os.read(go[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    try:
        with pytest.raises(BusyError) as caught:
            run(folders)
        assert caught.value.exit_code == 75
        assert [path.name for path in output.iterdir()] == [".lock"]
    finally:
        os.write(go[1], b"x")
        os.waitpid(child, 0)
        for end in (*ready, *go):
            os.close(end)
    assert len(run(folders)) == 3


def test_an_untrained_recipe_says_what_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    with pytest.raises(InputError, match=r"recipes/drawn/fusion\.json is missing; run `nnunet-ext train`"):
        Composed.load(composed().recipe)
