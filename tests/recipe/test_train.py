"""What a training skips, repeats and refuses; the trainings themselves are replaced by notes."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from nnunet_ext.errors import BusyError, InputError
from nnunet_ext.io.lock import locked
from nnunet_ext.planning import plan
from nnunet_ext.recipe import train as module
from nnunet_ext.recipe.jobs import Job
from nnunet_ext.recipe.places import Places
from nnunet_ext.recipe.schema import Recipe
from nnunet_ext.recipe.train import MANIFEST, default_at_once, train

CASES = ["a", "b", "c", "d"]
DATASET = "Dataset011_Drawn"


def write(path: Path, content: Any = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


class World:
    """A raw dataset; planning, preprocessing and training leave the files that the real ones leave."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.roots = {name: folder / name for name in ("raw", "preprocessed", "results")}
        for name, root in self.roots.items():
            monkeypatch.setenv(f"nnUNet_{name}", str(root))
        raw = self.roots["raw"] / DATASET
        write(raw / "dataset.json", {"channel_names": {"0": "CT"}, "labels": {"background": 0, "Brainstem": 1}})
        splits = [{"train": CASES[2:], "val": CASES[:2]}, {"train": CASES[:2], "val": CASES[2:]}]
        write(raw / "splits_final.json", splits)
        for case in CASES:
            write(raw / "labelsTr" / f"{case}.nii.gz", f"contours of {case}")
            write(raw / "imagesTr" / f"{case}_0000.nii.gz", f"image of {case}")
        self.done: list[str] = []
        self.said: list[str] = []
        monkeypatch.setattr(plan, "make_fingerprint", lambda *a: None)
        monkeypatch.setattr(plan, "make_plans", self.make_plans)
        monkeypatch.setattr(plan, "dataset_name", lambda number: DATASET)
        monkeypatch.setattr(plan, "preprocess", self.preprocess)
        monkeypatch.setattr(module, "run_jobs", self.run_jobs)
        monkeypatch.setattr(module, "select", lambda places, say: self.done.append("select"))

    @property
    def preprocessed(self) -> Path:
        return self.roots["preprocessed"] / DATASET

    def make_plans(self, number: int, preset: str, *, plans_name: str, **options: Any) -> str:
        self.done.append("plan")
        network = {"n_stages": 2, "features_per_stage": [32, 64]}
        scheme = {"normalization_schemes": ["CTNormalization"], "architecture": {"arch_kwargs": network}}
        settings = {"spacing": [3, 1, 1], **scheme}
        intensities = {"0": {"mean": 30.0, "std": 90.0, "percentile_00_5": -200.0, "percentile_99_5": 300.0}}
        configurations = {c: {"data_identifier": f"{plans_name}_{c}", **settings} for c in ("2d", "3d_fullres")}
        path = self.preprocessed / f"{plans_name}.json"
        plans = {"plans_name": plans_name, "foreground_intensity_properties_per_channel": intensities}
        write(path, {**plans, "transpose_forward": [0, 1, 2], "configurations": configurations})
        return plans_name

    def preprocess(self, number: int, plans: str, configurations: list[str], processes: int) -> None:
        self.done.append(f"preprocess {configurations[0]}")
        for case in CASES:
            write(self.preprocessed / f"{plans}_{configurations[0]}" / f"{case}.pkl")

    def run_jobs(self, jobs: list[Job], at_once: int, device: str, say: Any) -> None:
        for job in jobs:
            self.done.append(job.name)
            write(job.fold_folder / "checkpoint_final.pth")
            splits = json.loads((self.roots["raw"] / DATASET / "splits_final.json").read_text())
            for case in splits[int(job.fold_folder.name[-1])]["val"]:
                write(job.fold_folder / "validation" / f"{case}.nii.gz")
            job.done()

    def train(self, planning: Any = None, settings: Any = None, **changes: Any) -> list[str]:
        """What was done, in order."""
        model = {"dataset": 11, "configuration": "2d", "planning": planning or {}, "settings": settings or {}}
        page = {"name": "drawn", "title": "Drawn.", "dataset": 11, "organs": ["Brainstem"], "folds": [0, 1]}
        recipe = Recipe.model_validate({**page, "device": "cpu", "models": {"2d": model}, **changes})
        self.done.clear()
        train(recipe, 1, self.said.append)
        return list(self.done)

    def fold(self, number: int) -> Path:
        return self.roots["results"] / DATASET / "nnUNetTrainerExtNoMirror__nnUNetPlansExt__2d" / f"fold_{number}"

    def block(self) -> Any:
        plans = json.loads((self.preprocessed / "nnUNetPlansExt.json").read_text())
        return plans["configurations"]["2d"]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, monkeypatch)


