"""Trainers that choose the network: what they build, that they train, and that stock prediction loads the result."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from nnunet_ext.errors import InputError
from nnunet_ext.locations import expose_trainers
from nnunet_ext.networks.deep_res_unet import DeepResUNet
from nnunet_ext.networks.ras_unet import RASUNet
from nnunet_ext.networks.refinement_unet import RefinementUNet
from nnunet_ext.networks.se_res_unet import SEResUNet
from nnunet_ext.settings import TrainerSettings, resolve_settings
from nnunet_ext.training.checkpoint import plain, read_checkpoint
from nnunet_ext.training.networks import (
    nnUNetTrainerExtDeepRes,
    nnUNetTrainerExtDeepResPublished,
    nnUNetTrainerExtRAS,
    nnUNetTrainerExtRASPublished,
    nnUNetTrainerExtSERes,
    path_of,
)
from nnunet_ext.training.refinement import nnUNetTrainerExtRefine, nnUNetTrainerExtRefinePublished

REGIONS = {"labels": {"background": 0, "both": [1, 2], "jaw": 3}, "regions_class_order": [1, 3]}
CLASSES = {
    nnUNetTrainerExtRAS: RASUNet,
    nnUNetTrainerExtRASPublished: RASUNet,
    nnUNetTrainerExtSERes: SEResUNet,
    nnUNetTrainerExtDeepRes: DeepResUNet,
    nnUNetTrainerExtDeepResPublished: DeepResUNet,
    nnUNetTrainerExtRefine: RefinementUNet,
    nnUNetTrainerExtRefinePublished: RefinementUNet,
}
ONLY_3D = (nnUNetTrainerExtRAS, nnUNetTrainerExtRASPublished)
CASES = [
    (trainer, configuration)
    for trainer in CLASSES
    for configuration in ("3d_fullres", "2d")
    if not (configuration == "2d" and trainer in ONLY_3D)
]


def name_of(value: Any) -> str | None:
    return value.__name__.removeprefix("nnUNetTrainerExt") if isinstance(value, type) else None


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "trainer", [nnUNetTrainerExtRAS, nnUNetTrainerExtSERes, nnUNetTrainerExtDeepRes, nnUNetTrainerExtRefine]
)
def test_only_the_network_and_the_mirrors_differ_from_nnunet(trainer):
    assert resolve_settings(trainer, {}, "test") == TrainerSettings(mirror="auto")


def test_the_published_ras_settings():
    assert resolve_settings(nnUNetTrainerExtRASPublished, {}, "test") == TrainerSettings(
        optimizer="Adam",
        initial_lr=1e-4,
        weight_decay=0.0,
        lr_schedule="constant",
        batch_size=8,
        loss="dice",
        deep_supervision=False,
        augmentation="flips",
        mirror="auto",
    )


def test_the_published_deep_residual_settings():
    assert resolve_settings(nnUNetTrainerExtDeepResPublished, {}, "test") == TrainerSettings(
        optimizer="Adam",
        initial_lr=1e-4,
        weight_decay=0.0,
        lr_schedule="constant",
        batch_size=2,
        loss="dice",
        deep_supervision=False,
        augmentation="flips",
        early_stop=50,
        mirror="auto",
    )


def test_the_published_refinement_settings_make_a_hundred_thousand_steps():
    settings = resolve_settings(nnUNetTrainerExtRefinePublished, {}, "test")
    assert settings == TrainerSettings(
        optimizer="Adam",
        initial_lr=1e-4,
        weight_decay=0.0,
        lr_schedule="constant",
        batch_size=1,
        num_epochs=400,
        num_iterations_per_epoch=250,
        loss="bce_dice",
        deep_supervision=False,
        augmentation="flips_noise",
        mirror="auto",
    )
    assert settings.num_epochs * settings.num_iterations_per_epoch == 100_000


# --- what is built ---------------------------------------------------------------------------------------------------


@pytest.fixture
def plans(world: SimpleNamespace) -> dict[str, Any]:
    """The tiny world's plans, of PlainConvUNet."""
    read: dict[str, Any] = json.loads((world.preprocessed / f"{world.plans}.json").read_text())
    return read


def built(trainer: type, plans: dict[str, Any], configuration: str = "3d_fullres", **keywords: Any) -> nn.Module:
    manager = PlansManager(plans)
    network: nn.Module = trainer.build_network_architecture(  # type: ignore[attr-defined]
        manager, manager.get_configuration(configuration), 1, 4, **keywords
    )
    return network


