"""The settings of the base trainer that change loss, length and augmentation, and the file that names its cases."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTansform
from nnunetv2.training.nnUNetTrainer.variants.loss.nnUNetTrainerDiceLoss import nnUNetTrainerDiceLoss

from nnunet_ext.training.base import EarlyStop, epochs_without_best, nnUNetTrainerExt
from nnunet_ext.training.checkpoint import read_checkpoint
from nnunet_ext.training.mirroring import nnUNetTrainerExtNoMirror

REGIONS = {"labels": {"background": 0, "both": [1, 2], "jaw": 3}, "regions_class_order": [1, 3]}
IGNORE = {"labels": {"background": 0, "a": 1, "b": 2, "ignore": 3}}
REGIONS_IGNORE = {"labels": {"background": 0, "both": [1, 2], "ignore": 3}, "regions_class_order": [1]}


# --- early stop ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("history", "waited"),
    [
        ([], 0),
        ([0.5], 0),
        ([0.5, 0.5], 1),
        ([0.5, 0.6, 0.6, 0.4], 2),
        ([0.1, 0.2, 0.3], 0),
        ([float("nan"), 0.0], 0),
        ([0.5, float("nan"), float("nan")], 2),
        ([float("nan")] * 3, 3),
    ],
)
def test_epochs_are_counted_from_the_last_that_was_better_than_all_before(history, waited):
    assert epochs_without_best(history) == waited


def with_history(trainer: Any, scores: list[float]) -> Any:
    """A trainer at the start of the epoch after these running Dice scores."""
    trainer.logger.local_logger.my_fantastic_logging["ema_fg_dice"] = list(scores)
    trainer.current_epoch = len(scores)
    return trainer


@pytest.mark.slow
@pytest.mark.parametrize(("limit", "stops"), [(None, False), (4, False), (3, True), (2, True)])
def test_training_stops_before_an_epoch_that_has_waited_long_enough(in_world, limit, stops):
    trainer = with_history(in_world(nnUNetTrainerExt, "2d", nnunet_ext={"early_stop": limit}), [0.5, 0.4, 0.3, 0.2])
    if stops:
        with pytest.raises(EarlyStop):
            trainer.on_epoch_start()
        assert "Stopping early after epoch 3: no new best for 3 epochs." in Path(trainer.log_file).read_text()
    else:
        trainer.on_epoch_start()


@pytest.fixture(scope="module")
def stopping(world: SimpleNamespace) -> list[str]:
    """Arguments that train with plans that stop after two epochs without a new best, whatever those are."""
    plans = json.loads((world.preprocessed / f"{world.plans}.json").read_text())
    plans["plans_name"] = "Stopping"
    plans["configurations"]["2d"]["nnunet_ext"].update(early_stop=2, num_epochs=60, num_iterations_per_epoch=1)
    (world.preprocessed / "Stopping.json").write_text(json.dumps(plans))
    return ["-m", "nnunet_ext.training.run", "901", "2d", "0", "-tr", "nnUNetTrainerExtNoMirror", "-p", "Stopping",
            "-device", "cpu"]  # fmt: skip


@pytest.mark.slow
def test_an_early_stop_ends_like_a_last_epoch_and_a_continued_run_adds_nothing(world, stopping, tmp_path):
    world.run(*stopping, nnUNet_results=str(tmp_path))
    fold = tmp_path / world.dataset / "nnUNetTrainerExtNoMirror__Stopping__2d" / "fold_0"
    final, latest = fold / "checkpoint_final.pth", fold / "checkpoint_latest.pth"
    first = read_checkpoint(final)
    history = first["logging"]["ema_fg_dice"]
    assert epochs_without_best(history) == 2
    assert all(epochs_without_best(history[:n]) < 2 for n in range(len(history)))
    assert first["current_epoch"] == len(history) < 60
    assert not latest.exists()
    assert len(list((fold / "validation").glob("*.nii.gz"))) == 2
    # finished, and killed between the last epoch and the final checkpoint
    for prepare in (lambda: None, lambda: final.rename(latest)):
        prepare()
        shutil.rmtree(fold / "validation")
        world.run(*stopping, nnUNet_results=str(tmp_path))
        again = read_checkpoint(final)
        assert again["current_epoch"] == first["current_epoch"]
        assert again["logging"]["ema_fg_dice"] == history
        for name, weight in first["network_weights"].items():
            assert torch.equal(weight, again["network_weights"][name]), name
        assert len(list((fold / "validation").glob("*.nii.gz"))) == 2


# --- loss ------------------------------------------------------------------------------------------------------------


def built_loss(in_world: Any, trainer: type, dataset: dict[str, Any] | None, **settings: Any) -> Any:
    made = in_world(trainer, "2d", dataset=dataset, nnunet_ext={"deep_supervision": False, **settings})
    made.enable_deep_supervision = False
    return made._build_loss()


@pytest.mark.slow
class TestDiceLoss:
    def test_is_one_minus_the_soft_dice_that_one_computes_by_hand(self, in_world):
        loss = built_loss(in_world, nnUNetTrainerExt, None, loss="dice")
        labels = torch.zeros(1, 1, 3, 3)
        labels[0, 0, 0], labels[0, 0, 1, :2] = 1, 2
        logits = torch.randn(1, 4, 3, 3, generator=torch.Generator().manual_seed(0))
        shares = logits.softmax(1).numpy()[0]
        dice = []
        for organ in (1, 2, 3):
            truth = labels[0, 0].numpy() == organ
            dice.append((2 * shares[organ][truth].sum() + 1e-5) / (truth.sum() + shares[organ].sum() + 1e-5))
        assert loss(logits, labels).item() == pytest.approx(-np.mean(dice), rel=1e-5)

    def test_equals_stock_dice_trainers_loss_on_labels(self, in_world):
        ours = built_loss(in_world, nnUNetTrainerExt, None, loss="dice")
        stock = built_loss(in_world, nnUNetTrainerDiceLoss, None)
        logits, labels = torch.randn(2, 4, 5, 5), torch.randint(0, 4, (2, 1, 5, 5))
        torch.testing.assert_close(ours(logits, labels), stock(logits, labels))

    def test_equals_stock_dice_trainers_loss_on_regions(self, in_world):
        ours = built_loss(in_world, nnUNetTrainerExt, REGIONS, loss="dice")
        stock = built_loss(in_world, nnUNetTrainerDiceLoss, REGIONS)
        logits, regions = torch.randn(2, 2, 5, 5), torch.rand(2, 2, 5, 5) > 0.5
        torch.testing.assert_close(ours(logits, regions), stock(logits, regions))

    def test_what_is_to_be_ignored_changes_nothing(self, in_world):
        loss = built_loss(in_world, nnUNetTrainerExt, IGNORE, loss="dice")
        labels = torch.randint(0, 3, (1, 1, 6, 6))
        labels[..., 3:] = 3
        logits = torch.randn(1, 3, 6, 6, requires_grad=True)
        loss(logits, labels).backward()
        assert not logits.grad[..., 3:].any()
        assert logits.grad[..., :3].any()

    def test_what_is_to_be_ignored_in_regions_changes_nothing(self, in_world):
        loss = built_loss(in_world, nnUNetTrainerExt, REGIONS_IGNORE, loss="dice")
        target = torch.zeros(1, 2, 6, 6, dtype=torch.bool)
        target[:, 0, :2], target[:, 1, :, 3:] = True, True
        logits = torch.randn(1, 1, 6, 6, requires_grad=True)
        loss(logits, target).backward()
        assert not logits.grad[..., 3:].any()
        assert logits.grad[..., :3].any()

    def test_an_organ_that_is_absent_and_not_predicted_scores_one(self, in_world):
        loss = built_loss(in_world, nnUNetTrainerExt, None, loss="dice")
        logits = torch.full((1, 4, 3, 3), -50.0)
        logits[:, 0] = 50.0
        assert loss(logits, torch.zeros(1, 1, 3, 3)).item() == pytest.approx(-1.0)

    def test_deep_supervision_weights_are_stocks(self, in_world):
        weights = []
        for settings in ({}, {"loss": "dice"}):
            trainer = in_world(nnUNetTrainerExt, "2d", nnunet_ext={"deep_supervision": True, **settings})
            weights.append(trainer._build_loss().weight_factors)
        assert weights[0] == weights[1]
        assert sum(weights[0]) == pytest.approx(1)

    def test_the_default_keeps_cross_entropy(self, in_world):
        assert built_loss(in_world, nnUNetTrainerExt, None).weight_ce == 1


# --- augmentation ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
class TestFlipsAndNoise:
    @pytest.mark.parametrize(
        ("configuration", "changes", "axes"),
        [("2d", {}, (0,)), ("3d_fullres", {}, (0, 1)), ("3d_fullres", {"patch_size": [8, 40, 40]}, (0, 1))],
        ids=["2D", "3D", "flat 3D"],
    )
    def test_nothing_else_is_drawn_and_every_mirror_but_the_lateral_one_is_legal(
        self, in_world, configuration, changes, axes
    ):
        trainer = in_world(
            nnUNetTrainerExtNoMirror, configuration, **changes, nnunet_ext={"augmentation": "flips_noise"}
        )
        trainer.initialize()
        loader, _ = trainer.get_dataloaders()
        transforms = loader.data_loader.transforms.transforms
        drawn = [type(t.transform) for t in transforms if isinstance(t, RandomTransform)]
        assert drawn == [GaussianNoiseTransform]
        (spatial,) = (t for t in transforms if isinstance(t, SpatialTransform))
        assert (spatial.p_rotation, spatial.p_scaling, spatial.p_elastic_deform) == (0, 0, 0)
        (mirror,) = (t for t in transforms if isinstance(t, MirrorTransform))
        assert tuple(mirror.allowed_axes) == trainer.inference_allowed_mirroring_axes == axes
        assert sum(isinstance(t, RemoveLabelTansform) for t in transforms) == 1
        patch = trainer.configuration_manager.patch_size
        assert list(loader.data_loader.patch_size)[-len(patch) :] == list(patch)  # nothing wider is read
        assert list(next(loader)["data"].shape[2:]) == list(patch)

    def test_flips_alone_leave_the_noise_out_too(self, in_world):
        trainer = in_world(nnUNetTrainerExtNoMirror, "3d_fullres", nnunet_ext={"augmentation": "flips"})
        trainer.initialize()
        loader, _ = trainer.get_dataloaders()
        transforms = loader.data_loader.transforms.transforms
        assert not [t for t in transforms if isinstance(t, RandomTransform)]
        assert [tuple(t.allowed_axes) for t in transforms if isinstance(t, MirrorTransform)] == [(0, 1)]
        (spatial,) = (t for t in transforms if isinstance(t, SpatialTransform))
        assert (spatial.p_rotation, spatial.p_scaling, spatial.p_elastic_deform) == (0, 0, 0)

    def test_images_are_flipped_copies_of_what_was_read_where_no_noise_falls(self, in_world):
        trainer = in_world(nnUNetTrainerExtNoMirror, "2d", nnunet_ext={"augmentation": "flips_noise"})
        trainer.initialize()
        loader, _ = trainer.get_dataloaders()
        transforms = loader.data_loader.transforms
        image, labels = torch.randn(1, 40, 40), torch.randint(0, 4, (1, 40, 40)).short()
        same = 0
        for _ in range(20):
            done = transforms(image=image.clone(), segmentation=labels.clone())
            same += any(torch.equal(done["image"], candidate) for candidate in (image, image.flip(1)))
            assert any(torch.equal(done["segmentation"], candidate) for candidate in (labels, labels.flip(1)))
        assert same >= 10

    def test_the_default_is_stocks_augmentation(self, in_world):
        trainer = in_world(nnUNetTrainerExt, "2d")
        trainer.initialize()
        loader, _ = trainer.get_dataloaders()
        assert sum(isinstance(t, RandomTransform) for t in loader.data_loader.transforms.transforms) == 7


# --- cases -----------------------------------------------------------------------------------------------------------


def written_cases(trainer: Any) -> dict[str, list[str]]:
    trainer.on_train_start()
    content: dict[str, list[str]] = json.loads((Path(trainer.output_folder) / "cases.json").read_text())
    return content


@pytest.mark.slow
class TestCasesFile:
    def test_names_the_cases_of_the_fold(self, in_world, world):
        assert written_cases(in_world(nnUNetTrainerExt, "2d")) == world.splits[0]

    def test_of_a_training_on_all_cases_names_all_twice(self, in_world, world):
        trainer = in_world(nnUNetTrainerExt, "2d")
        trainer.fold = "all"
        assert written_cases(trainer) == {"train": world.cases, "val": world.cases}

    def test_keeps_cases_that_a_continued_training_has_seen_before_the_split_changed(self, in_world, world):
        trainer = in_world(nnUNetTrainerExt, "2d")
        path = Path(trainer.output_folder) / "cases.json"
        path.write_text(json.dumps({"train": ["case_0"], "val": []}))
        trainer.current_epoch = 1
        assert written_cases(trainer) == {"train": ["case_0", *world.splits[0]["train"]], "val": world.splits[0]["val"]}
        assert "split has changed" in Path(trainer.log_file).read_text()

    def test_of_an_older_training_in_the_folder_is_replaced(self, in_world, world):
        trainer = in_world(nnUNetTrainerExt, "2d")
        (Path(trainer.output_folder) / "cases.json").write_text(json.dumps({"train": ["case_0"], "val": []}))
        assert written_cases(trainer) == world.splits[0]
