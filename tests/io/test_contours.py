"""What a folder of contours takes, keeps and refuses; killed runs are in tests/recipe/test_streaming.py."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from nnunet_ext.errors import BusyError, InputError
from nnunet_ext.geometry import Grid
from nnunet_ext.io.atomic import sha256_of
from nnunet_ext.io.contours import contour_folder, earlier_report, withdraw_contour, write_contour
from nnunet_ext.io.nifti import read_labels

GRID = Grid((2, 3, 4), (3.0, 1.0, 1.0))
ONES = np.ones(GRID.shape, np.uint8)
ORGANS = {"Eye_L": 1, "Eye_R": 2}


def open_and_close(folder: Path, organs: Mapping[str, int] = ORGANS, **made_by: str) -> None:
    with contour_folder(folder, organs, made_by or {"recipe": "drawn", "models": "0123"}, ("CT",)):
        pass


def test_the_folder_says_whose_it_is_and_what_its_numbers_mean(tmp_path: Path) -> None:
    open_and_close(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "dataset.json").read_text()) == {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "Eye_L": 1, "Eye_R": 2},
        "file_ending": ".nii.gz",
        "nnunet_ext": {"recipe": "drawn", "models": "0123"},
    }


def test_the_folder_is_locked_while_it_is_open(tmp_path: Path) -> None:
    with contour_folder(tmp_path, ORGANS, {"recipe": "drawn"}), pytest.raises(BusyError):
        open_and_close(tmp_path)


def test_the_same_maker_may_come_again_with_other_models(tmp_path: Path) -> None:
    open_and_close(tmp_path)
    open_and_close(tmp_path, recipe="drawn", models="4567")
    assert json.loads((tmp_path / "dataset.json").read_text())["nnunet_ext"]["models"] == "4567"


@pytest.mark.parametrize("labels", [None, [], "Eye_L", {"Eye_L": [1, 2]}])
def test_a_damaged_page_of_the_same_maker_is_another_one(tmp_path: Path, labels: object) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels, "nnunet_ext": {"recipe": "drawn"}}))
    with pytest.raises(InputError, match="contours of recipe drawn with other organs or numbers"):
        open_and_close(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"nnunet_ext": {}}', '{"nnunet_ext": ["recipe", "drawn"]}'])
def test_a_page_that_names_no_maker_is_of_another_program(tmp_path: Path, content: str) -> None:
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(InputError, match="contours of another program, not of recipe drawn"):
        open_and_close(tmp_path)
    assert (tmp_path / "dataset.json").read_text() == content


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".part-x.nii.gz").write_bytes(b"half")
    open_and_close(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "dataset.json"]


def test_a_contour_comes_with_the_report_that_vouches_for_it_and_goes_with_it(tmp_path: Path) -> None:
    write_contour(tmp_path, "a", ONES, GRID, {"warnings": []})
    report = earlier_report(tmp_path, "a")
    assert report == {"case": "a", "output_sha256": sha256_of(tmp_path / "a.nii.gz"), "warnings": []}
    write_contour(tmp_path, "a", 2 * ONES, GRID, {"warnings": ["b"]})
    assert read_labels(tmp_path / "a.nii.gz")[0].max() == 2
    assert earlier_report(tmp_path, "a")["warnings"] == ["b"]
    withdraw_contour(tmp_path, "a")
    assert (list(tmp_path.iterdir()), earlier_report(tmp_path, "a")) == ([], {})


def test_a_report_whose_map_was_deleted_vouches_for_nothing_and_may_be_replaced(tmp_path: Path) -> None:
    write_contour(tmp_path, "a", ONES, GRID, {})
    (tmp_path / "a.nii.gz").unlink()
    assert earlier_report(tmp_path, "a") == {}
    write_contour(tmp_path, "a", ONES, GRID, {})
    assert earlier_report(tmp_path, "a")


@pytest.mark.parametrize("name", ["a.nii.gz", "a.json"])
def test_files_of_others_are_neither_replaced_nor_removed(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"{}")
    for work in (lambda: write_contour(tmp_path, "a", ONES, GRID, {}), lambda: withdraw_contour(tmp_path, "a")):
        with pytest.raises(InputError, match=rf"{name} was not written by nnunet-ext"):
            work()
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_bytes() == b"{}"


def test_a_case_that_is_called_like_the_page_of_the_folder_does_not_overwrite_it(tmp_path: Path) -> None:
    open_and_close(tmp_path)
    with pytest.raises(InputError, match=r"dataset\.json was not written by"):
        write_contour(tmp_path, "dataset", ONES, GRID, {})
    assert "labels" in json.loads((tmp_path / "dataset.json").read_text())
