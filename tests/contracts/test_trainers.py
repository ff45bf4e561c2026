"""What nnU-Net asks of a trainer, checked on all of ours through nnU-Net's own look-up."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(file for file in (ROOT / "trainers").glob("*.py") if file.stem != "__init__")

RESOLVE = """
import inspect, json, os, pickle, sys
from os.path import join
import nnunetv2
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from nnunet_ext.locations import expose_trainers

expose_trainers()
stock = join(nnunetv2.__path__[0], "training", "nnUNetTrainer")
found = {}
for name in sys.argv[1:]:
    trainer = recursive_find_trainer_class_by_name(name)
    found[name] = {
        "name": trainer.__name__,
        "module": trainer.__module__,
        "parameters": list(inspect.signature(trainer).parameters),
        "pickles": pickle.loads(pickle.dumps(trainer)) is trainer,
        "same_again": recursive_find_trainer_class_by_name(name) is trainer,
        "known_to_nnunet": recursive_find_python_class(
            stock, name, "nnunetv2.training.nnUNetTrainer", nnunetv2.__path__[0]
        ) is not None,
    }
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def resolved(probe, trainer_names) -> dict[str, dict[str, Any]]:
    """Every trainer as one fresh process in a foreign folder sees it."""
    found: dict[str, dict[str, Any]] = probe(sys.executable, RESOLVE, *trainer_names)
    return found


def test_there_are_trainers():
    assert {"nnUNetTrainerExtNoMirror", "nnUNetTrainerExtMirrorSwap"} <= {file.stem for file in FILES}


@pytest.mark.parametrize("name", [file.stem for file in FILES])
class TestResolvedTrainer:
    def test_is_found_under_its_own_name_and_lives_in_our_training_package(self, resolved, name):
        assert resolved[name]["name"] == name
        assert resolved[name]["module"].startswith("nnunet_ext.training.")

    def test_constructor_has_exactly_the_arguments_of_nnunet(self, resolved, name):
        assert resolved[name]["parameters"] == ["plans", "configuration", "fold", "dataset_json", "device"]

    def test_pickles_and_is_the_same_object_at_every_look_up(self, resolved, name):
        assert resolved[name]["pickles"]
        assert resolved[name]["same_again"]

    def test_is_unknown_to_nnunet_itself(self, resolved, name):
        assert not resolved[name]["known_to_nnunet"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
class TestTrainerFile:
    def test_name_survives_nnunets_result_folders(self, file):
        assert re.fullmatch(r"nnUNetTrainerExt[A-Za-z0-9]*", file.stem)
        assert "__" not in file.stem

    def test_is_a_docstring_and_one_re_export_of_its_own_name(self, file):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        assert ast.get_docstring(tree)
        _, imported, exported = tree.body
        assert isinstance(imported, ast.ImportFrom)
        assert (imported.module or "").startswith("nnunet_ext.training.")
        assert [(alias.name, alias.asname) for alias in imported.names] == [(file.stem, None)]
        assert ast.unparse(exported) == f"__all__ = ['{file.stem}']"
