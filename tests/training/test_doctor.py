from __future__ import annotations

import importlib.metadata
import os
from pathlib import Path

import pytest

from nnunet_ext.locations import DATA_VARIABLES, trainers_folder
from nnunet_ext.training import doctor


def levels(findings) -> dict[str, str]:
    return {finding.topic: finding.level for finding in findings}


@pytest.fixture
def data_folders(monkeypatch, tmp_path) -> Path:
    for name in DATA_VARIABLES:
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    return tmp_path


def test_a_sound_installation_has_no_problem(data_folders, monkeypatch):
    monkeypatch.chdir(data_folders)
    findings = list(doctor.examine())
    assert [f for f in findings if f.level == "problem"] == []
    assert all(f.advice for f in findings if f.level != "ok")


def test_a_version_out_of_range_is_a_problem_with_the_range(monkeypatch):
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.9.0" if name == "nnunetv2" else real(name))
    (found,) = [f for f in doctor.check_versions() if f.topic == "nnunetv2"]
    assert (found.level, "<2.9" in found.text, "2.9.0" in found.text) == ("problem", True, True)


def test_a_missing_dependency_is_a_problem(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: ["no-such-thing>=1", 'other; extra == "dev"'])
    assert levels(doctor.check_versions()) == {"python": "ok", "no-such-thing": "problem"}


def test_a_torchvision_that_does_not_load_is_named(monkeypatch):
    def load(name: str) -> None:
        if name == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist\nmore")

    monkeypatch.setattr(doctor.importlib, "import_module", load)
    (found,) = doctor.check_imports()
    assert found.level == "problem"
    assert found.text.endswith("(operator torchvision::nms does not exist)")


@pytest.mark.parametrize("value", ["", "/no/such/folder"])
def test_folders_unset_or_missing_are_problems(monkeypatch, value):
    for name in DATA_VARIABLES:
        monkeypatch.setenv(name, value)
    assert levels(doctor.check_folders()) == dict.fromkeys(DATA_VARIABLES, "problem")


def test_a_folder_that_cannot_be_written_is_a_problem(data_folders, monkeypatch):
    monkeypatch.setattr(doctor.os, "access", lambda path, _: "raw" not in str(path))
    assert levels(doctor.check_folders())["nnUNet_raw"] == "problem"


def test_a_nearly_full_disk_is_a_warning(data_folders, monkeypatch):
    usage = type("Usage", (), {"free": doctor.GIB})
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage)
    assert set(levels(doctor.check_folders()).values()) == {"warning"}


@pytest.mark.parametrize(("on_path", "level"), [(True, "problem"), (False, "warning")])
def test_a_foreign_package_of_our_name_is_found(monkeypatch, tmp_path, on_path, level):
    (tmp_path / "nnunet_ext").mkdir()
    (tmp_path / "nnunet_ext/__init__.py").touch()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere if on_path else tmp_path)
    if on_path:
        monkeypatch.syspath_prepend(tmp_path)
    found = [f for f in doctor.check_package() if str(tmp_path) in f.text]
    assert [f.level for f in found] == [level]


def test_another_distribution_with_our_package_is_a_problem(monkeypatch):
    owners = {"nnunet_ext": ["nnunet-ext", "lifelong-nnunet"]}
    monkeypatch.setattr(importlib.metadata, "packages_distributions", lambda: owners)
    assert any("lifelong-nnunet" in f.text and f.level == "problem" for f in doctor.check_package())


def test_all_trainers_are_found_and_the_environment_is_left_as_it_was(monkeypatch):
    monkeypatch.delenv("nnUNet_extTrainer", raising=False)
    assert levels(doctor.check_trainers()) == {"nnUNet_extTrainer": "warning", "trainers": "ok"}
    assert "nnUNet_extTrainer" not in os.environ


def test_a_search_path_with_a_missing_folder_is_a_warning(monkeypatch):
    monkeypatch.setenv("nnUNet_extTrainer", os.pathsep.join([str(trainers_folder()), "/no/such/folder"]))
    assert levels(doctor.check_trainers())["nnUNet_extTrainer"] == "warning"


def test_a_trainer_that_nnunet_has_itself_is_a_collision(monkeypatch, tmp_path):
    (tmp_path / "nnUNetTrainer.py").touch()
    monkeypatch.setattr(doctor, "trainers_folder", lambda: tmp_path)
    (found,) = [f for f in doctor.check_trainers() if f.topic == "nnUNetTrainer"]
    assert found.level == "problem"
    assert "nnunetv2.training" in found.text


def test_a_trainer_that_cannot_be_imported_is_a_problem(monkeypatch, tmp_path):
    (tmp_path / "nnUNetTrainerBroken.py").write_text("import no_such_module\n")
    monkeypatch.setattr(doctor, "trainers_folder", lambda: tmp_path)
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path))
    (found,) = [f for f in doctor.check_trainers() if f.topic == "nnUNetTrainerBroken"]
    assert (found.level, "no_such_module" in found.text) == ("problem", True)


@pytest.mark.parametrize(("value", "level"), [("", "warning"), ("1", "ok"), ("4096", "warning")])
def test_thread_settings_are_judged(monkeypatch, value, level):
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert levels(doctor.check_machine())["OMP_NUM_THREADS"] == level


def test_a_check_that_breaks_is_reported_and_the_others_go_on(monkeypatch):
    def check_moon():
        raise OSError("eclipse")

    monkeypatch.setattr(doctor, "CHECKS", (check_moon, doctor.check_machine))
    findings = list(doctor.examine())
    assert (findings[0].level, findings[0].topic) == ("problem", "moon")
    assert len(findings) > 1
