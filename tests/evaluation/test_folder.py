from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from nnunet_ext.errors import CasesFailedError, InputError
from nnunet_ext.evaluation.comparison import compare_folders
from nnunet_ext.evaluation.folder import evaluate_folder, label_files
from nnunet_ext.geometry import Grid
from nnunet_ext.io.nifti import write_labels

GRID = Grid((6, 12, 12), (3.0, 1.0, 1.0))
ORGANS = {"Eye_L": 1, "Eye_R": 2}


def labels(shift: int = 0) -> NDArray[np.uint8]:
    drawn = np.zeros(GRID.shape, dtype=np.uint8)
    drawn[1:5, 2:6, 1 + shift : 4 + shift] = 1
    drawn[1:5, 2:6, 7:10] = 2
    return drawn


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path, Path]:
    predictions, references = tmp_path / "predictions", tmp_path / "references"
    for case in ("a", "b", "c"):
        write_labels(predictions / f"{case}.nii.gz", labels(shift=1), GRID)
        write_labels(references / f"{case}.nii.gz", labels(), GRID)
    return predictions, references, tmp_path / "out"


def test_every_case_and_organ_gets_a_row_in_every_file(folders: tuple[Path, Path, Path]) -> None:
    result = evaluate_folder(*folders, ORGANS, quiet=True)
    rows = list(csv.DictReader((folders[2] / "metrics.csv").read_text().splitlines()))
    assert [(row["case"], row["organ"]) for row in rows] == [(c, o) for c in "abc" for o in ORGANS]
    assert float(rows[0]["dsc"]) == pytest.approx(2 / 3, abs=1e-5)
    assert float(rows[1]["dsc"]) == 1.0
    assert json.loads((folders[2] / "metrics.json").read_text())["cases"]["a"][0]["organ"] == "Eye_L"
    assert (folders[2] / "table.txt").read_text() == result.text()
    assert sorted(path.name for path in folders[2].iterdir()) == ["metrics.csv", "metrics.json", "table.txt"]


def test_organs_that_nobody_drew_are_left_out(folders: tuple[Path, Path, Path]) -> None:
    result = evaluate_folder(*folders, ORGANS, {"a": [1]}, quiet=True)
    assert [score.status for score in result.scores["a"]] == ["scored", "not_contoured"]
    assert [score.status for score in result.scores["b"]] == ["scored", "scored"]


def test_cases_in_one_folder_only_are_named(folders: tuple[Path, Path, Path]) -> None:
    predictions, references, output = folders
    (predictions / "a.nii.gz").unlink()
    (references / "b.nii.gz").unlink()
    evaluate_folder(*folders, ORGANS, quiet=True)
    text = (output / "table.txt").read_text()
    assert "prediction without reference: b." in text
    assert "reference without prediction: a." in text


def test_a_bad_grid_and_a_damaged_file_are_isolated_with_exit_code_3(
    folders: tuple[Path, Path, Path],
) -> None:
    predictions, references, output = folders
    write_labels(predictions / "a.nii.gz", labels(), Grid(GRID.shape, (2.5, 1.0, 1.0)))
    whole = (predictions / "b.nii.gz").read_bytes()
    (predictions / "b.nii.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CasesFailedError, match="2 of 3 cases failed") as caught:
        evaluate_folder(*folders, ORGANS, quiet=True)
    assert caught.value.exit_code == 3
    for path in (predictions / "a.nii.gz", references / "a.nii.gz", predictions / "b.nii.gz"):
        assert str(path) in str(caught.value)
    assert {row["case"] for row in csv.DictReader((output / "metrics.csv").read_text().splitlines())} == {"c"}
    assert sorted(json.loads((output / "metrics.json").read_text())["failed"]) == ["a", "b"]


def test_folders_without_a_common_case_are_refused(folders: tuple[Path, Path, Path]) -> None:
    for case in "abc":
        (folders[0] / f"{case}.nii.gz").rename(folders[0] / f"{case}_0000.nii.gz")
    with pytest.raises(InputError, match="no case in common"):
        evaluate_folder(*folders, ORGANS, quiet=True)
    assert not folders[2].exists()


def test_a_missing_or_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a folder"):
        label_files(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"holds no \.nii\.gz"):
        label_files(tmp_path)


def test_half_written_files_of_another_process_are_no_cases(folders: tuple[Path, Path, Path]) -> None:
    (folders[0] / ".part-x.nii.gz").write_bytes(b"")
    assert list(label_files(folders[0])) == ["a", "b", "c"]


def test_a_positive_difference_speaks_for_the_predictions(folders: tuple[Path, Path, Path], tmp_path: Path) -> None:
    predictions, references, output = folders
    other = tmp_path / "other"
    for case in "abc":
        write_labels(other / f"{case}.nii.gz", labels(shift=2), GRID)
    first, second, text = compare_folders(predictions, other, references, output, ORGANS, quiet=True)
    assert (len(first.scores), len(second.scores)) == (3, 3)
    eye = next(line for line in text.splitlines() if line.startswith("Eye_L")).split()
    assert float(eye[4]) == pytest.approx(1 / 3, abs=1e-4)
    assert (output / "comparison.txt").read_text() == text
    assert (output / "compared" / "metrics.csv").is_file()


def test_organs_inside_another_are_counted_with_it_and_the_report_says_so(tmp_path: Path) -> None:
    predictions, references, output = (tmp_path / name for name in ("predictions", "references", "out"))
    drawn = labels()
    predicted = drawn.copy()
    drawn[1:5, 2:6, 1] = 3  # the lens is a third of the eye: 16 of 48 voxels
    predicted[1:5, 2:6, 3] = 3
    write_labels(references / "a.nii.gz", drawn, GRID)
    write_labels(predictions / "a.nii.gz", predicted, GRID)
    organs, contains = {**ORGANS, "Lens_L": 3}, {"Eye_L": ("Lens_L",)}
    alone = evaluate_folder(predictions, references, output, organs, quiet=True)
    assert [row.dsc for row in alone.scores["a"]] == [0.5, 1.0, 0.0]
    assert "judged together" not in (output / "table.txt").read_text()
    result = evaluate_folder(predictions, references, output, organs, contains=contains, quiet=True)
    assert [row.dsc for row in result.scores["a"]] == [1.0, 1.0, 0.0]
    sentence = "Eye_L is judged together with Lens_L, inside it, in both maps."
    assert sentence in (output / "table.txt").read_text()
    assert sentence in json.loads((output / "metrics.json").read_text())["definitions"]
    *_, text = compare_folders(predictions, references, references, output, organs, contains=contains, quiet=True)
    assert sentence in text
