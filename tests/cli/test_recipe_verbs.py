"""``train``, ``select`` and ``predict``: what they say and end with before any network is loaded."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from nnunet_ext.errors import InputError
from nnunet_ext.recipe import train
from nnunet_ext.recipe.places import Places
from nnunet_ext.recipe.schema import Recipe

RECIPE = {
    "name": "drawn",
    "title": "Drawn.",
    "dataset": 11,
    "organs": ["Brainstem"],
    "folds": [0, 1],
    "device": "cpu",
    "models": {"2d": {"dataset": 11, "configuration": "2d"}},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """nnU-Net's folders with dataset 11 (no images), and drawn.yaml."""
    dataset = tmp_path / "raw" / "Dataset011_Drawn"
    for path in (dataset, tmp_path / "preprocessed", tmp_path / "results", tmp_path / "IN"):
        path.mkdir(parents=True)
    (dataset / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "Brainstem": 1}}))
    splits = [{"train": ["a"], "val": ["b"]}, {"train": ["b"], "val": ["a"]}]
    (dataset / "splits_final.json").write_text(json.dumps(splits))
    (tmp_path / "drawn.yaml").write_text(yaml.safe_dump(RECIPE))
    return tmp_path


def run(folder: Path, *arguments: str, code: int = 2, **roots: str) -> str:
    """What the command writes to stderr, after its exit code was judged."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("nnUNet_")}
    here = {f"nnUNet_{name}": str(folder / name) for name in ("raw", "preprocessed", "results")}
    done = subprocess.run(
        [sys.executable, "-m", "nnunet_ext.cli", *arguments],
        cwd=folder,
        env={**kept, **here, **roots},
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


PREDICT = ("predict", "drawn.yaml", "-i", "IN", "-o", "OUT")


@pytest.mark.parametrize("verb", [("train", "other"), ("select", "other"), ("predict", "other", "-i", "a", "-o", "b")])
def test_an_unknown_recipe_is_refused_with_the_names_of_the_published_ones(folder: Path, verb: tuple[str, ...]) -> None:
    message = run(folder, *verb)
    assert "nnunet-ext: no recipe other" in message
    assert "structseg2019_han" in message


def test_predicting_with_an_untrained_recipe_says_what_to_run(folder: Path) -> None:
    assert "fusion.json is missing; run `nnunet-ext train` for recipe drawn first" in run(folder, *PREDICT)
    assert not (folder / "OUT").exists()


def test_predicting_an_organ_that_the_recipe_does_not_have_names_those_it_has(folder: Path) -> None:
    summary = folder / "results" / "recipes" / "drawn"
    summary.mkdir(parents=True)
    table = {"organs": {"Brainstem": 1}, "owner": {"Brainstem": "2d"}, "models": {"2d": {"Brainstem": 1}}}
    (summary / "fusion.json").write_text(json.dumps({**table, "priority": ["Brainstem"]}))
    message = run(folder, "predict", "drawn.yaml", "--organs", "Brainstem", "Cord", "-i", "IN", "-o", "OUT")
    assert message == "nnunet-ext: Cord is no organ to contour; known are Brainstem.\n"
    assert not (folder / "OUT").exists()


def test_selecting_before_training_names_model_and_fold(folder: Path) -> None:
    assert "finishes model 2d, fold 0" in run(folder, "select", "drawn.yaml")


def test_training_a_fold_that_does_not_exist_is_refused_before_anything_is_planned(folder: Path) -> None:
    (folder / "drawn.yaml").write_text(yaml.safe_dump({**RECIPE, "folds": [0, 5]}))
    message = run(folder, "train", "drawn.yaml")
    assert "fold 5 of recipe drawn does not exist, the dataset has 2" in message
    assert not any((folder / "preprocessed").iterdir())


def test_training_on_a_device_that_is_not_there_is_refused_before_anything_is_written(folder: Path) -> None:
    (folder / "drawn.yaml").write_text(yaml.safe_dump({**RECIPE, "device": "cuda"}))
    before = sorted(folder.rglob("*"))
    message = run(folder, "train", "drawn.yaml", CUDA_VISIBLE_DEVICES="")
    assert "the page trains on device cuda, and there is none that can be used here; set device: cpu" in message
    assert sorted(folder.rglob("*")) == before


def test_a_recipe_whose_folds_are_done_needs_no_device(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(folder / name))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(train, "_stages", lambda recipe: [])
    monkeypatch.setattr(train, "select", lambda places, say: "chosen")
    recipe = Recipe.model_validate({**RECIPE, "device": "cuda"})
    for fold in (0, 1):
        with pytest.raises(InputError, match="device cuda"):
            train.train(recipe, 1, print)
        manifest = Places.of(recipe).fold_folder("2d", fold) / train.MANIFEST
        manifest.parent.mkdir(parents=True)
        manifest.write_text(json.dumps({"done": False}))
        with pytest.raises(InputError, match="device cuda"):
            train.train(recipe, 1, print)
        manifest.write_text(json.dumps({"done": True}))
    assert train.train(recipe, 1, print) == "chosen"


def test_training_without_the_dataset_names_the_command_that_writes_it(folder: Path) -> None:
    (folder / "raw" / "Dataset011_Drawn").rename(folder / "raw" / "Dataset012_Drawn")
    assert "`nnunet-ext convert SOURCE FOLDER -d 11` writes one" in run(folder, "train", "drawn.yaml")


def test_a_second_training_of_the_same_recipe_ends_with_exit_code_75(folder: Path) -> None:
    summary = folder / "results" / "recipes" / "drawn"
    summary.mkdir(parents=True)
    with (summary / ".lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        assert "another process works in" in run(folder, "train", "drawn.yaml", code=75)


def test_a_variable_that_is_not_set_is_named(folder: Path) -> None:
    assert "nnUNet_results is not set" in run(folder, "select", "drawn.yaml", nnUNet_results="")


@pytest.mark.parametrize(
    "options", [("train",), ("train", "drawn.yaml", "--jobs", "0"), PREDICT[:4], (*PREDICT, "-device", "tpu")]
)
def test_wrong_options_are_usage_errors(folder: Path, options: tuple[str, ...]) -> None:
    assert "Usage: nnunet-ext" in run(folder, *options)
