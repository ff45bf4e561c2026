from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from nnunet_ext.cli.evaluate import command
from nnunet_ext.errors import CasesFailedError, InputError
from nnunet_ext.geometry import Grid
from nnunet_ext.io.nifti import write_labels

GRID = Grid((4, 8, 8), (3.0, 1.0, 1.0))


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """raw/{dataset.json, labelsTr}, predictions and other, one case with a 2 × 3 × 3 organ."""
    labels = np.zeros(GRID.shape, dtype=np.uint8)
    labels[1:3, 2:5, 2:5] = 1
    write_labels(tmp_path / "raw" / "labelsTr" / "case.nii.gz", labels, GRID)
    write_labels(tmp_path / "predictions" / "case.nii.gz", labels, GRID)
    write_labels(tmp_path / "other" / "case.nii.gz", np.roll(labels, 1, axis=2), GRID)
    (tmp_path / "raw" / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "Brainstem": 1}}))
    return tmp_path


def run(dataset: Path, *options: str) -> Result:
    folders = ["-p", dataset / "predictions", "-r", dataset / "raw" / "labelsTr", "-o", dataset / "out"]
    return CliRunner().invoke(command, [*map(str, folders), "--quiet", *options])


def test_the_table_is_printed_and_the_files_are_written(dataset: Path) -> None:
    result = run(dataset)
    assert result.exit_code == 0, result.output
    assert "Brainstem" in result.output
    assert "HD95: 95th percentile" in result.output
    assert (dataset / "out" / "metrics.csv").is_file()


def test_present_labels_beside_the_dataset_json_are_used(dataset: Path) -> None:
    (dataset / "raw" / "present_labels.json").write_text(json.dumps({"case": []}))
    run(dataset)
    assert "case,1,Brainstem,not_contoured,,,," in (dataset / "out" / "metrics.csv").read_text()


def test_another_dataset_json_can_be_given(dataset: Path) -> None:
    path = dataset / "mine.json"
    path.write_text(json.dumps({"labels": {"background": 0, "Cord": 1}}))
    assert "Cord" in run(dataset, "-djfile", str(path)).output


def test_two_predictions_are_compared(dataset: Path) -> None:
    result = run(dataset, "--compare", str(dataset / "other"))
    assert result.exit_code == 0, result.output
    assert "Wilcoxon" in result.output
    assert (dataset / "out" / "comparison.txt").is_file()


def test_a_bad_case_ends_with_exit_code_3_after_the_table(dataset: Path) -> None:
    (dataset / "predictions" / "case.nii.gz").write_bytes(b"no image")
    result = run(dataset)
    assert isinstance(result.exception, CasesFailedError)
    assert "Failed, case" in result.output


def test_no_dataset_json_is_an_input_error(dataset: Path) -> None:
    (dataset / "raw" / "dataset.json").unlink()
    assert isinstance(run(dataset).exception, InputError)


def test_the_verb_exits_with_our_code_and_one_sentence(dataset: Path) -> None:
    (dataset / "raw" / "dataset.json").unlink()
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "nnunet_ext.cli",
            "evaluate",
            "-p",
            "predictions",
            "-r",
            "raw/labelsTr",
            "-o",
            "out",
        ],
        cwd=dataset,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("nnunet-ext: no dataset.json in")
    assert not (dataset / "out").exists()


