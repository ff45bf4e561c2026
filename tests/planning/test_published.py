"""The published preset: the papers' numbers in the plans, networks that stock nnU-Net builds, trainers that agree."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_ext.errors import InputError
from nnunet_ext.planning.axial import ExtPlanner
from nnunet_ext.planning.names import NETWORKS
from nnunet_ext.planning.published import PUBLISHED
from nnunet_ext.settings import TrainerSettings, resolve_settings
from nnunet_ext.training.cascade import nnUNetTrainerExtCascadePublished
from nnunet_ext.training.mirroring import nnUNetTrainerExtNoMirror
from nnunet_ext.training.networks import nnUNetTrainerExtDeepResPublished, nnUNetTrainerExtRASPublished
from nnunet_ext.training.refinement import nnUNetTrainerExtRefinePublished

LIVER = {
    "configuration": "3d_fullres",
    "patch_size": [32, 128, 128],
    "batch_size": 8,
    "spacing": [3.0, 1.0, 1.0],
    "features_per_stage": [16, 32, 64, 128, 256],
    "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2], [2, 2, 2]],
    "window": {"percentile_00_5": -150, "percentile_99_5": 150, "mean": 0, "std": 150},
    "settings": TrainerSettings(
        optimizer="Adam", initial_lr=1e-4, weight_decay=0.0, lr_schedule="constant", batch_size=8, loss="dice",
        deep_supervision=False, augmentation="flips", mirror="auto",
    ),
}  # fmt: skip
CERVIX = {
    "configuration": "3d_fullres",
    "patch_size": [72, 256, 256],
    "batch_size": 1,
    "features_per_stage": [16, 32, 64, 96, 128, 128],
    "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2], [1, 2, 2], [1, 2, 2]],
    "window": {"percentile_00_5": -1024, "percentile_99_5": 576, "mean": -1024, "std": 1600},
    "settings": TrainerSettings(
        optimizer="Adam", initial_lr=1e-4, weight_decay=0.0, lr_schedule="constant", batch_size=1, num_epochs=400,
        num_iterations_per_epoch=250, loss="bce_dice", deep_supervision=False, augmentation="flips_noise",
        mirror="auto",
    ),
}  # fmt: skip
CASCADE = {
    "optimizer": "Adam", "initial_lr": 2e-4, "weight_decay": 0.0, "lr_schedule": "constant", "batch_size": 1,
    "augmentation": "flips_noise", "mirror": "auto", "num_epochs": 150, "early_stop": 30,
}  # fmt: skip
SOFT_TISSUE = {"percentile_00_5": -160, "percentile_99_5": 240, "mean": 40, "std": 200}
PAPERS: dict[str, dict[str, Any]] = {
    "plain": {
        "configuration": "2d",
        "patch_size": [512, 512],
        "batch_size": 11,
        "features_per_stage": [30, 60, 120, 240, 480, 480, 480, 480],
        "strides": [[1, 1], *[[2, 2]] * 7],
        "normalization_schemes": ["ZScoreNormalization"],
        "resampling_fn_data": "no_resampling_hack",
        "settings": TrainerSettings(
            optimizer="Adam", initial_lr=3e-4, lr_schedule="plateau", batch_size=11, num_epochs=600
        ),
    },
    "context": {
        "configuration": "3d_fullres",
        "patch_size": [32, 96, 96],
        "batch_size": 1,
        "spacing": [1.25, 0.8, 0.8],
        "features_per_stage": [16, 32, 64, 128, 256],
        "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2], [1, 2, 2]],
        "window": SOFT_TISSUE,
        "settings": TrainerSettings(**CASCADE, loss="dice"),
    },
    "original": {
        "configuration": "3d_fullres",
        "patch_size": [80, 256, 256],
        "batch_size": 1,
        "spacing": [1.25, 0.8, 0.8],
        "features_per_stage": [32, 64, 128, 256],
        "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]],
        "window": SOFT_TISSUE,
        "settings": TrainerSettings(**CASCADE, deep_supervision=False),
    },
    "ras": LIVER,
    "se": LIVER,
    "se-res": CERVIX,
    "deep-res": {
        "configuration": "2d",
        "patch_size": [256, 256],
        "batch_size": 2,
        "spacing": [1.0, 1.0],
        "features_per_stage": [64, 128, 256, 512],
        "strides": [[1, 1], [2, 2], [2, 2], [2, 2]],
        "window": {"percentile_00_5": -600, "percentile_99_5": 1500, "mean": 450, "std": 1050},
        "settings": TrainerSettings(
            optimizer="Adam", initial_lr=1e-4, weight_decay=0.0, lr_schedule="constant", batch_size=2, loss="dice",
            deep_supervision=False, augmentation="flips", early_stop=50, mirror="auto",
        ),
    },
    "refine:se-res": CERVIX,
}  # fmt: skip
TRAINERS = {
    "ras": nnUNetTrainerExtRASPublished,
    "refine:se-res": nnUNetTrainerExtRefinePublished,
    "context": nnUNetTrainerExtCascadePublished,
    "deep-res": nnUNetTrainerExtDeepResPublished,
}


def test_every_paper_is_looked_at_here():
    assert set(PAPERS) == set(PUBLISHED) < set(NETWORKS)


@pytest.mark.slow
@pytest.mark.parametrize("network", PAPERS)
class TestPlans:
    def test_have_the_papers_numbers(self, planned, network):
        paper = dict(PAPERS[network])
        plans = json.loads(planned(network, "published").read_text())
        configuration = plans["configurations"][paper.pop("configuration")]
        settings = resolve_settings(nnUNetTrainerExtNoMirror, configuration["nnunet_ext"], "test")
        assert settings == paper.pop("settings")
        window = paper.pop("window", {})
        assert window.items() <= plans["foreground_intensity_properties_per_channel"]["0"].items()
        assert configuration["normalization_schemes"] == ["CTNormalization" if window else "ZScoreNormalization"]
        found = {**configuration["architecture"]["arch_kwargs"], **configuration}
        assert {key: found[key] for key in paper} == paper

    def test_have_their_own_name_and_stock_builds_the_network_that_the_default_plans_name(self, planned, network):
        path, name = planned(network, "published"), PAPERS[network]["configuration"]
        usual = planned(network, "default")
        assert path.stem == usual.stem.replace("nnUNetPlansExt", "nnUNetPlansExtPublished")
        managers = [PlansManager(str(file)).get_configuration(name) for file in (path, usual)]
        assert managers[0].network_arch_class_name == managers[1].network_arch_class_name
        with torch.device("meta"):
            unet = nnUNetTrainer.build_network_architecture(PlansManager(str(path)), managers[0], 1, 4, False)
            image = torch.empty(1, 1, *managers[0].patch_size)
        assert unet(image).shape == (1, 4, *managers[0].patch_size)


@pytest.mark.slow
def test_voxel_size_and_name_of_the_caller_go_before_the_papers(planned):
    path = planned("ras", "published", spacing_mm=(4, 2, 2), plans_name="Mine")
    assert path.stem == "Mine"
    assert json.loads(path.read_text())["configurations"]["3d_fullres"]["spacing"] == [4.0, 2.0, 2.0]


@pytest.mark.parametrize("network", TRAINERS)
def test_the_published_trainer_and_the_published_plans_say_the_same(network):
    of_trainer = resolve_settings(TRAINERS[network], {}, "test")
    assert resolve_settings(nnUNetTrainerExtNoMirror, PUBLISHED[network].settings, "test") == of_trainer


@pytest.mark.slow
def test_a_network_without_a_paper_is_refused_with_those_that_have_one(planned):
    with pytest.raises(InputError, match=r"^no paper has trained refine:plain, .*; plain, context, .*se-res have one"):
        planned("refine:plain", "published")


@pytest.mark.slow
def test_a_window_needs_a_ct_channel_and_nothing_is_left_without_one(planned, world, tmp_path, monkeypatch):
    normalize = ExtPlanner.determine_normalization_scheme_and_whether_mask_is_used_for_norm
    monkeypatch.setattr(
        ExtPlanner,
        normalize.__name__,
        lambda self: (["ZScoreNormalization"], normalize(self)[1]),
    )
    with pytest.raises(InputError, match="no channel that is normalised as CT"):
        planned("ras", "published")
    assert not list((tmp_path / world.dataset).glob("nnUNetPlans*"))


def test_a_dataset_without_the_papers_configuration_gets_no_plans(planned, world, tmp_path, monkeypatch):
    stock = ExtPlanner.plan_experiment

    def flat_only(self):
        plans = stock(self)
        path = tmp_path / world.dataset / f"{self.plans_identifier}.json"
        content = json.loads(path.read_text())
        del content["configurations"]["3d_fullres"]
        path.write_text(json.dumps(content))
        return plans

    monkeypatch.setattr(ExtPlanner, "plan_experiment", flat_only)
    with pytest.raises(InputError, match="no configuration 3d_fullres"):
        planned("ras", "published")
    assert not list((tmp_path / world.dataset).glob("nnUNetPlans*"))
