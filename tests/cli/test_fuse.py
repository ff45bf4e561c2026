from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from nnunet_ext import cli
from nnunet_ext.cli.fuse import command
from nnunet_ext.errors import InputError
from nnunet_ext.fusion.rules import FusionTable
from nnunet_ext.geometry import Grid
from nnunet_ext.io.nifti import read_labels, write_labels

GRID = Grid((4, 8, 8), (3.0, 1.0, 1.0))
TABLE = FusionTable(
    organs={"A": 1, "B": 2},
    owner={"A": "2d", "B": "3d"},
    models={"2d": {"A": 1, "B": 2}, "3d": {"A": 1, "B": 2}},
    priority=["A", "B"],
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """P (2d) says A, Q (3d) says B, both at voxel (1, 2, 3); fusion.json beside them."""
    for name, label in (("P", 1), ("Q", 2)):
        labels = np.zeros(GRID.shape, dtype=np.uint8)
        labels[1, 2, 3] = label
        write_labels(tmp_path / name / "case.nii.gz", labels, GRID)
    TABLE.save(tmp_path / "fusion.json")
    return tmp_path


@pytest.mark.parametrize(
    "inputs", [["-i", "{0}/P", "{0}/Q"], ["-i", "{0}/P", "-i", "{0}/Q"], ["-i", "3d={0}/Q", "-i", "2d={0}/P"]]
)
def test_folders_are_fused_however_they_are_given(folder: Path, inputs: list[str]) -> None:
    arguments = [text.format(folder) for text in inputs]
    options = ["--table", str(folder / "fusion.json"), "-o", str(folder / "out"), "--quiet"]
    result = CliRunner().invoke(command, [*arguments, *options])
    assert result.exit_code == 0, result.output
    assert "1 cases fused, 1 contested voxels" in result.output
    assert read_labels(folder / "out" / "case.nii.gz")[0][1, 2, 3] == 1


def test_a_bad_table_ends_with_exit_code_2_and_one_sentence(folder: Path) -> None:
    page = json.loads((folder / "fusion.json").read_text())
    page["priority"] = ["A"]
    (folder / "fusion.json").write_text(json.dumps(page))
    result = CliRunner().invoke(command, ["-i", "P", "-i", "Q", "--table", str(folder / "fusion.json"), "-o", "out"])
    assert isinstance(result.exception, InputError)
    assert "missing ['B']" in str(result.exception)


@pytest.mark.parametrize(
    ("verb", "message"),
    [
        (["fuse", "-i", "P", "Q", "--table", "fusion.json", "-o", "file"], "Directory 'file' is a file."),
        (["predict", "drawn", "-i", "P", "-o", "file"], "Directory 'file' is a file."),
        (["evaluate", "-p", "P", "-r", "P", "-djfile", "dataset.json", "-o", "file"],
         "nnunet-ext: file cannot be used (File exists); check the path, its rights and its disk."),
        (["fuse", "-i", "P", "Q", "--table", "fusion.json", "-o", "file/below"],
         "nnunet-ext: file/below cannot be used (Not a directory); check the path, its rights and its disk."),
    ],
)  # fmt: skip
def test_a_file_where_a_folder_should_be_written_ends_with_exit_code_2_and_one_sentence(
    folder: Path, verb: list[str], message: str
) -> None:
    (folder / "file").write_text("kept")
    (folder / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "A": 1, "B": 2}}))
    done = subprocess.run(
        [sys.executable, "-m", "nnunet_ext.cli", *verb], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert (folder / "file").read_text() == "kept"


@pytest.mark.parametrize(("code", "exit_code"), [(errno.ENOSPC, 75), (errno.EACCES, 2)])
def test_an_error_of_the_file_system_is_one_sentence_and_one_of_ours_stays_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: int, exit_code: int
) -> None:
    def fail(error: Exception) -> None:
        raise error

    monkeypatch.setattr(cli, "cli", lambda prog_name: fail(OSError(code, os.strerror(code), "x.npz")))
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == exit_code
    assert capsys.readouterr().err == (
        f"nnunet-ext: x.npz cannot be used ({os.strerror(code)}); check the path, its rights and its disk.\n"
    )
    monkeypatch.setattr(cli, "cli", lambda prog_name: fail(KeyError("x")))
    with pytest.raises(KeyError):
        cli.main()


def test_the_verb_ends_with_exit_code_3_for_a_bad_case_and_loads_no_torch(folder: Path) -> None:
    write_labels(folder / "Q" / "case.nii.gz", np.zeros(GRID.shape, dtype=np.uint8), Grid(GRID.shape, (2.0, 1.0, 1.0)))
    code = (
        "import sys; sys.argv = ['nnunet-ext', 'fuse', '-i', 'P', 'Q', '--table', 'fusion.json', '-o', 'out']; "
        "import atexit; from nnunet_ext.cli import main; "
        "atexit.register(lambda: print([m for m in ('torch', 'nnunetv2') if m in sys.modules])); main()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (3, "[]\n")
    assert "nnunet-ext: 1 of 1 cases failed" in done.stderr
    assert "differ in grid" in done.stderr
    assert {path.name for path in (folder / "out").iterdir()} == {".lock", "dataset.json", "fusion_report.json"}
