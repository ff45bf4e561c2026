from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from nnunet_ext.errors import BusyError, CasesFailedError, InputError
from nnunet_ext.fusion.folder import fuse_folders, inputs_from_arguments
from nnunet_ext.fusion.rules import FusionTable
from nnunet_ext.geometry import Grid, grid_difference
from nnunet_ext.io.lock import locked
from nnunet_ext.io.nifti import read_labels, write_labels

GRID = Grid((4, 8, 10), (3.0, 1.0, 1.0), (5.0, -7.0, 30.0), (0.0, -1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0))
TABLE = FusionTable(
    organs={"Eye_L": 1, "Eye_R": 2},
    owner={"Eye_L": "2d", "Eye_R": "3d"},
    models={"2d": {"Eye_L": 1, "Eye_R": 2}, "3d": {"Eye_L": 1, "Eye_R": 2}, "spare": {"Eye_L": 1}},
    priority=["Eye_L", "Eye_R"],
)
Inputs = dict[str, Path]


def labels(model: str) -> NDArray[np.uint8]:
    drawn = np.zeros(GRID.shape, dtype=np.uint8)
    if model == "2d":
        drawn[1:3, 1:5, 2:5] = 1
    else:
        drawn[1:3, 4:8, 2:5] = 2
    return drawn


@pytest.fixture
def inputs(tmp_path: Path) -> Inputs:
    folders = {model: tmp_path / model for model in ("2d", "3d")}
    for model, folder in folders.items():
        for case in ("a", "b", "c"):
            write_labels(folder / f"{case}.nii.gz", labels(model), GRID)
    return folders


def test_fused_maps_lie_on_the_grid_of_the_inputs(inputs: Inputs, tmp_path: Path) -> None:
    result = fuse_folders(inputs, TABLE, tmp_path / "out", quiet=True)
    fused, grid = read_labels(tmp_path / "out" / "b.nii.gz")
    np.testing.assert_array_equal(fused, np.where(labels("2d"), 1, labels("3d")))
    assert grid_difference(grid, GRID) is None
    assert list(result.cases) == ["a", "b", "c"]


def test_the_report_names_contested_voxels_and_the_sides(inputs: Inputs, tmp_path: Path) -> None:
    fuse_folders(inputs, TABLE, tmp_path / "out", quiet=True)
    report = json.loads((tmp_path / "out" / "fusion_report.json").read_text())
    # the array's y axis runs along -x of the patient: the eye at smaller y lies on the patient's left
    assert report["cases"]["a"] == {"contested": {"Eye_L|Eye_R": 6}, "laterality": {"Eye_L|Eye_R": "plausible"}}
    assert report["table"] == TABLE.as_dict()
    assert report["failed"] == {}


def test_a_bad_grid_a_missing_case_and_a_damaged_file_are_isolated(inputs: Inputs, tmp_path: Path) -> None:
    write_labels(inputs["3d"] / "a.nii.gz", labels("3d"), Grid(GRID.shape, GRID.spacing_mm))
    (inputs["2d"] / "b.nii.gz").unlink()
    write_labels(inputs["2d"] / "d.nii.gz", labels("2d"), GRID)
    (inputs["3d"] / "d.nii.gz").write_bytes((inputs["3d"] / "c.nii.gz").read_bytes()[:50])
    with pytest.raises(CasesFailedError, match="3 of 4 cases failed") as caught:
        fuse_folders(inputs, TABLE, tmp_path / "out", quiet=True)
    assert caught.value.exit_code == 3
    message = str(caught.value)
    assert str(inputs["2d"] / "a.nii.gz") in message
    assert str(inputs["3d"] / "a.nii.gz") in message
    assert "b: no label map of 2d" in message
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        ".lock", "c.json", "c.nii.gz", "dataset.json", "fusion_report.json",
    ]  # fmt: skip


def test_an_earlier_map_of_a_case_that_now_fails_is_removed_and_the_others_are_fused_again(
    inputs: Inputs, tmp_path: Path
) -> None:
    fuse_folders(inputs, TABLE, tmp_path / "out", quiet=True)
    (inputs["3d"] / "a.nii.gz").write_bytes(b"bad")
    write_labels(inputs["2d"] / "b.nii.gz", 0 * labels("2d"), GRID)
    with pytest.raises(CasesFailedError, match="1 of 3 cases failed"):
        fuse_folders(inputs, TABLE, tmp_path / "out", quiet=True)
    assert sorted(path.name for path in (tmp_path / "out").glob("*.nii.gz")) == ["b.nii.gz", "c.nii.gz"]
    assert not (tmp_path / "out" / "a.json").exists()
    np.testing.assert_array_equal(read_labels(tmp_path / "out" / "b.nii.gz")[0], labels("3d"))


def test_a_fused_map_that_was_corrected_by_hand_is_kept_and_its_case_fails(inputs: Inputs, tmp_path: Path) -> None:
    fuse_folders(inputs, TABLE, tmp_path / "out", quiet=True)
    write_labels(tmp_path / "out" / "a.nii.gz", labels("2d"), GRID)
    with pytest.raises(CasesFailedError, match=r"1 of 3 cases failed.*/a\.nii\.gz was changed after"):
        fuse_folders(inputs, TABLE, tmp_path / "out", quiet=True)
    np.testing.assert_array_equal(read_labels(tmp_path / "out" / "a.nii.gz")[0], labels("2d"))


