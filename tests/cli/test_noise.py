from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from nnunet_ext.cli.noise import command
from nnunet_ext.errors import InputError
from nnunet_ext.geometry import Grid
from nnunet_ext.io.nifti import read_labels, write_image, write_labels

GRID = Grid((8, 12, 16), (3.0, 1.0, 1.0))
CASES = ("a", "b", "c", "d")


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """nnUNet_raw with dataset 301: four cases, two folds."""
    for name in ("raw", "preprocessed", "results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    dataset = tmp_path / "raw" / "Dataset301_Clean"
    labels = np.zeros(GRID.shape, np.uint8)
    labels[2:6, 3:9, 4:12] = 1
    for case in CASES:
        write_image(dataset / "imagesTr" / f"{case}_0000.nii.gz", np.zeros(GRID.shape, np.float32), GRID)
        write_labels(dataset / "labelsTr" / f"{case}.nii.gz", labels, GRID)
    content = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "Heart": 1}, "file_ending": ".nii.gz"}
    (dataset / "dataset.json").write_text(json.dumps({**content, "numTraining": 4}))
    splits = [{"train": ["a", "b"], "val": ["c", "d"]}, {"train": ["c", "d"], "val": ["a", "b"]}]
    (dataset / "splits_final.json").write_text(json.dumps(splits))
    return tmp_path / "raw"


def run(*options: str) -> Result:
    return CliRunner().invoke(command, ["-d", "301", "-o", "302", "--quiet", *options])


def refusal(result: Result) -> str:
    assert isinstance(result.exception, InputError), result.output
    assert result.exception.exit_code == 2
    return str(result.exception)


def test_half_of_the_cases_are_corrupted_and_the_true_contours_are_named(raw: Path) -> None:
    result = CliRunner().invoke(command, ["-d", "301", "-o", "302", "--ratio", "0.5", "--voxels", "1", "2"])
    assert result.exit_code == 0, result.exception
    assert "2 of 4 training cases corrupted by 1 to 2 voxels" in result.output
    assert result.stdout.splitlines()[-1] == (
        f"written: {raw / 'Dataset302_CleanNoisy'}; true contours: {raw / 'Dataset301_Clean' / 'labelsTr'}; "
        "next: nnunet-ext plan -d 302"
    )
    content = json.loads((raw / "Dataset302_CleanNoisy" / "noise.json").read_text())
    assert sum(entry is not None for entry in content["cases"].values()) == 2


def test_a_fold_keeps_its_validation_cases_clean(raw: Path) -> None:
    assert run("--ratio", "1", "--mm", "1", "2", "--fold", "1").exit_code == 0
    content = json.loads((raw / "Dataset302_CleanNoisy" / "noise.json").read_text())
    assert [case for case, entry in content["cases"].items() if entry] == ["c", "d"]
    assert content["unit"] == "mm"


def test_in_plane_keeps_the_slices(raw: Path) -> None:
    assert run("--ratio", "1", "--voxels", "1", "1", "--axes", "in-plane", "--name", "Flat").exit_code == 0
    for case in CASES:
        labels, _ = read_labels(raw / "Dataset302_Flat" / "labelsTr" / f"{case}.nii.gz")
        assert np.flatnonzero(labels.any(axis=(1, 2))).tolist() == [2, 3, 4, 5]


@pytest.mark.parametrize("options", [(), ("--voxels", "1", "2", "--mm", "1", "2")])
def test_one_unit_must_be_given(raw: Path, options: tuple[str, ...]) -> None:
    assert run("--ratio", "1", *options).exit_code == 2


@pytest.mark.parametrize(
    ("options", "named"),
    [(("--voxels", "1", "2", "--seed", "-1"), "seed of the noise is -1"), (("--mm", "5", "inf"), "5 to inf mm"),
     (("--mm", "nan", "nan"), "nan to nan mm")],
)  # fmt: skip
def test_what_cannot_be_drawn_is_refused(raw: Path, options: tuple[str, ...], named: str) -> None:
    assert named in refusal(run("--ratio", "1", *options))
    assert not (raw / "Dataset302_CleanNoisy").exists()


def test_a_missing_fold_is_refused(raw: Path) -> None:
    assert "2 folds" in refusal(run("--ratio", "1", "--voxels", "1", "2", "--fold", "2"))


def test_a_number_that_is_known_under_another_name_is_refused(raw: Path) -> None:
    (raw.parent / "results" / "Dataset302_Other").mkdir()
    assert "Dataset302_Other" in refusal(run("--ratio", "1", "--voxels", "1", "2"))


def test_preprocessed_data_of_other_noise_are_named(raw: Path) -> None:
    (raw.parent / "preprocessed" / "Dataset302_CleanNoisy").mkdir()
    result = run("--ratio", "1", "--voxels", "1", "2")
    assert "Dataset302_CleanNoisy was made from an earlier dataset of this name; delete it" in result.stderr


def test_a_missing_dataset_is_refused(raw: Path) -> None:
    result = CliRunner().invoke(command, ["-d", "300", "-o", "302", "--ratio", "1", "--voxels", "1", "2"])
    assert "0 datasets with the number 300" in refusal(result)


def test_copies_of_the_dataset_that_is_replaced_are_named(raw: Path) -> None:
    assert run("--ratio", "1", "--voxels", "1", "2").exit_code == 0
    assert "WARNING" not in run("--ratio", "1", "--voxels", "1", "2", "--overwrite").stderr
    (raw / "Dataset302_CleanNoisy").rename(raw / "Dataset303_CleanNoisy")
    (raw / "Dataset301_Clean").rename(raw / "Dataset300_Other")  # written over by noise from another dataset
    shutil.copytree(raw / "Dataset300_Other", raw / "Dataset301_Clean")
    options = ["-d", "300", "-o", "301", "--ratio", "1", "--voxels", "1", "2", "--overwrite", "--quiet"]
    result = CliRunner().invoke(command, options)
    assert result.exit_code == 0, result.exception
    assert "WARNING Dataset303_CleanNoisy links to the images of Dataset301_Clean" in result.stderr
