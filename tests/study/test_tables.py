from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest

from nnunet_ext.study.page import Level, Row
from nnunet_ext.study.tables import WEIGHTS_FILE, Cell, table_of, weight_rows, write_table, write_weights
from nnunet_ext.study.world import Run
from nnunet_ext.training.quality_journal import CASES_CSV

ROW = Row(level=Level(voxels=(5, 13)), ratio=0.5)
STRUCTURES = ["lung", "heart"]


def run(method: str = "plain", seed: int = 1, row: Row = ROW) -> Run:
    return Run(row, method, seed, "Dataset002_Drawn", "nnUNetTrainerExt", "2d", 0)


def scores(lung: float | None, heart: float | None) -> dict[str, dict[str, float | None]]:
    return {"a": {"lung": lung, "heart": heart}, "b": {"lung": 0.5, "heart": None}}


def test_a_cell_is_the_mean_over_seeds_of_the_mean_over_cases() -> None:
    runs = [run(seed=1), run(seed=2)]
    found = {1: scores(0.7, 0.8), 2: scores(0.9, 0.6)}
    cells = table_of(runs, lambda r: found[r.seed], STRUCTURES)["5-13 voxels", 0.5, "plain"]
    assert cells["lung"].mean == pytest.approx((0.6 + 0.7) / 2)
    assert cells["lung"].sd == pytest.approx(0.1 / math.sqrt(2))
    assert cells["heart"].mean == pytest.approx(0.7)  # only case a has one
    assert cells["mean"].mean == pytest.approx((0.7 + 0.65) / 2)
    assert cells["mean"].seeds == 2


def test_unfinished_runs_and_structures_in_no_case_are_left_out() -> None:
    runs = [run(seed=1), run(seed=2), run("oracle")]
    table = table_of(runs, lambda r: scores(0.7, None) if r.seed == 1 and r.method == "plain" else None, STRUCTURES)
    cells = table["5-13 voxels", 0.5, "plain"]
    assert (cells["lung"].seeds, cells["heart"].seeds) == (1, 0)
    assert str(cells["heart"]) == str(table["5-13 voxels", 0.5, "oracle"]["mean"]) == "–"


@pytest.mark.parametrize(
    ("cell", "text"), [(Cell(0.9124, 0.0041, 3), "0.912 ± 0.004"), (Cell(0.9124, math.nan, 1), "0.912")]
)
def test_a_single_seed_has_no_spread(cell: Cell, text: str) -> None:
    assert str(cell) == text


def test_both_forms_of_the_table_are_written(tmp_path: Path) -> None:
    table = table_of([run(row=Row()), run()], lambda r: scores(0.7, 0.8), STRUCTURES)
    write_table(tmp_path, table, STRUCTURES, "A study.")
    with (tmp_path / "table.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert rows[0] == {
        "level": "none", "ratio": "0", "method": "plain", "structure": "lung", "dsc": "0.6000", "sd": "", "seeds": "1",
    }  # fmt: skip
    assert len(rows) == 6
    text = (tmp_path / "table.md").read_text()
    assert text.startswith("A study.\n")
    assert "| noise | cases | method | lung | heart | mean | seeds |" in text
    assert "| 5-13 voxels | 50 % | plain | 0.600 | 0.800 | 0.700 | 1 |" in text


def test_weights_are_means_over_samples_by_kind_of_noise(tmp_path: Path) -> None:
    (tmp_path / "quality_weights.csv").write_text(
        "epoch,case,samples,weight,score,driver\n"
        "0,a,1,2.0,0,0\n0,b,3,1.0,0,0\n0,c,2,0.5,0,0\n"
        "1,a,1,1.5,0,0\n1,d,4,0.25,0,0\n"
    )
    noise = {"cases": {"a": None, "b": None, "c": {"direction": "erode"}, "d": {"direction": "dilate"}}}
    rows = weight_rows(run("qam"), tmp_path, noise)
    assert rows == [
        ["5-13 voxels", "0.5", "qam", 1, 0, "1.2500", "0.5000", ""],
        ["5-13 voxels", "0.5", "qam", 1, 1, "1.5000", "", "0.2500"],
    ]
    write_weights(tmp_path, rows)
    first = (tmp_path / "weights.csv").read_text().splitlines()[0]
    assert first == "level,ratio,method,seed,epoch,clean,eroded,dilated"


def test_the_file_of_weights_is_the_one_that_the_trainer_writes() -> None:
    assert WEIGHTS_FILE == CASES_CSV  # not imported from there, because that imports torch


def test_a_run_without_weights_has_no_rows(tmp_path: Path) -> None:
    assert weight_rows(run(), tmp_path, {}) == []


def test_all_cases_are_clean_without_noise(tmp_path: Path) -> None:
    (tmp_path / "quality_weights.csv").write_text("epoch,case,samples,weight,score,driver\n0,a,1,2.0,0,0\n")
    assert weight_rows(run(row=Row()), tmp_path, {})[0][-3:] == ["2.0000", "", ""]
