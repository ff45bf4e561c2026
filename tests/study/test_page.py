from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from nnunet_ext.errors import InputError
from nnunet_ext.locations import trainers_folder
from nnunet_ext.planning.cpu import TRAINING
from nnunet_ext.recipe.schema import Recipe, published
from nnunet_ext.settings import QualitySettings, TrainerSettings, resolve_settings
from nnunet_ext.study.data import merged
from nnunet_ext.study.page import Study, load_page
from nnunet_ext.training import quality_literal  # both are in it

PAGE: dict[str, Any] = {
    "name": "drawn",
    "title": "A study.",
    "dataset": 301,
    "held_out": "test",
    "configuration": "2d",
    "levels": [{"voxels": [1, 8]}, {"mm": [1.5, 2.5]}],
    "ratios": [0.25, 0.5],
    "seeds": [1, 2, 3],
    "methods": {"plain": {}, "oracle": {"cases": "clean"}},
}


def study(**changes: Any) -> Study:
    return Study.model_validate({**PAGE, **changes})


def refusal(**changes: Any) -> str:
    with pytest.raises(ValueError, match=r".") as caught:
        study(**changes)
    return str(caught.value)


@pytest.mark.parametrize("name", published("study"))
def test_every_published_study_loads_under_its_own_name_and_its_trainers_exist(name: str) -> None:
    page = load_page(name)
    assert isinstance(page, Study)
    assert page.name == name
    for method in page.methods.values():
        assert (trainers_folder() / f"{method.trainer}.py").exists()


def test_the_published_study_has_the_papers_rows() -> None:
    page = Study.load("jsrt_quality")
    assert [row.folder for row in page.rows] == ["clean"] + [
        f"voxels{level}_{ratio}" for level in ("1-8", "5-13") for ratio in (25, 50, 75)
    ]
    assert list(page.structures) == ["lung", "heart", "clavicle"]
    assert page.held_out == "test"


def settings_of(page: Study, method: str) -> TrainerSettings:
    planned = TRAINING if page.planning.preset == "cpu" else {}
    block = merged(merged(planned, page.settings), page.methods[method].settings)
    return resolve_settings(getattr(quality_literal, page.methods[method].trainer), block, method)


@pytest.mark.parametrize(
    ("name", "methods"),
    [
        ("jsrt_quality", ["plain-bce", "qam", "qam-ocm"]),
        ("jsrt_quality", ["plain", "recommended", "oracle"]),
        ("hippocampus_quality_cpu", ["plain", "qam", "qam-ocm", "recommended", "oracle"]),
        ("openkbp_quality_cpu", ["plain", "qam", "qam-ocm", "recommended", "oracle"]),
    ],
)
def test_methods_that_are_compared_differ_by_their_weights_alone(name: str, methods: list[str]) -> None:
    page = Study.load(name)
    found = {method: settings_of(page, method) for method in methods}
    assert len({settings.model_dump_json(exclude={"quality"}) for settings in found.values()}) == 1
    for method in {"plain", "oracle", "plain-bce"} & set(methods):
        assert found[method].quality.burn_in == 1  # equal weights to the end
    assert [method for method in methods if page.methods[method].cases == "clean"] == ["oracle"] * ("oracle" in methods)


@pytest.mark.parametrize("name", ["hippocampus_quality_cpu", "openkbp_quality_cpu"])
def test_slices_of_small_organs_compete(name: str) -> None:
    assert settings_of(Study.load(name), "recommended").quality == QualitySettings(min_foreground=20)


def test_a_recipe_is_still_a_recipe_and_no_study_is_one() -> None:
    assert isinstance(load_page("demo_phantom_cpu"), Recipe)
    assert not set(published()) & set(published("study"))
    with pytest.raises(InputError, match="no recipe jsrt_quality"):
        Recipe.load("jsrt_quality")


def test_rows_are_the_clean_one_and_levels_by_ratios() -> None:
    assert [row.folder for row in study().rows] == [
        "clean", "voxels1-8_25", "voxels1-8_50", "mm1p5-2p5_25", "mm1p5-2p5_50",
    ]  # fmt: skip
    assert [row.folder for row in study(without_noise=False, levels=[{"voxels": [1, 2]}], ratios=[0.125]).rows] == [
        "voxels1-2_12p5"
    ]


def test_knowing_the_clean_cases_says_nothing_without_noise() -> None:
    page = study()
    assert page.methods_of(page.rows[0]) == ["plain"]
    assert page.methods_of(page.rows[1]) == ["plain", "oracle"]


def test_a_seed_draws_the_noise() -> None:
    page = study()
    noise = page.noise(page.rows[3], 2)
    assert noise is not None
    assert (noise.ratio, noise.low, noise.high, noise.unit, noise.seed) == (0.25, 1.5, 2.5, "mm", 2)
    assert page.noise(page.rows[0], 2) is None


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"levels": [{"voxels": [3, 1]}]}, "smaller first"),
        ({"levels": [{"voxels": [1, 2], "mm": [1, 2]}]}, "give voxels"),
        ({"levels": []}, "belong together"),
        ({"levels": [], "ratios": [], "without_noise": False}, "nothing to train"),
        ({"seeds": [1, 1]}, "one seed twice"),
        ({"ratios": [0.5, 0]}, "greater than 0"),
        ({"methods": {"plain_x": {}}}, "plain_x"),
        ({"methods": {"plain": {"settings": {"epochs": 3}}}}, "Valid keys"),
        ({"settings": {"epochs": 3}}, "Valid keys"),
        ({"settings": {"seed": 3}}, "sets seed itself"),
        ({"methods": {"plain": {"settings": {"early_stop": 3}}}}, "would look at test cases"),
        ({"models": {}}, "models"),
        ({"levels": [{"mm": [5, float("inf")]}]}, "5 to inf mm"),
        ({"structures": {"lung": []}}, "structures.lung"),
    ],
)
def test_what_makes_no_sense_is_refused(changes: dict[str, Any], part: str) -> None:
    assert part in refusal(**changes)


def test_a_faulty_page_is_named_with_all_faults(tmp_path: Path) -> None:
    path = tmp_path / "page.yaml"
    path.write_text(yaml.safe_dump({**PAGE, "dataset": 0, "device": "abacus"}))
    with pytest.raises(InputError, match=r"page\.yaml: dataset: .*; device: "):
        load_page(path)