def with_architecture(
    plans: dict[str, Any], name: str, configuration: str = "3d_fullres", **keywords: Any
) -> dict[str, Any]:
    changed = copy.deepcopy(plans)
    architecture = changed["configurations"][configuration]["architecture"]
    architecture["network_class_name"] = name
    architecture["arch_kwargs"].update(keywords)
    return changed


@pytest.mark.slow
class TestNetwork:
    @pytest.mark.parametrize(("trainer", "configuration"), CASES, ids=name_of)
    def test_weights_are_the_same_with_and_without_deep_supervision(self, plans, trainer, configuration):
        networks = [built(trainer, plans, configuration, enable_deep_supervision=on) for on in (True, False)]
        assert [type(n) for n in networks] == [CLASSES[trainer]] * 2
        assert [n.decoder.deep_supervision for n in networks] == [True, False]
        assert list(networks[0].state_dict()) == list(networks[1].state_dict())

    @pytest.mark.parametrize("trainer", ONLY_3D, ids=name_of)
    def test_a_3d_network_refuses_2d_plans_in_one_sentence(self, plans, trainer):
        with pytest.raises(InputError, match=rf"^{trainer.__name__} trains a 3D network, .* 2D patches of \[40, 40\]"):
            built(trainer, plans, "2d")

    @pytest.mark.parametrize(
        ("trainer", "keywords"),
        [
            (nnUNetTrainerExtRAS, {"attention": False}),
            (nnUNetTrainerExtSERes, {"se_reduction": 2}),
            (nnUNetTrainerExtDeepRes, {"n_conv_per_stage": 3}),
        ],
    )
    def test_plans_that_name_the_network_are_kept_as_they_are(self, plans, trainer, keywords):
        changed = with_architecture(plans, path_of(CLASSES[trainer]), **keywords)
        assert str(built(trainer, changed)) == str(built(nnUNetTrainer, changed)) != str(built(trainer, plans))

    @pytest.mark.parametrize("trainer", [nnUNetTrainerExtRAS, nnUNetTrainerExtSERes, nnUNetTrainerExtRefinePublished])
    def test_plans_of_another_network_are_refused_with_what_to_do(self, plans, trainer):
        changed = with_architecture(plans, "nnunet_ext.networks.context_unet.ContextUNet")
        with pytest.raises(InputError, match=r"these name nnunet_ext\.networks\.context_unet\.ContextUNet; .*plan"):
            built(trainer, changed)

    def test_plans_of_a_residual_encoder_give_the_same_network(self, plans):
        changed = with_architecture(
            plans, "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet", n_blocks_per_stage=1
        )
        del changed["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["n_conv_per_stage"]
        assert str(built(nnUNetTrainerExtSERes, changed)) == str(built(nnUNetTrainerExtSERes, plans))

    def test_activation_is_the_networks_and_norm_the_plans(self, plans):
        layers = {type(m).__name__ for m in built(nnUNetTrainerExtSERes, plans).modules()}
        assert "ELU" in layers
        assert "LeakyReLU" not in layers
        layers = {type(m).__name__ for m in built(nnUNetTrainerExtDeepRes, plans).modules()}
        assert "ReLU" in layers
        assert "InstanceNorm3d" in layers
        assert "BatchNorm3d" not in layers

    def test_refinement_wraps_the_planned_network_within_its_memory(self, plans):
        network = built(nnUNetTrainerExtRefine, plans)
        assert path_of(type(network.unet)) == "dynamic_network_architectures.architectures.unet.PlainConvUNet"
        assert (network.passes, network.checkpoint_passes, network.fed_back) == (3, True, 3)

    def test_published_refinement_wraps_the_papers_network(self, plans):
        assert type(built(nnUNetTrainerExtRefinePublished, plans).unet) is SEResUNet

    def test_a_planned_refinement_stays_and_answers_with_every_pass(self, plans):
        base = plans["configurations"]["3d_fullres"]["architecture"]["network_class_name"]
        changed = with_architecture(plans, path_of(RefinementUNet), base=base, passes=2, every_pass=False)
        network = built(nnUNetTrainerExtRefine, changed, enable_deep_supervision=False)
        assert (network.passes, network.checkpoint_passes) == (2, False)
        assert len(network.train()(torch.zeros(1, 1, 16, 32, 32))) == 2
        assert isinstance(network.eval()(torch.zeros(1, 1, 16, 32, 32)), torch.Tensor)


# --- refinement ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
class TestRefinement:
    @pytest.mark.parametrize("deep", [True, False])
    def test_training_sees_every_pass_and_validation_the_last(self, in_world, deep):
        trainer = in_world(nnUNetTrainerExtRefine, "2d", nnunet_ext={"deep_supervision": deep})
        trainer.initialize()
        image = torch.randn(2, 1, 40, 40)
        passes = trainer.network.train()(image)
        assert len(passes) == 3
        assert isinstance(passes[0], list if deep else torch.Tensor)
        last = trainer.network.eval()(image)
        finest = [answer[0] if deep else answer for answer in (last, passes[-1])]
        torch.testing.assert_close(*finest)
        target = torch.zeros(2, 1, 40, 40)
        targets = [target[..., :: 2**i, :: 2**i] for i in range(len(last))] if deep else target
        loss, alone = trainer.loss, trainer.loss.loss
        expected = sum(w * alone(answer, targets) for w, answer in zip((1, 2, 3), passes, strict=True)) / 6
        torch.testing.assert_close(loss(passes, targets), expected)
        torch.testing.assert_close(loss(last, targets), alone(last, targets))

    def test_weights_of_the_passes_come_from_the_settings(self, in_world):
        trainer = in_world(nnUNetTrainerExtRefine, "2d", nnunet_ext={"pass_weights": [0, 1, 1]})
        trainer.initialize()
        assert trainer.loss.weights == (0, 0.5, 0.5)

    @pytest.mark.parametrize("weights", [[1, 2], [0, 0, 0]])
    def test_weights_that_do_not_fit_are_refused(self, in_world, weights):
        trainer = in_world(nnUNetTrainerExtRefine, "2d", nnunet_ext={"pass_weights": weights})
        with pytest.raises(InputError, match=r"pass_weights must have 3 entries, one per pass, and a positive sum"):
            trainer.initialize()

    def test_regions_feed_every_class_back_at_prediction_too(self, in_world):
        trainer = in_world(nnUNetTrainerExtRefine, "2d", dataset=REGIONS)
        trainer.initialize()
        assert (trainer.network.regions, trainer.network.fed_back) == (True, 2)
        manager = PlansManager(json.loads(json.dumps(trainer.plans_manager.plans)))  # as prediction reads it
        again = nnUNetTrainerExtRefine.build_network_architecture(
            manager, manager.get_configuration("2d"), 1, 2, enable_deep_supervision=False
        )
        again.load_state_dict(trainer.network.state_dict())
        assert again.regions


# --- whole runs ------------------------------------------------------------------------------------------------------


def trained(in_world: Any, trainer: type, configuration: str, epochs: int = 1) -> Any:
    """A trainer after short epochs, through its own loop; no final validation."""
    block = {"num_epochs": epochs, "batch_size": 2}
    made = in_world(trainer, configuration, nnunet_ext=block)
    made.run_training()
    return made


@pytest.mark.slow
@pytest.mark.parametrize(("trainer", "configuration"), CASES, ids=name_of)
def test_it_trains_and_stock_prediction_loads_the_model(in_world, world, tmp_path, trainer, configuration):
    model = Path(trained(in_world, trainer, configuration).output_folder_base)
    losses = read_checkpoint(model / "fold_0" / "checkpoint_final.pth")["logging"]
    assert np.isfinite(losses["train_losses"] + losses["val_losses"]).all()
    expose_trainers()
    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), (0,), "checkpoint_final.pth")
    assert type(predictor.network) is CLASSES[trainer]
    image = world.raw / "imagesTr" / "case_0_0000.nii.gz"
    predictor.predict_from_files_sequential([[str(image)]], [str(tmp_path / "case_0")], save_probabilities=False)
    labels = np.asarray(nibabel.load(tmp_path / "case_0.nii.gz").dataobj)
    assert labels.shape == nibabel.load(image).shape
    assert set(np.unique(labels)) <= {0, 1, 2, 3}


@pytest.mark.slow
@pytest.mark.parametrize("trainer", [nnUNetTrainerExtRefine, nnUNetTrainerExtRefinePublished], ids=name_of)
def test_a_continued_refinement_ends_with_the_same_weights(in_world, tmp_path, trainer):
    whole = trained(in_world, trainer, "2d", epochs=2).network.state_dict()
    shutil.rmtree(tmp_path / "results")
    first = in_world(trainer, "2d", nnunet_ext={"num_epochs": 2, "batch_size": 2})
    first.num_epochs = 1  # as if it were killed after one of two
    first.run_training()
    content = plain(first.checkpoint_content()) | {"current_epoch": 1}
    second = in_world(trainer, "2d", nnunet_ext={"num_epochs": 2, "batch_size": 2})
    second.load_checkpoint(content)
    second.run_training()
    for name, weight in second.network.state_dict().items():
        assert torch.equal(weight, whole[name]), name
