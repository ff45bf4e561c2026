from __future__ import annotations

import json
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