def test_the_fused_folder_names_its_organs_and_takes_no_other_numbers_or_owners(inputs: Inputs, tmp_path: Path) -> None:
    fuse_folders(inputs, TABLE, tmp_path / "out", quiet=True)
    page = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert page["labels"] == {"background": 0, "Eye_L": 1, "Eye_R": 2}
    assert page["nnunet_ext"] == {"fusion": "2d, 3d"}
    renumbered = replace(TABLE, organs={"Eye_L": 2, "Eye_R": 1})
    alone = replace(TABLE, owner={"Eye_L": "2d", "Eye_R": "2d"})
    for table, message in ((renumbered, "other organs or numbers"), (alone, "fusion 2d, 3d, not of fusion 2d;")):
        with pytest.raises(InputError, match=message):
            fuse_folders(inputs, table, tmp_path / "out", quiet=True)


def test_a_second_fusion_into_the_same_folder_is_turned_away(inputs: Inputs, tmp_path: Path) -> None:
    with locked(tmp_path / "out" / ".lock"), pytest.raises(BusyError, match="another process works in"):
        fuse_folders(inputs, TABLE, tmp_path / "out", quiet=True)


def test_models_that_own_nothing_are_not_needed(inputs: Inputs, tmp_path: Path) -> None:
    fuse_folders({**inputs, "spare": tmp_path / "nowhere"}, TABLE, tmp_path / "out", quiet=True)
    assert (tmp_path / "out" / "a.nii.gz").is_file()


def test_a_missing_owner_and_an_unknown_model_are_refused(inputs: Inputs, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"unknown \['4d'\], missing \['3d'\]"):
        fuse_folders({"2d": inputs["2d"], "4d": inputs["3d"]}, TABLE, tmp_path / "out", quiet=True)
    assert not (tmp_path / "out").exists()


def test_an_input_is_not_overwritten(inputs: Inputs) -> None:
    with pytest.raises(InputError, match="is also an input"):
        fuse_folders(inputs, TABLE, inputs["2d"], quiet=True)


def with_probabilities(inputs: Inputs, left: float, right: float) -> FusionTable:
    for model, label, value in (("2d", 1, left), ("3d", 2, right)):
        channels = np.zeros((3, *GRID.shape), dtype=np.float32)
        channels[label] = value
        for case in "abc":
            np.savez_compressed(inputs[model] / f"{case}.npz", probabilities=channels)
    return FusionTable(TABLE.organs, TABLE.owner, TABLE.models, TABLE.priority, "probability")


def test_probabilities_of_nnunet_decide_where_the_table_says_so(inputs: Inputs, tmp_path: Path) -> None:
    table = with_probabilities(inputs, left=0.6, right=0.9)
    result = fuse_folders(inputs, table, tmp_path / "out", quiet=True)
    assert result.cases["a"]["contested"] == {"Eye_R|Eye_L": 6}


def test_a_missing_or_too_small_npz_is_named(inputs: Inputs, tmp_path: Path) -> None:
    table = with_probabilities(inputs, left=0.6, right=0.9)
    (inputs["2d"] / "a.npz").unlink()
    np.savez(inputs["2d"] / "b.npz", softmax=np.zeros(1))
    np.savez(inputs["3d"] / "c.npz", probabilities=np.zeros((2, *GRID.shape)))
    with pytest.raises(CasesFailedError) as caught:
        fuse_folders(inputs, table, tmp_path / "out", quiet=True)
    for expected in ("--save_probabilities", "['softmax']", "2 channels, the table needs label 2"):
        assert expected in str(caught.value)


@pytest.mark.parametrize("left", [0.0, 0.5])
def test_a_cut_npz_fails_its_case_alone(inputs: Inputs, tmp_path: Path, left: float) -> None:
    table = with_probabilities(inputs, left=0.6, right=0.9)
    path = inputs["2d"] / "a.npz"
    path.write_bytes(path.read_bytes()[: int(left * path.stat().st_size)])
    with pytest.raises(CasesFailedError, match=rf"1 of 3 cases failed, the others are done. a: {path} is truncated"):
        fuse_folders(inputs, table, tmp_path / "out", quiet=True)


@pytest.mark.parametrize("arguments", [["2d=P", "3d=Q", "spare=R"], ["P", "Q", "R"]])
def test_inputs_are_named_or_in_the_order_of_the_models(arguments: list[str]) -> None:
    expected = {"2d": Path("P"), "3d": Path("Q"), "spare": Path("R")}
    assert inputs_from_arguments(arguments, TABLE) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["P", "Q"], "2 folders for the 3 models"), (["2d=P", "Q"], "all inputs as"), (["2d=P", "2d=Q"], "given twice")],
)
def test_unclear_inputs_are_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        inputs_from_arguments(arguments, TABLE)
