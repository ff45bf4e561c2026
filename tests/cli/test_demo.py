from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from nnunet_ext.cli.demo import command
from nnunet_ext.conversion.source import Source
from nnunet_ext.errors import InputError
from nnunet_ext.geometry import Grid
from nnunet_ext.io.nifti import write_image, write_labels
from nnunet_ext.phantom import ORGANS
from nnunet_ext.recipe import demo

GRID = Grid((4, 6, 8), (3.0, 1.0, 1.0))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for i in range(2):
        labels = np.zeros(GRID.shape, np.uint8)
        labels[1:3, 2:4, 2:6] = 4
        write_image(tmp_path / "data" / "images" / f"c{i}.nii.gz", labels * 10 - np.float32(i), GRID)
        write_labels(tmp_path / "data" / "labels" / f"c{i}.nii.gz", labels, GRID)
    return tmp_path / "data"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Source, Path]]:
    """What the demo was asked to run, instead of running it."""
    calls: list[tuple[Source, Path]] = []

    def run(source: Source, output: Path, say: Any) -> None:
        calls.append((source, output))

    monkeypatch.setattr(demo, "run", run)
    return calls


def run(*options: str | Path) -> Result:
    return CliRunner().invoke(command, list(map(str, options)))


def test_without_data_the_phantoms_are_drawn_into_the_output(
    tmp_path: Path, asked: list[tuple[Source, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "TRAINING_PHANTOMS", 1)
    monkeypatch.setattr(demo, "UNSEEN_PHANTOMS", 1)
    assert run("-o", tmp_path / "out").exit_code == 0
    ((source, output),) = asked
    assert (output, source.folder) == (tmp_path / "out", tmp_path / "out" / "phantoms")
    assert [case.identifier for case in source.cases] == ["phantom_000", "phantom_001"]
    assert source.organs == ORGANS


def test_own_data_are_read_where_they_lie_and_no_phantom_is_drawn(
    tmp_path: Path, data: Path, asked: list[tuple[Source, Path]]
) -> None:
    assert (
        run("-o", tmp_path / "out", "--data", data, "--labels", "Brainstem=4", "--ignore-labels", "5,6").exit_code == 0
    )
    ((source, _),) = asked
    assert (source.folder, source.organs) == (data, {"Brainstem": 1})
    assert source.values == {0: 0, 4: 1, 5: 0, 6: 0}
    assert not (tmp_path / "out").exists()


def test_own_data_need_the_names_of_their_labels(data: Path, asked: list[tuple[Source, Path]]) -> None:
    result = run("--data", data)
    assert (result.exit_code, asked) == (2, [])
    assert "--data needs --labels" in result.output


def test_a_folder_that_does_not_exist_is_a_usage_error(tmp_path: Path, asked: list[tuple[Source, Path]]) -> None:
    assert run("--data", tmp_path / "missing", "--labels", "A=1").exit_code == 2
    assert asked == []


def test_labels_that_are_not_understood_are_an_input_error(data: Path, asked: list[tuple[Source, Path]]) -> None:
    result = run("--data", data, "--labels", "Brainstem:4")
    assert isinstance(result.exception, InputError)
    assert "Organ=number" in str(result.exception)
    assert asked == []


def test_too_few_cases_are_an_input_error_before_anything_is_trained(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", "elsewhere")  # the demo sets its own; put back afterwards
    monkeypatch.setenv("nnUNet_def_n_proc", "1")
    result = run("-o", tmp_path / "out", "--data", data, "--labels", "Brainstem=4")
    assert isinstance(result.exception, InputError)
    assert "holds 2 labelled cases; the demo needs at least 6" in str(result.exception)
