from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnunet_ext.conversion.source import Source
from nnunet_ext.errors import InputError
from nnunet_ext.fusion.rules import FusionTable
from nnunet_ext.geometry import Grid
from nnunet_ext.io.nifti import read_labels, write_image, write_labels
from nnunet_ext.phantom import ORGANS
from nnunet_ext.recipe import demo
from nnunet_ext.recipe.demo import MARGIN_MM, RECIPE, draw_phantoms, fitted_recipe, phantom_labels
from nnunet_ext.recipe.schema import Recipe

SPACING_MM = (3.0, 1.0, 1.0)
GRID = Grid((8, 12, 16), SPACING_MM)
LABELS = "Liver=7,Gallbladder=9,Spleen=4"
"""Numbers in the files; the dataset renumbers them 1 to 3."""


def draw(folder: Path, count: int, gallbladder_from: int = 0) -> None:
    """Cases with a large liver, a spleen and a gallbladder of 2 × 3 × 4 voxels (6 × 3 × 4 mm)."""
    for i in range(count):
        labels = np.zeros(GRID.shape, np.uint8)
        labels[1:7, 2:10, 2:8] = 7
        labels[1:5, 2:6, 10:14] = 4
        if i >= gallbladder_from:
            labels[3:5, 7:10, 10:14] = 9
        image = np.where(labels > 0, labels * 10.0, -1000.0) + np.random.default_rng(i).normal(0, 5, GRID.shape)
        write_image(folder / "images" / f"case_{i}.nii.gz", image.astype(np.float32), GRID)
        write_labels(folder / "labels" / f"case_{i}.nii.gz", labels, GRID)


def source_of(folder: Path, labels: str = LABELS) -> Source:
    source: Source = importlib.import_module("nnunet_ext.dataset_conversion.nifti").open_source(folder, labels)
    return source


@pytest.fixture
def data(tmp_path: Path) -> Path:
    draw(tmp_path / "data", 7)
    return tmp_path / "data"


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Training and prediction replaced by notes of what they were asked for; nnU-Net's variables are put back."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, "elsewhere")
    monkeypatch.setenv("nnUNet_def_n_proc", "1")
    asked: dict[str, Any] = {}

    def judge(recipe: Recipe, split: demo.Split, output: Path, say: Any) -> None:
        asked["split"] = split

    def train(recipe: Recipe, at_once: int, say: Any) -> FusionTable | None:
        asked["recipe"] = recipe
        return None

    monkeypatch.setattr(demo, "_judge", judge)
    monkeypatch.setattr(demo, "train", train)
    return asked


def test_the_phantom_gets_the_recipe_of_the_demo_as_it_is(data: Path) -> None:
    source = dataclasses.replace(source_of(data), organs=dict(ORGANS))
    assert fitted_recipe(source) == Recipe.load(RECIPE)


def test_other_organs_get_a_region_around_their_smallest_with_a_margin_on_all_sides(data: Path) -> None:
    recipe = fitted_recipe(source_of(data))
    assert (recipe.name, recipe.organs) == ("demo_data", ("Liver", "Gallbladder", "Spleen"))
    region = recipe.models["small"].region
    assert region is not None
    assert (region.organs, region.source, region.fallback) == (("Gallbladder",), "3d", ("2d",))
    assert region.size_mm == tuple(extent + 2 * MARGIN_MM for extent in (6.0, 3.0, 4.0))
    assert recipe.fusion.first == ("Gallbladder",)
    assert recipe.in_order() == Recipe.load(RECIPE).in_order()


def test_an_organ_that_only_some_cases_have_can_be_the_smallest(tmp_path: Path) -> None:
    draw(tmp_path / "data", 6, gallbladder_from=5)
    region = fitted_recipe(source_of(tmp_path / "data")).models["small"].region
    assert region is not None
    assert region.organs == ("Gallbladder",)


def test_cases_without_any_contour_are_refused(tmp_path: Path) -> None:
    draw(tmp_path / "data", 6)
    for path in (tmp_path / "data" / "labels").iterdir():
        write_labels(path, np.zeros(GRID.shape, np.uint8), GRID)
    with pytest.raises(InputError, match="holds no contour of any organ"):
        fitted_recipe(source_of(tmp_path / "data"))


def test_fewer_than_six_labelled_cases_are_refused(tmp_path: Path, untrained: dict[str, Any]) -> None:
    draw(tmp_path / "data", 5)
    with pytest.raises(InputError, match="holds 5 labelled cases; the demo needs at least 6"):
        demo.run(source_of(tmp_path / "data"), tmp_path / "out", print)
    assert untrained == {}


def test_the_last_fifth_of_the_cases_is_never_converted_and_keeps_its_truth(
    data: Path, tmp_path: Path, untrained: dict[str, Any]
) -> None:
    said: list[str] = []
    demo.run(source_of(data), tmp_path / "out", said.append)
    assert [case.identifier for case in untrained["split"].unseen] == ["case_6"]
    assert "6 cases to train on, 1 kept unseen" in said
    dataset = tmp_path / "out" / "nnunet" / "raw" / "Dataset901_Demo"
    assert sorted(p.name for p in (dataset / "labelsTr").iterdir()) == [f"case_{i}.nii.gz" for i in range(6)]
    unseen = tmp_path / "out" / "unseen"
    assert [p.name for p in (unseen / "images").iterdir()] == ["case_6_0000.nii.gz"]
    labels, _ = read_labels(unseen / "labels" / "case_6.nii.gz")
    truth, _ = read_labels(data / "labels" / "case_6.nii.gz")
    np.testing.assert_array_equal(labels, np.select([truth == 7, truth == 9, truth == 4], [1, 2, 3]))


def test_a_damaged_training_case_is_named_and_a_damaged_unseen_case_stops_before_training(
    data: Path, tmp_path: Path, untrained: dict[str, Any]
) -> None:
    def cut(name: str) -> None:
        path = data / "images" / name
        path.write_bytes(path.read_bytes()[:200])

    said: list[str] = []
    cut("case_2.nii.gz")
    demo.run(source_of(data), tmp_path / "out", said.append)
    assert any(line.startswith("case_2 is left out: ") and "truncated" in line for line in said)
    untrained.clear()
    cut("case_6.nii.gz")
    with pytest.raises(InputError, match=r"case_6\.nii\.gz is truncated or damaged"):
        demo.run(source_of(data), tmp_path / "other", said.append)
    assert untrained == {}


def test_phantoms_are_drawn_once_and_what_is_missing_is_drawn_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []

    def draw_small(seed: int) -> tuple[np.ndarray, np.ndarray, Grid]:
        drawn.append(seed)
        return np.zeros(GRID.shape, np.float32), np.zeros(GRID.shape, np.uint8), GRID

    monkeypatch.setattr(demo, "draw_case", draw_small)
    draw_phantoms(tmp_path)
    count = demo.TRAINING_PHANTOMS + demo.UNSEEN_PHANTOMS
    assert drawn == list(range(count))
    assert len(list((tmp_path / "images").iterdir())) == len(list((tmp_path / "labels").iterdir())) == count
    draw_phantoms(tmp_path)
    assert len(drawn) == count
    (tmp_path / "labels" / "phantom_004.nii.gz").unlink()
    draw_phantoms(tmp_path)
    assert drawn[count:] == [4]


def test_the_phantoms_labels_are_what_the_converter_reads(tmp_path: Path) -> None:
    draw(tmp_path, 1)
    assert source_of(tmp_path, phantom_labels()).organs == ORGANS
