from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nnunet_ext import locations
from nnunet_ext.errors import InputError


def test_trainers_folder_holds_the_trainer_files():
    folder = locations.trainers_folder()
    assert folder.is_absolute()
    assert (folder / "nnUNetTrainerExtNoMirror.py").is_file()


def test_finding_the_folder_imports_no_trainer_and_no_torch(tmp_path):
    code = (
        "import sys; from nnunet_ext.locations import trainers_folder; trainers_folder();"
        "print([m for m in ('torch', 'numpy', 'nnunetv2', 'nnunet_ext.trainers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_exposing_puts_our_folder_first_and_keeps_the_others(monkeypatch):
    monkeypatch.setenv("nnUNet_extTrainer", os.pathsep.join(["/a", "", "/b b"]))
    locations.expose_trainers()
    locations.expose_trainers()
    assert os.environ[locations.TRAINER_VARIABLE].split(os.pathsep) == [
        str(locations.trainers_folder()),
        "/a",
        "/b b",
    ]


def test_exposing_sets_the_variable_where_there_is_none(monkeypatch):
    monkeypatch.setenv("nnUNet_extTrainer", "")
    assert locations.trainer_search_path() == str(locations.trainers_folder())


def test_a_folder_that_nnunet_could_not_read_back_is_refused(monkeypatch):
    monkeypatch.setattr(locations, "trainers_folder", lambda: Path(f"/a{os.pathsep}b"))
    with pytest.raises(InputError, match="splits nnUNet_extTrainer"):
        locations.trainer_search_path()


def test_data_folder_comes_from_its_variable(monkeypatch, tmp_path):
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    assert locations.nnunet_folder("nnUNet_raw") == tmp_path


@pytest.mark.parametrize("name", locations.DATA_VARIABLES)
def test_an_unset_variable_is_named_with_the_fix(monkeypatch, name):
    monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match=f"export {name}=") as caught:
        locations.nnunet_folder(name)
    assert caught.value.exit_code == 2


def test_a_folder_that_nnunet_does_not_know_is_a_programming_fault():
    with pytest.raises(ValueError, match="nnUNet_row"):
        locations.nnunet_folder("nnUNet_row")
