"""When a region dataset is cut, kept, and refused; images and predictions are drawn."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnunet_ext.errors import InputError
from nnunet_ext.geometry import Grid
from nnunet_ext.io.nifti import write_image, write_labels
from nnunet_ext.recipe.places import Places
from nnunet_ext.recipe.region_dataset import cut_regions
from nnunet_ext.recipe.schema import Recipe

CASES = ["a", "b"]
GRID = Grid((8, 20, 20), (3.0, 1.0, 1.0))


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


class World:
    """Two cases with a brain stem, and a 2D model that found it in both, out-of-fold."""

    def __init__(self, folder: Path) -> None:
        self.roots = [folder / name for name in ("raw", "preprocessed", "results")]
        raw = self.roots[0] / "Dataset011_Drawn"
        self.model = self.roots[2] / "Dataset011_Drawn" / "nnUNetTrainerExtNoMirror__nnUNetPlansExt__2d"
        description = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "Brainstem": 1}}
        write(raw / "dataset.json", {**description, "numTraining": 2, "file_ending": ".nii.gz"})
        write(raw / "splits_final.json", [{"train": ["b"], "val": ["a"]}, {"train": ["a"], "val": ["b"]}])
        labels = np.zeros(GRID.shape, np.uint8)
        labels[3:6, 6:12, 6:12] = 1
        for fold, case in enumerate(CASES):
            write_image(raw / "imagesTr" / f"{case}_0000.nii.gz", np.zeros(GRID.shape, np.float32), GRID)
            write_labels(raw / "labelsTr" / f"{case}.nii.gz", labels, GRID)
            write_labels(self.model / f"fold_{fold}" / "validation" / f"{case}.nii.gz", labels, GRID)
            write(self.model / f"fold_{fold}" / "checkpoint_final.pth", f"weights of fold {fold}")
            write(self.model / f"fold_{fold}" / "cases.json", {"train": CASES[1 - fold :][:1], "val": [case]})
        self.said: list[str] = []

    def add_3d(self) -> None:
        """A second model that found the same; 2d found nothing in a."""
        shutil.copytree(self.model, self.model.with_name("nnUNetTrainerExtNoMirror__nnUNetPlansExt__3d_fullres"))
        write_labels(self.model / "fold_0" / "validation" / "a.nii.gz", np.zeros(GRID.shape, np.uint8), GRID)

    @property
    def derived(self) -> Path:
        return self.roots[0] / "Dataset012_drawn_small"

    def train(self) -> None:
        """One fold of the region model is trained."""
        folder = self.roots[2] / self.derived.name / "nnUNetTrainerExtNoMirror__nnUNetPlansExt__3d_fullres"
        write(folder / "fold_1" / "checkpoint_final.pth", "weights")

    def cut(self, channels: Any = None, with_3d: bool = False, **region: Any) -> None:
        small = {"organs": ["Brainstem"], "from": "2d", "copies": 0, **region}
        models: dict[str, Any] = {
            "2d": {"dataset": 11, "configuration": "2d"},
            "small": {"dataset": 12, "configuration": "3d_fullres", "region": small, "channels": channels},
        }
        if with_3d:
            models["3d"] = {"dataset": 11, "configuration": "3d_fullres"}
        page = {"name": "drawn", "title": "Drawn.", "dataset": 11, "organs": small["organs"], "folds": [0, 1]}
        recipe = Recipe.model_validate({**page, "device": "cpu", "models": models})
        self.said.clear()
        cut_regions(Places(recipe, *self.roots), "small", self.said.append)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


LARGE, SMALL = (5, 10, 10), (2, 3, 3)


def test_regions_are_cut_once_and_what_they_keep_is_said(world: World) -> None:
    world.cut(size_vox=LARGE)
    assert world.said == [
        "cutting the regions of model small: Brainstem",
        "Brainstem: 100.00% of the truth inside the region, minimum 100.00%",
        "centres: located 2",
    ]
    world.cut(size_vox=LARGE)
    assert world.said == []


def test_regions_that_keep_too_little_are_not_trained_on_also_at_the_second_try(world: World) -> None:
    for _ in range(2):
        with pytest.raises(InputError, match=r"Brainstem: regions keep 16.67% .* at least 99% .* Enlarge the region"):
            world.cut(size_vox=SMALL)
    world.cut(size_vox=SMALL, min_retention=0.1)  # knowingly, without cutting again
    assert world.said == []


def test_the_middle_of_the_image_may_cut_organs_off(world: World) -> None:
    world.cut(**{"from": "centre"}, fraction=(1.0, 0.1, 0.1))
    assert "below 99 %: a, b" in world.said[1]


def test_regions_of_a_localiser_that_was_trained_again_are_refused(world: World) -> None:
    world.cut(size_vox=LARGE)
    write(world.model / "fold_1" / "checkpoint_final.pth", "other weights")
    with pytest.raises(InputError, match=r"the region of b was located by other weights than .*fold_1"):
        world.cut(size_vox=LARGE)


def test_a_case_that_trained_its_localiser_is_an_error(world: World) -> None:
    write(world.model / "fold_0" / "cases.json", {"train": ["a", "b"], "val": []})
    with pytest.raises(InputError, match="trained on its own validation cases: a"):
        world.cut(size_vox=LARGE)


@pytest.mark.parametrize("what", ["labels", "image", "list", "one more case"])
def test_regions_of_other_images_or_contours_are_refused(world: World, what: str) -> None:
    world.cut(size_vox=LARGE)
    raw = world.roots[0] / "Dataset011_Drawn"
    labels = np.zeros(GRID.shape, np.uint8)
    labels[3:6, 6:12, 6:11] = 1
    match what:
        case "labels":
            write_labels(raw / "labelsTr" / "a.nii.gz", labels, GRID)
        case "image":
            write_image(raw / "imagesTr" / "a_0000.nii.gz", np.ones(GRID.shape, np.float32), GRID)
        case "list":
            write(raw / "present_labels.json", {"a": []})
        case "one more case":
            write_labels(raw / "labelsTr" / "c.nii.gz", labels, GRID)
    case = "c" if what == "one more case" else "a"
    with pytest.raises(
        InputError, match=f"Dataset012_drawn_small was cut from other images or contours of {case} than"
    ):
        world.cut(size_vox=LARGE)


def test_regions_of_other_folds_are_refused(world: World) -> None:
    world.cut(size_vox=LARGE)
    write(world.roots[0] / "Dataset011_Drawn" / "splits_final.json", [{"train": ["a", "b"], "val": []}] * 2)
    with pytest.raises(InputError, match="was cut for other folds than Dataset011_Drawn has now; delete it"):
        world.cut(size_vox=LARGE)


def test_what_was_made_of_an_earlier_cut_goes_with_it(world: World) -> None:
    world.cut(size_vox=LARGE)
    planned = world.roots[1] / world.derived.name
    write(planned / "splits_final.json", json.loads((world.derived / "splits_final.json").read_text()))
    write(planned / "dataset_fingerprint.json", "of the smaller regions")
    write(world.roots[1] / "Dataset011_Drawn" / "dataset_fingerprint.json", "of the source")
    with pytest.raises(InputError, match=r"copies 0 there and 2 on the page.*delete it"):
        world.cut(size_vox=LARGE, copies=2)
    assert planned.exists()
    shutil.rmtree(world.derived)
    world.cut(size_vox=LARGE, copies=2)
    assert not planned.exists()
    assert (world.roots[1] / "Dataset011_Drawn" / "dataset_fingerprint.json").exists()
    world.cut(size_vox=LARGE, copies=2)
    assert world.said == []


def test_a_page_that_asks_for_all_channels_again_does_not_get_regions_of_one(world: World) -> None:
    raw = world.roots[0] / "Dataset011_Drawn"
    described = json.loads((raw / "dataset.json").read_text())
    write(raw / "dataset.json", {**described, "channel_names": {"1": "T1w", "0": "CT"}})
    for case in CASES:
        write_image(raw / "imagesTr" / f"{case}_0001.nii.gz", np.zeros(GRID.shape, np.float32), GRID)
    world.cut(size_vox=LARGE, channels=["CT"])
    world.cut(size_vox=LARGE, channels=["CT"])
    with pytest.raises(InputError, match=r"\(channels CT there and CT, T1w on the page\); delete it"):
        world.cut(size_vox=LARGE)


def test_other_models_to_ask_next_are_refused_before_a_training_and_said_after_it(world: World) -> None:
    world.add_3d()
    world.cut(size_vox=LARGE, with_3d=True, fallback=["3d"])
    with pytest.raises(InputError, match=r'fallback \["3d"\] there and \[\] on the page\); delete it'):
        world.cut(size_vox=LARGE, with_3d=True)
    world.train()
    for with_3d in (True, False):
        world.cut(size_vox=LARGE, with_3d=with_3d)
        assert world.said == [
            f'{world.derived} was cut with fallback ["3d"] there and [] on the page; delete it to cut it anew'
        ]
    with pytest.raises(InputError, match="copies 0 there and 1 on the page"):
        world.cut(size_vox=LARGE, copies=1)


def test_an_organ_that_no_case_contains_is_not_trained_on_also_at_the_second_try(world: World) -> None:
    path = world.roots[0] / "Dataset011_Drawn" / "dataset.json"
    described = json.loads(path.read_text())
    described["labels"]["Pituitary"] = 2
    write(path, described)
    for _ in range(2):
        with pytest.raises(InputError, match=r"no case that .*Dataset012_drawn_small was cut from contains Pituitary"):
            world.cut(size_vox=LARGE, organs=["Brainstem", "Pituitary"])
        assert not any("nan" in line for line in world.said)


def test_regions_of_a_version_that_noted_no_data_are_kept_with_a_word_but_not_without_the_ignore_label(
    world: World,
) -> None:
    world.cut(size_vox=LARGE)
    sidecar = world.roots[0] / "Dataset012_drawn_small" / "regions.json"
    content = json.loads(sidecar.read_text())
    del content["made_from"]
    write(sidecar, content)
    world.cut(size_vox=LARGE)
    assert len(world.said) == 1
    assert "does not say which contours it was cut from" in world.said[0]
    described = json.loads((world.roots[0] / "Dataset011_Drawn" / "dataset.json").read_text())
    described["labels"]["ignore"] = 2
    write(world.roots[0] / "Dataset011_Drawn" / "dataset.json", described)
    with pytest.raises(InputError, match="was cut without the ignore label of Dataset011_Drawn"):
        world.cut(size_vox=LARGE)


def test_a_localiser_that_did_not_note_its_cases_is_warned_of(world: World) -> None:
    for fold in (0, 1):
        (world.model / f"fold_{fold}" / "cases.json").unlink()
    world.cut(size_vox=LARGE)
    assert "2d, fold 0, 1: out-of-fold not provable" in world.said[1]
