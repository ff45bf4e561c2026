from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from nnunet_ext.cli.env import command
from nnunet_ext.locations import trainers_folder


def run(monkeypatch: pytest.MonkeyPatch, value: str) -> str:
    monkeypatch.setenv("nnUNet_extTrainer", value)
    result = CliRunner().invoke(command)
    assert result.exit_code == 0
    return result.output


def test_prints_exactly_one_export_line(monkeypatch):
    assert run(monkeypatch, "") == f"export nnUNet_extTrainer={trainers_folder()}\n"


@pytest.mark.skipif(os.name != "posix", reason="needs a POSIX shell")
@pytest.mark.parametrize("other", ["/with a blank", "/it's", "/$HOME", '/"; echo no; "'])
def test_a_shell_gets_back_what_was_there(monkeypatch, tmp_path, other):
    monkeypatch.setenv("nnUNet_extTrainer", other)
    script = f'eval "$({sys.executable} -m nnunet_ext.cli env)"; printf %s "$nnUNet_extTrainer"'
    done = subprocess.run(["sh", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == os.pathsep.join([str(trainers_folder()), other])


def test_running_it_twice_changes_nothing(monkeypatch):
    once = run(monkeypatch, "/other").strip().removeprefix("export nnUNet_extTrainer=")
    assert run(monkeypatch, once).strip().removeprefix("export nnUNet_extTrainer=") == once
    assert Path(once.split(os.pathsep)[0]).is_absolute()