ALL = ["plan", "preprocess 2d", "2d fold 0", "2d fold 1", "select"]


def test_everything_is_done_once_and_then_only_the_choice(world: World) -> None:
    assert world.train() == ALL
    assert world.train() == ["select"]
    assert world.said[-3:-1] == ["2d fold 0 is done, skipped", "2d fold 1 is done, skipped"]


@pytest.mark.parametrize("lost", ["checkpoint_final.pth", "validation/a.nii.gz", "validation/b.nii.gz"])
def test_a_fold_that_lost_a_file_is_continued(world: World, lost: str) -> None:
    world.train()
    (world.fold(0) / lost).unlink()
    assert world.train() == ["2d fold 0", "select"]


def test_a_fold_that_was_interrupted_is_continued(world: World) -> None:
    world.train()
    content = json.loads((world.fold(1) / MANIFEST).read_text())
    write(world.fold(1) / MANIFEST, {**content, "done": False})
    assert world.train() == ["2d fold 1", "select"]


def test_preprocessing_that_stopped_early_is_repeated(world: World) -> None:
    world.train()
    (world.preprocessed / "nnUNetPlansExt_2d_cases.json").unlink()
    assert world.train() == ["preprocess 2d", "select"]
    write(world.roots["raw"] / DATASET / "labelsTr" / "e.nii.gz")
    with pytest.raises(InputError, match="nnUNetPlansExt_2d lacks e after preprocessing"):
        world.train()


@pytest.mark.parametrize("lost", ["nnUNetPlansExt_2d", "nnUNetPlansExt_2d/c.pkl"])
def test_preprocessed_data_that_are_gone_are_made_again(world: World, lost: str) -> None:
    world.train()
    path = world.preprocessed / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert world.train() == ["preprocess 2d", "select"]


def test_preprocessing_that_was_killed_vouches_for_nothing_even_if_the_correction_is_taken_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.train()
    labels = world.roots["raw"] / DATASET / "labelsTr" / "a.nii.gz"
    before = labels.read_text()
    write(labels, "corrected contours")

    def killed(*arguments: Any) -> None:
        write(world.preprocessed / "nnUNetPlansExt_2d" / "a.pkl", "of the correction")
        raise KeyboardInterrupt

    monkeypatch.setattr(plan, "preprocess", killed)
    with pytest.raises(KeyboardInterrupt):
        world.train()
    monkeypatch.setattr(plan, "preprocess", world.preprocess)
    write(labels, before)
    assert world.train() == ["preprocess 2d", "select"]


def test_another_normalisation_is_preprocessed_anew_and_never_trained_on_the_old_data(world: World) -> None:
    world.train()
    for fold in (0, 1):
        (world.fold(fold) / MANIFEST).unlink()
        (world.fold(fold) / "checkpoint_final.pth").unlink()
    assert world.train({"normalization": "ZScoreNormalization"}) == ALL


def test_another_training_setting_needs_no_new_preprocessing(world: World) -> None:
    world.train()
    for fold in (0, 1):
        (world.fold(fold) / MANIFEST).unlink()
        (world.fold(fold) / "checkpoint_final.pth").unlink()
    assert "preprocess 2d" not in world.train(settings={"num_epochs": 3})


@pytest.mark.parametrize(
    "changes",
    [{"settings": {"num_epochs": 3}}, {"planning": {"base_features": 8}}, {"planning": {"resampling": False}}],
)
def test_what_was_trained_with_another_page_is_refused_and_kept(world: World, changes: Any) -> None:
    world.train()
    with pytest.raises(InputError, match=r"2d/fold_0 was trained with other settings, labels or folds.*delete it"):
        world.train(**changes)
    assert (world.fold(0) / "checkpoint_final.pth").exists()
    assert world.train() == ["plan", *(["preprocess 2d"] if "resampling" in str(changes) else []), "select"]


def test_other_folds_or_labels_are_refused(world: World) -> None:
    world.train()
    splits = [{"train": CASES[1:], "val": CASES[:1]}, {"train": CASES[:1], "val": CASES[1:]}]
    write(world.roots["raw"] / DATASET / "splits_final.json", splits)
    with pytest.raises(InputError, match="other settings, labels or folds"):
        world.train()


