from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from nnunet_ext.errors import InputError
from nnunet_ext.recipe.schema import Planning, Recipe, locators_of, published

Page = dict[str, Any]
Write = Callable[..., Path]


def page() -> Page:
    """2d on whole images, 3d in the middle, small where 2d or 3d find the chiasm."""
    return {
        "name": "drawn",
        "title": "A drawn recipe.",
        "dataset": 11,
        "organs": ["Brainstem", "OpticChiasm"],
        "folds": [0, 1],
        "models": {
            "small": {"dataset": 13, "configuration": "3d_fullres", "region": small_region()},
            "2d": {"dataset": 11, "configuration": "2d"},
            "3d": {
                "dataset": 12,
                "configuration": "3d_fullres",
                "region": {"organs": ["Brainstem", "OpticChiasm"], "from": "centre", "fraction": [1.0, 0.5, 0.5]},
            },
        },
    }


def small_region() -> Page:
    return {"organs": ["OpticChiasm"], "from": "2d", "fallback": ["3d"], "size_vox": [8, 16, 16]}


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """A function that writes the page, changed at dotted keys, and returns its file."""

    def make(**changes: Any) -> Path:
        content = page()
        for key, value in changes.items():
            *parents, last = key.split("__")
            target = content
            for parent in parents:
                target = target[parent]
            target[last] = value
        path = tmp_path / "drawn.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    return make


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        Recipe.load(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", published())
def test_every_published_recipe_loads_under_its_own_name(name: str) -> None:
    recipe = Recipe.load(name)
    assert recipe.name == name
    assert set(recipe.in_order()) == set(recipe.models)
    assert recipe.source


def test_the_published_preset_needs_a_network_with_a_paper() -> None:
    assert Planning(preset="published", network="ras").preset == "published"
    with pytest.raises(ValueError, match=r"no paper has trained refine:plain, .* refine:se-res have one"):
        Planning(preset="published", network="refine:plain")


def test_the_recipe_of_the_paper_has_22_organs_and_the_owners_of_the_paper() -> None:
    recipe = Recipe.load("structseg2019_han")
    assert isinstance(recipe.fusion.owners, dict)
    owner_of_label = {i: recipe.fusion.owners[organ] for i, organ in enumerate(recipe.organs, 1)}
    of_2d, of_small = {4, 5, 6, 15, 16, 19}, {8, 11}
    assert owner_of_label == {i: "2d" if i in of_2d else "small" if i in of_small else "3d" for i in range(1, 23)}


def test_the_recipe_of_the_paper_has_the_label_order_the_patches_and_the_optimiser_of_the_paper() -> None:
    recipe = Recipe.load("structseg2019_han")
    assert [recipe.organs[i - 1] for i in (1, 4, 8, 11, 15, 20, 22)] == [
        "Brainstem",
        "Lens_L",
        "OpticChiasm",
        "Pituitary",
        "Ear_Internal_R",
        "SpinalCord",
        "Bone_Mandible_R",
    ]
    small = recipe.models["small"]
    assert small.region is not None
    assert (small.planning.patch_size, small.region.size_vox) == ((16, 64, 64), (16, 64, 64))
    assert (small.region.source, small.region.organs) == ("2d", ("OpticChiasm", "Pituitary"))
    assert [recipe.models[m].settings["batch_size"] for m in ("2d", "3d", "small")] == [11, 2, 2]
    assert all(m.settings["optimizer"] == "Adam" for m in recipe.models.values())
    assert all(m.settings["initial_lr"] == 3e-4 for m in recipe.models.values())
    assert all(not m.planning.resampling for m in recipe.models.values())
    assert {m.trainer for m in recipe.models.values()} == {"nnUNetTrainerExtNoMirror"}


def test_models_come_after_the_models_that_locate_their_region(write: Write) -> None:
    recipe = Recipe.load(write())
    assert recipe.in_order() == ["2d", "3d", "small"]
    assert [locators_of(recipe.models[m]) for m in recipe.in_order()] == [(), (), ("2d", "3d")]


def test_a_model_can_own_the_organs_of_its_region_in_the_order_of_the_recipe(write: Write) -> None:
    recipe = Recipe.load(write())
    assert recipe.organs_of("small") == ("OpticChiasm",)
    assert recipe.organs_of("2d") == ("Brainstem", "OpticChiasm")


def test_the_digest_changes_with_the_content_and_not_with_the_file(write: Write, tmp_path: Path) -> None:
    first = Recipe.load(write())
    copy = tmp_path / "copy.yml"
    copy.write_text(write().read_text() + "\n# a comment\n")
    assert Recipe.load(copy).digest == first.digest
    assert Recipe.load(write(models__2d__settings={"num_epochs": 3})).digest != first.digest


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"organ": ["Brainstem"]}, ["organ", "Extra inputs"]),
        ({"models__2d__epochs": 3}, ["models.2d.epochs"]),
        ({"models__2d__planning": {"patch": [8, 8]}}, ["models.2d.planning.patch"]),
        ({"models__2d__planning": {"preset": "cpu", "gpu_gb": 8}}, ["models.2d.planning", "no meaning"]),
        ({"models__2d__settings": {"num_epoch": 3}}, ["models.2d.settings", "num_epoch", "num_epochs"]),
        ({"models__2d__settings": {"num_epochs": "three"}}, ["models.2d.settings", "'three'"]),
        ({"fusion": {"owners": {"Brainstem": "2d", "OpticChiasm": "4d"}}}, ["OpticChiasm: 4d"]),
        ({"fusion": {"owners": {"Brainstem": "2d", "Eye_L": "2d"}}}, ["Eye_L"]),
        ({"fusion": {"owners": {"Brainstem": "2d"}}}, ["no owner for OpticChiasm"]),
        ({"fusion": {"owners": {"Brainstem": "small", "OpticChiasm": "2d"}}}, ["small has no Brainstem"]),
        ({"fusion": {"first": ["Eye_L"]}}, ["fusion.first", "Eye_L"]),
        ({"fusion": {"on_conflict": "probability"}}, ["fusion.on_conflict"]),
        ({"organs": ["Brainstem", "OpticChiasm", "Brainstem"]}, ["list one organ twice"]),
        ({"organs": []}, ["organs"]),
        ({"folds": [0, 0]}, ["list one fold twice"]),
        ({"folds": [-1]}, ["folds.0"]),
        ({"folds": []}, ["folds"]),
        ({"device": "tpu"}, ["device"]),
        ({"name": "../elsewhere"}, ["name"]),
        ({"models": {}}, ["models"]),
        ({"models__a/b": {"dataset": 11, "configuration": "2d"}}, ["models"]),
        ({"models__2d__dataset": 1000}, ["models.2d.dataset"]),
        ({"models__small__dataset": 11}, ["small", "number of its own, not 11"]),
        ({"models__small__dataset": 12}, ["number of its own, not 12"]),
        ({"models__small__region": {**small_region(), "from": "truth", "fallback": []}}, ["small", '"truth"']),
        ({"models__small__region": {**small_region(), "from": "4d"}}, ["located by 4d"]),
        ({"models__small__region": {**small_region(), "from": "small"}}, ["located by small"]),
        ({"models__small__region": {**small_region(), "fallback": ["4d"]}}, ["located by 4d"]),
        ({"models__small__region": {**small_region(), "organs": ["Eye_L"]}}, ["Eye_L"]),
        ({"models__small__region": {**small_region(), "size_mm": [9.0, 9.0, 9.0]}}, ["exactly one of size_mm"]),
        ({"models__small__region": {"organs": ["OpticChiasm"], "from": "2d"}}, ["exactly one of size_mm"]),
        ({"models__small__region": {**small_region(), "size_vox": [0, 4, 4]}}, ["must be positive"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_a_page_that_does_not_fit_is_refused_in_one_sentence_that_names_file_and_place(
    write: Write, changes: Page, named: list[str]
) -> None:
    message = refusal(write(**changes))
    assert [text for text in named if text not in message] == [], message


def test_two_models_that_would_write_into_one_place_are_refused(write: Write) -> None:
    like_2d = {"dataset": 11, "configuration": "2d"}
    message = refusal(write(models__wide={**like_2d, "settings": {"num_epochs": 10}}))
    assert "models 2d and wide share dataset, trainer, plans and configuration" in message
    assert "nnUNetTrainerExtNoMirror__nnUNetPlansExt__2d" in message
    other = {**like_2d, "trainer": "nnUNetTrainerExt"}
    for asks in ({"settings": {"num_epochs": 10}}, {"planning": {"base_features": 8}}):
        message = refusal(write(models__wide={**other, **asks}))
        assert "share configuration 2d of plans nnUNetPlansExt and ask for other planning or settings" in message
    for apart in (other, {**like_2d, "plans": "nnUNetPlansExtWide"}, {**like_2d, "configuration": "3d_fullres"}):
        assert "wide" in Recipe.load(write(models__wide=apart)).models


def test_a_model_cannot_predict_with_folds_that_nobody_trains(write: Write) -> None:
    changed = write(models__2d={"dataset": 11, "configuration": "2d", "folds": [1, 4]})
    assert "model 2d: folds (1, 4) are not all trained" in refusal(changed)


def test_regions_that_locate_each_other_are_refused_before_anything_is_trained(write: Write) -> None:
    circle = {"organs": ["OpticChiasm"], "from": "small", "size_vox": [8, 16, 16]}
    assert "in a circle" in refusal(write(models__3d__region=circle))


def test_a_missing_file_names_the_published_recipes(tmp_path: Path) -> None:
    assert "structseg2019_han" in refusal(tmp_path / "missing.yaml")
    with pytest.raises(InputError, match=r"no recipe drawn; .*openkbp_han_cpu"):
        Recipe.load("drawn")


@pytest.mark.parametrize(
    ("content", "cause"),
    [(b"name: [1, 2", "no valid YAML"), (b"", "dictionary"), (b"- a\n- b\n", "dictionary"), (b"name: \xff", "UTF-8")],
)
def test_a_file_that_is_no_yaml_page_is_refused(tmp_path: Path, content: bytes, cause: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    assert cause in refusal(path)


def test_a_yaml_page_cannot_run_code(tmp_path: Path) -> None:
    path = tmp_path / "evil.yaml"
    path.write_text(f"name: !!python/object/apply:os.mkdir ['{tmp_path / 'ran'}']\n")
    refusal(path)
    assert not (tmp_path / "ran").exists()