def test_the_module_loads_neither_torch_nor_numpy() -> None:
    code = "import sys, nnunet_ext.cli.evaluate; print([m for m in ('numpy', 'torch') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_the_whole_verb_loads_neither_torch_nor_the_statistics(dataset: Path) -> None:
    code = (
        "import sys; from click.testing import CliRunner; from nnunet_ext.cli.evaluate import command; "
        "o = ['-p', 'predictions', '-r', 'raw/labelsTr', '-o', 'out', '--quiet']; "
        "r = CliRunner().invoke(command, o); "
        "print(r.exit_code, [m for m in ('torch', 'nnunetv2', 'scipy.stats', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=dataset, capture_output=True, text=True)
    assert done.stdout == "0 []\n", done.stderr


def test_maps_that_number_an_organ_differently_are_refused_and_never_scored(dataset: Path) -> None:
    page = {"labels": {"background": 0, "Cord": 1, "Brainstem": 2}}
    (dataset / "predictions" / "dataset.json").write_text(json.dumps(page))
    result = run(dataset)
    assert isinstance(result.exception, InputError)
    assert "number Brainstem differently" in str(result.exception)
    assert not (dataset / "out").exists()


def test_maps_that_number_the_organs_alike_are_scored(dataset: Path) -> None:
    page = {"labels": {"background": 0, "Brainstem": 1, "Cord": 2}}
    (dataset / "predictions" / "dataset.json").write_text(json.dumps(page))
    assert run(dataset).exit_code == 0


def test_inner_organs_of_the_dataset_json_are_judged_with_the_organ_around_them(dataset: Path) -> None:
    page = {
        "labels": {"background": 0, "Eye_L": 1, "Lens_L": 2},
        "nnunet_ext": {"contains": {"Eye_L": ["Lens_L"]}},
    }
    (dataset / "raw" / "dataset.json").write_text(json.dumps(page))
    (dataset / "predictions" / "dataset.json").write_text(json.dumps({"labels": page["labels"]}))
    drawn = np.zeros(GRID.shape, dtype=np.uint8)
    drawn[1:3, 2:5, 2:5] = 1
    drawn[1, 2, 2] = 2
    write_labels(dataset / "predictions" / "case.nii.gz", drawn, GRID)
    for options in ((), ("--compare", str(dataset / "other"))):
        result = run(dataset, *options)
        assert result.exit_code == 0, result.output
        assert "Eye_L is judged together with Lens_L" in result.output
        assert "case,1,Eye_L,scored,1,0,0,0" in (dataset / "out" / "metrics.csv").read_text()


@pytest.mark.parametrize(
    ("listed", "named"),
    [
        ({"case": [1, 33]}, "label 33 in case"),
        ({"case": [-1]}, "label -1 in case"),
        ({"case": [True]}, "must map each case"),
    ],
)
@pytest.mark.parametrize("place", ["raw", "elsewhere"])
def test_a_wrong_list_of_contoured_labels_hides_no_contour(
    dataset: Path, place: str, listed: object, named: str
) -> None:
    path = dataset / place / "present_labels.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(listed))
    result = run(dataset, *(() if place == "raw" else ("--present", str(path))))
    assert isinstance(result.exception, InputError)
    assert named in str(result.exception)
    assert str(path) in str(result.exception)
    assert not (dataset / "out").exists()


def test_a_misspelt_case_hides_no_contour(dataset: Path) -> None:
    (dataset / "raw" / "present_labels.json").write_text(json.dumps({"cose": []}))
    said = str(run(dataset).exception)
    assert f"{dataset / 'raw' / 'present_labels.json'} lists cose, but the dataset has no such case" in said
    assert not (dataset / "out").exists()


def test_a_list_of_more_cases_than_are_judged_is_a_warning_where_there_is_no_whole_dataset(dataset: Path) -> None:
    (dataset / "cohort.json").write_text(json.dumps({"case": [], "of_another_hospital": [1]}))
    result = run(dataset, "--present", str(dataset / "cohort.json"))
    assert result.exit_code == 0, result.output
    assert "cohort.json lists of_another_hospital, of which no map is here" in warnings(result)[0]
    assert "case,1,Brainstem,not_contoured" in (dataset / "out" / "metrics.csv").read_text()


def test_every_case_of_the_dataset_may_be_listed(dataset: Path) -> None:
    (dataset / "raw" / "labelsTs").mkdir()
    for folder in ("raw/labelsTs", "predictions"):
        shutil.copy(dataset / "raw" / "labelsTr" / "case.nii.gz", dataset / folder / "new.nii.gz")
    (dataset / "raw" / "present_labels.json").write_text(json.dumps({"case": [], "new": [1]}))
    for folder, status in (("labelsTs", "new,1,Brainstem,scored"), ("labelsTr", "case,1,Brainstem,not_contoured")):
        result = run(dataset, "-r", str(dataset / "raw" / folder))
        assert result.exit_code == 0, result.output
        assert status in (dataset / "out" / "metrics.csv").read_text()


def test_other_organs_of_the_dataset_may_be_listed_where_only_some_are_judged(dataset: Path) -> None:
    page = {"labels": {"background": 0, "Brainstem": 1, "Cord": 2}}
    (dataset / "raw" / "dataset.json").write_text(json.dumps(page))
    (dataset / "raw" / "present_labels.json").write_text(json.dumps({"case": [1, 2]}))
    (dataset / "mine.json").write_text(json.dumps({"labels": {"background": 0, "Brainstem": 1}}))
    listed = str(dataset / "raw" / "present_labels.json")
    assert run(dataset, "-djfile", str(dataset / "mine.json"), "--present", listed).exit_code == 0


def warnings(result: Result) -> list[str]:
    return [line for line in result.stderr.splitlines() if line.startswith("WARNING")]


def test_references_with_planted_noise_are_a_warning_that_names_the_true_ones(dataset: Path) -> None:
    entries = {"source": "Dataset700_Clean", "cases": {"case": {"direction": "erode"}}}
    (dataset / "raw" / "noise.json").write_text(json.dumps(entries))
    warned = warnings(run(dataset))
    assert len(warned) == 1
    assert "1 of 1 cases were corrupted on purpose (case)" in warned[0]
    assert "Dataset700_Clean" in warned[0]
    (dataset / "raw" / "labelsTr").rename(dataset / "raw" / "labelsTs")
    result = run(dataset, "-r", str(dataset / "raw" / "labelsTs"))
    assert (result.exit_code, warnings(result)) == (0, [])


def test_a_damaged_list_of_noise_ends_before_anything_is_written(dataset: Path) -> None:
    (dataset / "raw" / "noise.json").write_text("[]")
    assert "noise.json has no" in str(run(dataset).exception)
    assert not (dataset / "out").exists()


def test_overlaps_that_no_exported_map_can_hold_are_a_warning_for_every_folder_that_lacks_them(dataset: Path) -> None:
    page = {"labels": {"background": 0, "Lung_L": [1, 3], "Heart": [2, 3]}, "regions_class_order": [1, 2]}
    (dataset / "raw" / "dataset.json").write_text(json.dumps(page))
    assert warnings(run(dataset)) == []
    drawn = np.zeros(GRID.shape, dtype=np.uint8)
    drawn[1:3, 2:5, 2:5], drawn[1, 2, 2] = 1, 3
    write_labels(dataset / "raw" / "labelsTr" / "case.nii.gz", drawn, GRID)
    warned = warnings(run(dataset, "--compare", str(dataset / "other")))
    assert [str(dataset / name) in line for name, line in zip(("predictions", "other"), warned, strict=True)] == [
        True
    ] * 2
    assert "(label 3)" in warned[0]
    write_labels(dataset / "predictions" / "case.nii.gz", drawn, GRID)  # from probabilities
    assert warnings(run(dataset)) == []