@pytest.mark.parametrize(
    ("file", "content", "refused", "kept"),
    [
        ("labelsTr/a.nii.gz", "corrected contours", 1, 0),  # fold 0 held the case out
        ("imagesTr/a_0000.nii.gz", "image with another end", 1, None),  # and predicted it
        ("imagesTr/a_0000.nii.gz", "image of b", 1, None),
        ("imagesTr/a_0001.nii.gz", "second channel", 1, None),
        ("present_labels.json", {"a": []}, 1, 0),
    ],
)
def test_a_fold_that_trained_on_other_images_or_contours_is_refused_and_the_data_are_preprocessed_again(
    world: World, file: str, content: Any, refused: int, kept: int | None
) -> None:
    world.train()
    write(world.roots["raw"] / DATASET / file, content)
    with pytest.raises(InputError, match=f"fold_{refused} was trained on other images or contours of a than") as error:
        world.train()
    assert world.done == ["preprocess 2d"]
    assert (f"fold_{kept} " in str(error.value)) is False
    assert (world.fold(refused) / "checkpoint_final.pth").exists()
    again = (refused,) if kept is not None else (0, 1)
    for fold in again:
        shutil.rmtree(world.fold(fold))
    assert world.train() == [*(f"2d fold {fold}" for fold in again), "select"]
    assert world.train() == ["select"]


def test_all_folds_that_trained_on_other_contours_are_named_at_once(world: World) -> None:
    world.train()
    for case in CASES:
        write(world.roots["raw"] / DATASET / "labelsTr" / f"{case}.nii.gz", f"better contours of {case}")
    with pytest.raises(InputError, match=r"fold_0 was trained on other .* of c, d than .*fold_1 .* of a, b than"):
        world.train()


def test_a_dataset_that_was_copied_is_the_same(world: World) -> None:
    world.train()
    for path in (world.roots["raw"] / DATASET).rglob("*.nii.gz"):
        os.utime(path, (1, 1))
    assert world.train() == ["select"]


def test_an_interrupted_fold_is_not_continued_on_other_contours(world: World) -> None:
    world.train()
    content = json.loads((world.fold(0) / MANIFEST).read_text())
    write(world.fold(0) / MANIFEST, {**content, "done": False})
    write(world.roots["raw"] / DATASET / "labelsTr" / "c.nii.gz", "corrected contours")
    with pytest.raises(InputError, match="fold_0 was trained on other images or contours of c"):
        world.train()


def test_another_window_is_refused_by_folds_that_are_trained_and_folds_to_come(world: World) -> None:
    world.train({"window_hu": [-100, 200]}, folds=[0])
    with pytest.raises(InputError, match="fold_0 was trained with another window or scale of intensities"):
        world.train({"window_hu": [-400, 600]})
    assert not any("fold" in done for done in world.done)


def test_models_that_share_plans_are_preprocessed_with_the_window_that_both_have(world: World) -> None:
    common = {"dataset": 11, "plans": "nnUNetPlansExt"}
    models = {
        "2d": {**common, "configuration": "2d"},
        "3d": {**common, "configuration": "3d_fullres", "planning": {"window_hu": [-100, 200]}},
    }
    world.train(models=models)
    assert world.train(models=models) == ["select"]


def test_folds_of_a_version_that_noted_no_data_are_kept_with_a_word(world: World) -> None:
    world.train()
    for fold in (0, 1):
        content = json.loads((world.fold(fold) / MANIFEST).read_text())
        write(world.fold(fold) / MANIFEST, {"digest": content["digest"], "done": True})
    manifest = world.preprocessed / "nnUNetPlansExt_2d_cases.json"
    write(manifest, {**json.loads(manifest.read_text()), "cases": CASES})
    world.said.clear()
    assert world.train() == ["select"]
    assert isinstance(json.loads(manifest.read_text())["cases"], dict)
    assert sum("does not say which contours and intensities it was trained with" in line for line in world.said) == 2


def test_preprocessed_data_that_note_no_contours_are_made_again_when_a_file_is_newer(world: World) -> None:
    world.train()
    manifest = world.preprocessed / "nnUNetPlansExt_2d_cases.json"
    write(manifest, {**json.loads(manifest.read_text()), "cases": CASES})
    later = manifest.stat().st_mtime + 10
    os.utime(world.roots["raw"] / DATASET / "labelsTr" / "b.nii.gz", (later, later))
    assert world.train() == ["preprocess 2d", "select"]


