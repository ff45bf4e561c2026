from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nnunet_ext.errors import InputError
from nnunet_ext.planning import plan
from nnunet_ext.planning.cpu import TRAINING, ExtPlannerCPU, patch_within
from nnunet_ext.settings import TrainerSettings

# --- patches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("budget_vox", "shape", "spacing"),
    [
        (72 * 72, (128, 128), (3.9, 3.9)),
        (32 * 48 * 48, (105, 512, 512), (3.0, 1.0, 1.0)),
        (32 * 48 * 48, (60, 90, 90), (2.5, 3.9, 3.9)),
        (32 * 48 * 48, (20, 40, 40), (3.0, 1.0, 1.0)),
        (4096, (5, 9, 300), (1.0, 1.0, 1.0)),
    ],
)
def test_a_patch_keeps_the_budget_fits_the_images_and_can_be_pooled(budget_vox, shape, spacing):
    patch = patch_within(budget_vox, shape, spacing)
    assert math.prod(patch) <= budget_vox
    assert all(edge % 8 == 0 and edge >= 8 for edge in patch)
    assert all(edge <= math.ceil(n / 8) * 8 for edge, n in zip(patch, shape, strict=True))


def test_a_patch_is_a_slab_half_as_high_as_wide_in_mm_where_the_images_allow_it():
    assert patch_within(32 * 48 * 48, (78, 69, 70), (2.5, 3.9, 3.9)) == [32, 48, 48]
    assert patch_within(24 * 48 * 48, (200, 512, 512), (1.0, 1.0, 1.0)) == [24, 48, 48]


def test_a_two_dimensional_patch_is_square_in_mm():
    assert patch_within(24 * 48, (512, 512), (1.0, 0.5)) == [24, 48]


def test_a_patch_that_could_be_the_whole_image_is():
    assert patch_within(10**6, (20, 40, 40), (3.0, 1.0, 1.0)) == [24, 40, 40]


def test_what_one_axis_cannot_use_the_others_get():
    flat = patch_within(32 * 48 * 48, (8, 512, 512), (3.0, 1.0, 1.0))
    assert flat[0] == 8
    assert flat[1] > 48


def test_a_budget_below_the_smallest_patch_gives_the_smallest_patch():
    assert patch_within(1, (40, 40, 40), (3.0, 1.0, 1.0)) == [8, 8, 8]


def test_the_training_block_is_made_of_valid_settings():
    assert TrainerSettings(**TRAINING).optimizer == "AdamW"


# --- plans that were written -----------------------------------------------------------------------------------------