def test_a_choice_that_the_page_no_longer_states_leaves_the_plans(world: World) -> None:
    world.train({"base_features": 8}, {"weight_decay": 0.1})
    assert world.block()["nnunet_ext"] == {"weight_decay": 0.1}
    assert world.block()["architecture"]["arch_kwargs"]["features_per_stage"] == [8, 16]
    for fold in (0, 1):
        (world.fold(fold) / MANIFEST).unlink()
        (world.fold(fold) / "checkpoint_final.pth").unlink()
    world.train()
    assert world.block().get("nnunet_ext", {}) == {}
    assert world.block()["architecture"]["arch_kwargs"]["features_per_stage"] == [32, 64]


def test_two_models_on_one_plans_file_keep_their_own_choices(world: World) -> None:
    def models(epochs: int) -> Any:
        common = {"dataset": 11, "plans": "nnUNetPlansExt"}
        return {
            "2d": {**common, "configuration": "2d", "settings": {"num_epochs": 2}},
            "3d": {**common, "configuration": "3d_fullres", "settings": {"num_epochs": epochs}},
        }

    world.train(models=models(3))
    with pytest.raises(InputError, match="3d_fullres/fold_0 was trained with other settings"):
        world.train(models=models(4))
    plans = json.loads((world.preprocessed / "nnUNetPlansExt.json").read_text())["configurations"]
    assert [plans[c]["nnunet_ext"]["num_epochs"] for c in ("2d", "3d_fullres")] == [2, 4]
    assert world.train(models=models(3)) == ["plan", "select"]


@pytest.mark.parametrize("name", ["checkpoint_final.pth", "checkpoint_latest.pth"])
def test_a_fold_that_somebody_else_trained_is_neither_used_nor_overwritten(world: World, name: str) -> None:
    write(world.fold(1) / name)
    with pytest.raises(InputError, match="fold_1 was trained outside this recipe; move it away"):
        world.train()
    assert not any("fold" in done for done in world.done)


def test_a_second_training_of_one_recipe_is_turned_away(world: World) -> None:
    summary = world.roots["results"] / "recipes" / "drawn"
    with locked(summary / ".lock"), pytest.raises(BusyError):
        world.train()
    assert world.done == []


def test_a_region_dataset_that_was_cut_differently_is_refused(world: World) -> None:
    region = {"organs": ["Brainstem"], "from": "centre", "fraction": [1.0, 0.5, 0.5]}
    target = world.roots["raw"] / "Dataset012_drawn_3d"
    write(
        target / "dataset.json",
        {"channel_names": {"0": "CT"}, "nnunet_ext": {"region": {**region, "fraction": [1.0, 0.7, 0.7]}}},
    )
    with pytest.raises(InputError, match="Dataset012_drawn_3d was cut for another region than recipe drawn asks for"):
        world.train(models={"3d": {"dataset": 12, "configuration": "3d_fullres", "region": region}})


def test_a_whole_image_model_must_read_what_its_dataset_has(world: World) -> None:
    model = {"dataset": 11, "configuration": "2d", "channels": ["CT", "MR"]}
    with pytest.raises(InputError, match="model 2d reads CT, MR, its dataset Dataset011_Drawn has CT"):
        world.train(models={"2d": model})
    assert world.done == []


def test_on_a_gpu_one_training_at_a_time_and_on_a_cpu_one_per_core(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.os, "cpu_count", lambda: 6)
    for device, count in (("cpu", 6), ("cuda", 1)):
        assert default_at_once(device) == count


def test_places_say_where_the_parts_of_a_recipe_lie(world: World) -> None:
    places = Places.of(Recipe.load("openkbp_han_cpu"))
    assert places.summary == world.roots["results"] / "recipes" / "openkbp_han_cpu"
    assert places.region_name("small") == "Dataset103_openkbp_han_cpu_small"
    folder = places.fold_folder("small", 2)
    assert folder.parts[-3:] == (
        "Dataset103_openkbp_han_cpu_small",
        "nnUNetTrainerExtNoMirror__nnUNetPlansExtCPU__3d_fullres",
        "fold_2",
    )
    assert places.full_frame("small", 2) == folder / "validation_whole_image"
    with pytest.raises(
        InputError, match=r"regions\.json is missing; `nnunet-ext train` cuts the regions of model small"
    ):
        places.sidecar("small")