@pytest.fixture
def planned(world: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The plans of the tiny world in a folder of the test, so that they may be changed."""
    for name, value in world.environment.items():
        if name.startswith("nnUNet_"):
            monkeypatch.setenv(name, value)
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    folder = tmp_path / world.dataset
    folder.mkdir()
    for name in ("dataset_fingerprint.json", "dataset.json"):
        shutil.copy(world.preprocessed / name, folder / name)
    plan.make_plans(901, "cpu")
    return folder / "nnUNetPlansExtCPU.json"


def configuration(path: Path, name: str = "3d_fullres") -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())["configurations"][name]
    return content


def built_network(settings: dict[str, Any]) -> Any:
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    architecture = settings["architecture"]
    return get_network_from_plans(
        architecture["network_class_name"],
        architecture["arch_kwargs"],
        architecture["_kw_requires_import"],
        1,
        4,
        deep_supervision=False,
    )


@pytest.mark.slow
class TestPlans:
    def test_there_is_one_2d_and_one_3d_configuration(self, planned):
        assert set(json.loads(planned.read_text())["configurations"]) == {"2d", "3d_fullres"}

    @pytest.mark.parametrize("name", ["2d", "3d_fullres"])
    def test_every_configuration_has_the_training_block_and_batch_dice(self, planned, name):
        settings = configuration(planned, name)
        assert settings["nnunet_ext"] == TRAINING
        assert settings["batch_dice"] is True
        assert settings["batch_size"] == ExtPlannerCPU.batch_size[len(settings["patch_size"])]

    @pytest.mark.parametrize(("name", "patch"), [("2d", [40, 40]), ("3d_fullres", [24, 40, 40])])
    def test_the_network_can_be_built_and_keeps_the_patch(self, planned, name, patch):
        import torch

        settings = configuration(planned, name)
        assert settings["patch_size"] == patch
        with torch.no_grad():
            assert built_network(settings)(torch.zeros(1, 1, *patch)).shape == (1, 4, *patch)

    def test_a_second_planning_changes_nothing(self, planned):
        before = planned.read_text()
        assert plan.make_plans(901, "cpu") == "nnUNetPlansExtCPU"
        assert planned.read_text() == before

    def test_plans_can_have_another_name(self, planned):
        assert plan.make_plans(901, "cpu", plans_name="mine") == "mine"
        assert json.loads(planned.with_name("mine.json").read_text())["plans_name"] == "mine"

    def test_the_planner_survives_a_training_setting_of_zero_workers(self, planned, monkeypatch):
        monkeypatch.setenv("nnUNet_n_proc_DA", "0")
        assert plan.make_plans(901, "default") == "nnUNetPlansExt"
        assert json.loads(planned.with_name("nnUNetPlansExt.json").read_text())["transpose_forward"] == [0, 1, 2]

    def test_an_unknown_dataset_is_refused_with_what_to_do(self, planned):
        with pytest.raises(InputError, match=r"^Could not find a dataset with the ID 777; convert it first"):
            plan.dataset_name(777)


@pytest.mark.slow
class TestOverride:
    def test_a_patch_comes_with_the_strides_that_fit_it(self, planned):
        import torch

        plan.override(901, planned.stem, "3d_fullres", {"patch_size": [16, 64, 64]})
        settings = configuration(planned)
        network = settings["architecture"]["arch_kwargs"]
        assert settings["patch_size"] == [16, 64, 64]
        assert network["strides"] == [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2], [1, 2, 2]]
        assert network["n_stages"] == 5 == len(network["features_per_stage"]) == len(network["n_conv_per_stage"])
        with torch.no_grad():
            assert built_network(settings)(torch.zeros(1, 1, 16, 64, 64)).shape == (1, 4, 16, 64, 64)

    def test_another_patch_leaves_the_number_of_convolutions(self, planned):
        plan.override(901, planned.stem, "3d_fullres", {"patch_size": [16, 64, 64]})
        network = configuration(planned)["architecture"]["arch_kwargs"]
        assert set(network["n_conv_per_stage"]) == set(network["n_conv_per_stage_decoder"]) == {1}

    def test_features_double_up_to_their_limit(self, planned):
        plan.override(901, planned.stem, "2d", {"base_features": 6, "max_features": 20})
        assert configuration(planned, "2d")["architecture"]["arch_kwargs"]["features_per_stage"] == [6, 12, 20, 20]

    def test_without_resampling_every_image_keeps_its_grid(self, planned):
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        plan.override(901, planned.stem, "3d_fullres", {"resampling": False})
        settings = PlansManager(json.loads(planned.read_text())).get_configuration("3d_fullres")
        for function in ("data", "seg", "probabilities"):
            resample = getattr(settings, f"resampling_fn_{function}")
            assert resample("unchanged", (1, 1, 1), (3, 1, 1), (1, 1, 1)) == "unchanged"

    def test_normalization_is_replaced_for_every_channel(self, planned):
        plan.override(901, planned.stem, "2d", {"normalization": "ZScoreNormalization"})
        assert configuration(planned, "2d")["normalization_schemes"] == ["ZScoreNormalization"]

    def test_none_leaves_everything_and_the_file_untouched(self, planned):
        before, when = planned.read_text(), planned.stat().st_mtime_ns
        nothing = {"patch_size": None, "base_features": None, "max_features": None, "resampling": True}
        plan.override(901, planned.stem, "2d", {**nothing, "normalization": None})
        assert (planned.read_text(), planned.stat().st_mtime_ns) == (before, when)

    def test_the_same_choice_twice_is_the_same_as_once(self, planned):
        wanted = {"patch_size": [16, 64, 64], "base_features": 6, "max_features": 20, "resampling": False}
        plan.override(901, planned.stem, "3d_fullres", wanted)
        once = planned.read_text()
        plan.override(901, planned.stem, "3d_fullres", wanted)
        assert planned.read_text() == once

    def test_the_other_configuration_stays(self, planned):
        before = configuration(planned, "2d")
        plan.override(901, planned.stem, "3d_fullres", {"base_features": 6})
        assert configuration(planned, "2d") == before

    def test_an_unknown_configuration_is_refused_with_those_that_there_are(self, planned):
        with pytest.raises(InputError, match="no configuration 3d_lowres; it has 2d, 3d_fullres"):
            plan.override(901, planned.stem, "3d_lowres", {})


@pytest.mark.slow
class TestWriteSettings:
    def test_settings_are_added_to_the_block_of_one_configuration(self, planned):
        plan.write_settings(901, planned.stem, "2d", {"num_epochs": 3, "seed": 4})
        assert configuration(planned, "2d")["nnunet_ext"] == {**TRAINING, "num_epochs": 3, "seed": 4}
        assert configuration(planned)["nnunet_ext"] == TRAINING

    @pytest.mark.parametrize("wrong", [{"epochs": 3}, {"num_epochs": "3"}])
    def test_a_wrong_setting_is_refused_before_it_is_written(self, planned, wrong):
        before = planned.read_text()
        with pytest.raises(InputError, match=r"settings of 2d: .*Valid keys: num_epochs"):
            plan.write_settings(901, planned.stem, "2d", wrong)
        assert planned.read_text() == before

    def test_an_unknown_configuration_is_refused(self, planned):
        with pytest.raises(InputError, match="no configuration 4d"):
            plan.write_settings(901, planned.stem, "4d", {})

    def test_settings_that_are_there_already_do_not_touch_the_file(self, planned):
        when = planned.stat().st_mtime_ns
        plan.write_settings(901, planned.stem, "2d", {"optimizer": "AdamW"})
        assert planned.stat().st_mtime_ns == when
