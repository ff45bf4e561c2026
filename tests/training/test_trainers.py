"""Our trainers on a tiny world of drawn patients, through nnU-Net's own code."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTansform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_ext.errors import InputError
from nnunet_ext.locations import trainer_search_path
from nnunet_ext.training.base import nnUNetTrainerExt
from nnunet_ext.training.checkpoint import plain, read_checkpoint
from nnunet_ext.training.mirroring import nnUNetTrainerExtMirrorSwap, nnUNetTrainerExtNoMirror
from nnunet_ext.transforms.mirror import MirrorSwapTransform

pytestmark = pytest.mark.slow

FLAT = {"patch_size": [8, 40, 40]}
"""A patch that nnU-Net augments slice by slice ("dummy 2D")."""


def prepared(trainer: Any) -> tuple[list[Any], dict[str, Any]]:
    """The training transforms of a trainer, and one batch of its loader."""
    trainer.initialize()
    loader, _ = trainer.get_dataloaders()
    return loader.data_loader.transforms.transforms, next(loader)


def mirror_axes(transforms: list[Any]) -> tuple[int, ...]:
    found = [t for t in transforms if isinstance(t, MirrorTransform)]
    assert len(found) <= 1
    return tuple(found[0].allowed_axes) if found else ()


# --- settings --------------------------------------------------------------------------------------------------------


def test_settings_reach_the_trainer_the_log_and_the_checkpoint(in_world):
    trainer = in_world(nnUNetTrainerExt, "2d", nnunet_ext={"num_epochs": 7, "optimizer": "Adam", "initial_lr": 0.125})
    trainer.initialize()
    assert (trainer.num_epochs, trainer.initial_lr, trainer.save_every) == (7, 0.125, 1)
    assert type(trainer.optimizer) is torch.optim.Adam
    assert trainer.settings.model_dump_json() in Path(trainer.log_file).read_text()
    trainer.save_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
    content = read_checkpoint(Path(trainer.output_folder) / "checkpoint_final.pth")
    assert content["nnunet_ext"]["settings"] == trainer.settings.model_dump()


def test_an_unknown_setting_in_the_plans_is_refused_with_its_place(in_world):
    with pytest.raises(InputError, match=r"plans, configurations\.2d\.nnunet_ext: epochs"):
        in_world(nnUNetTrainerExt, "2d", nnunet_ext={"epochs": 7})


def test_the_batch_size_of_the_settings_replaces_the_plans(in_world, world):
    plans = json.loads((world.preprocessed / f"{world.plans}.json").read_text())
    assert plans["configurations"]["2d"]["batch_size"] == 8
    _, batch = prepared(in_world(nnUNetTrainerExtNoMirror, "2d", nnunet_ext={"batch_size": 3}))
    assert batch["data"].shape == (3, 1, 40, 40)


@pytest.mark.parametrize("schedule", ["poly", "constant"])
def test_learning_rate_follows_the_schedule(in_world, schedule):
    trainer = in_world(nnUNetTrainerExt, "2d", nnunet_ext={"num_epochs": 10, "lr_schedule": schedule})
    trainer.initialize()
    trainer.lr_scheduler.step(5)
    expected = 0.002 * (0.5**0.9 if schedule == "poly" else 1.0)
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(expected)


def test_learning_rate_can_fall_within_an_epoch(in_world, monkeypatch):
    monkeypatch.setattr(nnUNetTrainer, "train_step", lambda self, batch: {"loss": 0.0})
    settings = {"num_epochs": 2, "num_iterations_per_epoch": 4, "initial_lr": 0.5, "lr_update": "iteration"}
    trainer = in_world(nnUNetTrainerExt, "2d", nnunet_ext=settings)
    trainer.initialize()
    rates = []
    for trainer.current_epoch in range(2):
        trainer.on_train_epoch_start()
        for _ in range(4):
            trainer.train_step({})
            rates.append(trainer.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.5 * (1 - i / 8) ** 0.9 for i in range(8)])


def test_the_same_seed_builds_the_same_network(in_world):
    first, second, other = (in_world(nnUNetTrainerExt, "2d", nnunet_ext={"seed": seed}) for seed in (1, 1, 2))
    for trainer in (first, second, other):
        trainer.initialize()
    weights = [next(iter(t.network.state_dict().values())) for t in (first, second, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_an_epoch_draws_the_same_patches_whatever_came_before(in_world):
    trainer = in_world(nnUNetTrainerExtNoMirror, "2d")
    trainer.initialize()
    loader, _ = trainer.get_dataloaders()
    drawn = []
    for skipped in (0, 3):
        for _ in range(skipped):
            next(loader)
        trainer.current_epoch = 1
        trainer.on_epoch_start()
        drawn.append(next(loader)["data"])
    assert torch.equal(*drawn)


def test_deep_supervision_changes_the_outputs_and_not_the_weights(in_world):
    keys = []
    for on in (False, True):
        trainer = in_world(nnUNetTrainerExt, "2d", nnunet_ext={"deep_supervision": on})
        trainer.initialize()
        keys.append(list(trainer.network.state_dict()))
        assert isinstance(trainer.network(torch.zeros(1, 1, 40, 40)), list if on else torch.Tensor)
    assert keys[0] == keys[1]


# --- augmentation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_the_blur_does_not_choose_its_algorithm_by_a_stop_watch(in_world, configuration):
    stock, _ = prepared(in_world(nnUNetTrainer, configuration))
    ours, _ = prepared(in_world(nnUNetTrainerExt, configuration, nnunet_ext={"deep_supervision": True}))
    blurs = [
        [t.transform for t in transforms if isinstance(getattr(t, "transform", None), GaussianBlurTransform)]
        for transforms in (stock, ours)
    ]
    assert [blur.benchmark for blur in blurs[0]] == [True]
    assert [blur.benchmark for blur in blurs[1]] == [False]
    assert [type(t) for t in stock] == [type(t) for t in ours]


def test_the_base_trainer_mirrors_as_stock_does(in_world):
    trainer = in_world(nnUNetTrainerExt, "2d")
    transforms, _ = prepared(trainer)
    assert mirror_axes(transforms) == trainer.inference_allowed_mirroring_axes == (0, 1)


def test_mirroring_at_prediction_can_be_left_out(in_world):
    trainer = in_world(nnUNetTrainerExt, "2d", nnunet_ext={"mirror_at_prediction": False})
    transforms, _ = prepared(trainer)
    assert mirror_axes(transforms) == (0, 1)
    assert trainer.inference_allowed_mirroring_axes is None


class TestNoMirror:
    @pytest.mark.parametrize(
        ("configuration", "changes", "axes", "rotation_deg"),
        [
            ("2d", {}, (), 180),
            ("2d", {"nnunet_ext": {"limit_rotation": True}}, (0,), 15),
            ("2d", {"patch_size": [24, 40]}, (0,), 15),
            ("3d_fullres", {}, (0, 1), 30),
            ("3d_fullres", {"nnunet_ext": {"limit_rotation": True}}, (0, 1), 15),
            ("3d_fullres", FLAT, (0,), 180),
            ("3d_fullres", {**FLAT, "nnunet_ext": {"limit_rotation": True}}, (0, 1), 15),
        ],
        ids=["2D square", "2D limited", "2D elongated", "3D", "3D limited", "dummy 2D", "dummy 2D limited"],
    )
    def test_only_legal_axes_reach_transforms_and_checkpoint(
        self, in_world, configuration, changes, axes, rotation_deg
    ):
        trainer = in_world(nnUNetTrainerExtNoMirror, configuration, **changes)
        transforms, _ = prepared(trainer)
        assert mirror_axes(transforms) == axes
        assert trainer.inference_allowed_mirroring_axes == (axes or None)  # None, never (): stock predict takes max()
        spatial = next(t for t in transforms if isinstance(t, SpatialTransform))
        assert np.degrees(spatial.rotation) == pytest.approx([-rotation_deg, rotation_deg])

    def test_the_lateral_axis_is_kept_in_plans_log_and_checkpoint(self, in_world):
        trainer = in_world(nnUNetTrainerExtNoMirror, "3d_fullres")
        prepared(trainer)
        assert trainer.lateral == trainer.plans_manager.plans["lateral_axis"] == 2
        assert trainer.checkpoint_content()["nnunet_ext"]["lateral_axis"] == 2
        assert "left-right is axis 2" in Path(trainer.log_file).read_text()

    @pytest.mark.parametrize(
        ("transpose", "configuration", "axes"),
        [([2, 0, 1], "2d", (0, 1)), ([1, 2, 0], "2d", ()), ([2, 0, 1], "3d_fullres", (1, 2))],
    )
    def test_transposed_plans_move_the_axis(self, in_world, transpose, configuration, axes):
        trainer = in_world(nnUNetTrainerExtNoMirror, configuration)
        trainer.plans_manager.plans["transpose_forward"] = transpose
        assert trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()[-1] == axes

    def test_a_flat_patch_keeps_its_slices(self, in_world):
        trainer = in_world(nnUNetTrainerExtNoMirror, "3d_fullres", **FLAT, nnunet_ext={"limit_rotation": True})
        assert trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()[2][0] == 8


class TestMirrorSwap:
    @pytest.mark.parametrize(("configuration", "lateral"), [("2d", 1), ("3d_fullres", 2)])
    def test_the_swap_stands_before_the_padding_label_goes_and_no_plain_mirror_is_lateral(
        self, in_world, configuration, lateral
    ):
        transforms, batch = prepared(in_world(nnUNetTrainerExtMirrorSwap, configuration))
        kinds = [type(t) for t in transforms]
        assert kinds.count(MirrorSwapTransform) == 1
        swap = transforms[kinds.index(MirrorSwapTransform)]
        assert (swap.lateral_axis, swap.pairs) == (lateral, ((1, 2),))
        assert kinds.index(MirrorSwapTransform) == kinds.index(RemoveLabelTansform) - 1
        assert lateral not in mirror_axes(transforms)
        assert set(batch["target"].unique().tolist()) <= {0, 1, 2, 3}

    def test_prediction_never_mirrors_left_right(self, in_world):
        trainer = in_world(nnUNetTrainerExtMirrorSwap, "3d_fullres")
        prepared(trainer)
        assert trainer.inference_allowed_mirroring_axes == (0, 1)

    def test_the_left_organ_is_on_the_left_in_every_batch(self, in_world):
        """Without rotation beyond 30° the larger x of the patch stays the patient's left."""
        trainer = in_world(nnUNetTrainerExtMirrorSwap, "3d_fullres")
        trainer.initialize()
        loader, _ = trainer.get_dataloaders()
        seen = 0
        for _ in range(6):
            for target in next(loader)["target"][:, 0]:
                left, right = (np.argwhere(target.numpy() == label)[:, 2] for label in (1, 2))
                if len(left) > 50 and len(right) > 50:
                    assert left.mean() > right.mean()
                    seen += 1
        assert seen >= 3

    def test_a_dataset_without_pairs_is_refused_with_what_to_do(self, in_world):
        trainer = in_world(
            nnUNetTrainerExtMirrorSwap, "2d", dataset={"labels": {"background": 0, "A": 1, "B": 2, "C": 3}}
        )
        with pytest.raises(InputError, match=r"Dataset901_Drawn has no label pair .*swap_pairs"):
            prepared(trainer)

    def test_pairs_may_be_listed_in_the_dataset(self, in_world):
        dataset = {"labels": {"background": 0, "A": 1, "B": 2, "C": 3}, "nnunet_ext": {"swap_pairs": [[3, 1]]}}
        transforms, _ = prepared(in_world(nnUNetTrainerExtMirrorSwap, "2d", dataset=dataset))
        assert [t.pairs for t in transforms if isinstance(t, MirrorSwapTransform)] == [((3, 1),)]

    def test_slices_cut_along_left_right_need_no_swap(self, in_world):
        trainer = in_world(nnUNetTrainerExtMirrorSwap, "2d")
        trainer.plans_manager.plans["transpose_forward"] = [2, 0, 1]
        trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        assert trainer.own_transforms() == []


# --- checkpoints -----------------------------------------------------------------------------------------------------


def test_a_checkpoint_has_every_key_of_a_stock_one(in_world):
    contents = []
    for trainer in (in_world(nnUNetTrainer, "2d"), in_world(nnUNetTrainerExtNoMirror, "2d")):
        trainer.initialize()
        path = Path(trainer.output_folder) / "checkpoint_final.pth"
        trainer.save_checkpoint(str(path))
        contents.append(torch.load(path, weights_only=False))
    stock, ours = contents
    assert set(stock) <= set(ours)
    assert set(stock["network_weights"]) == set(ours["network_weights"])
    assert ours["trainer_name"] == "nnUNetTrainerExtNoMirror"


def test_a_new_best_is_noted_before_the_latest_is_written(in_world):
    """Stock writes the latest first, so a continued run takes a worse epoch for the best one."""
    trainer = in_world(nnUNetTrainerExt, "2d")
    trainer.initialize()
    trainer.logger.log("mean_fg_dice", np.float64(0.5), 0)
    latest = Path(trainer.output_folder) / "checkpoint_latest.pth"
    trainer.save_checkpoint(str(latest))
    assert read_checkpoint(latest)["_best_ema"] == 0.5
    assert read_checkpoint(latest.with_name("checkpoint_best.pth"))["_best_ema"] == 0.5


def test_the_running_dice_is_the_same_number_after_a_continuation(in_world):
    """Stock logs float32 scalars, a checkpoint keeps Python's floats, and the two round differently."""
    scores = np.random.default_rng(0).random(40, np.float32)
    undisturbed, continued = in_world(nnUNetTrainerExt, "2d"), in_world(nnUNetTrainerExt, "2d")
    for epoch, score in enumerate(scores):
        for trainer in (undisturbed, continued):
            trainer.current_epoch = epoch
            trainer.on_epoch_start()
            trainer.logger.log("mean_fg_dice", score, epoch)
        continued.logger.load_checkpoint(plain(continued.logger.get_checkpoint()))  # as a checkpoint does
    averages = [list(map(float, t.logger.get_value("ema_fg_dice", None))) for t in (undisturbed, continued)]
    assert averages[0] == averages[1]


# --- whole runs ------------------------------------------------------------------------------------------------------


def command(configuration: str = "2d") -> list[str]:
    return [sys.executable, "-m", "nnunet_ext.training.run", "901", configuration, "0", "-tr",
            "nnUNetTrainerExtNoMirror", "-p", "nnUNetPlansExtCPU", "-device", "cpu"]  # fmt: skip


def fold_folder(results: Path) -> Path:
    return results / "Dataset901_Drawn" / "nnUNetTrainerExtNoMirror__nnUNetPlansExtCPU__2d" / "fold_0"


@pytest.fixture(scope="module")
def undisturbed(world: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of one whole training."""
    results = tmp_path_factory.mktemp("undisturbed")
    world.run(*command()[1:], nnUNet_results=str(results))
    return results


def kill_in_epoch(epoch: int, environment: dict[str, str], results: Path) -> None:
    """Train, and kill the process without warning once an epoch has begun."""
    process = subprocess.Popen(
        command(),
        env=environment,
        cwd="/",
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        while not any(f"Epoch {epoch}" in log.read_text() for log in fold_folder(results).glob("training_log_*.txt")):
            assert process.poll() is None, "the training ended before it could be killed"
            time.sleep(0.02)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def without_clock(logging: dict[str, Any]) -> dict[str, Any]:
    return {key: values for key, values in logging.items() if "timestamps" not in key}


def equal_bit_by_bit(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b) and a.dtype == b.dtype
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal_bit_by_bit(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal_bit_by_bit, a, b))
    return bool(a == b) or (a != a and b != b)


def test_a_killed_and_continued_training_ends_bit_identical(world, undisturbed, tmp_path):
    environment = {**world.environment, "nnUNet_results": str(tmp_path)}
    kill_in_epoch(1, environment, tmp_path)
    assert not (fold_folder(tmp_path) / "checkpoint_final.pth").exists()
    world.run(*command()[1:], nnUNet_results=str(tmp_path))
    logs = [log.read_text() for log in fold_folder(tmp_path).glob("training_log_*.txt")]
    assert any(re.search(r"Continuing from checkpoint_latest\.pth, epoch [12]\.", log) for log in logs)
    for name in ("checkpoint_final.pth", "checkpoint_best.pth"):
        whole, continued = (read_checkpoint(fold_folder(results) / name) for results in (undisturbed, tmp_path))
        for key in ("network_weights", "optimizer_state", "current_epoch", "_best_ema"):
            assert equal_bit_by_bit(whole[key], continued[key]), f"{name}: {key}"
        assert equal_bit_by_bit(without_clock(whole["logging"]), without_clock(continued["logging"])), name
    for case in world.splits[0]["val"]:
        maps = [
            np.asarray(nibabel.load(fold_folder(results) / "validation" / f"{case}.nii.gz").dataobj)
            for results in (undisturbed, tmp_path)
        ]
        np.testing.assert_array_equal(*maps)


def test_a_finished_training_leaves_no_fall_backs_and_is_not_repeated(world, undisturbed):
    folder = fold_folder(undisturbed)
    assert sorted(p.name for p in folder.glob("checkpoint_*")) == ["checkpoint_best.pth", "checkpoint_final.pth"]
    before = read_checkpoint(folder / "checkpoint_final.pth")
    world.run(*command()[1:], nnUNet_results=str(undisturbed))
    after = read_checkpoint(folder / "checkpoint_final.pth")
    assert equal_bit_by_bit(before["network_weights"], after["network_weights"])
    assert after["current_epoch"] == before["current_epoch"] == world.settings["num_epochs"]


def test_stock_predict_gives_the_same_with_and_without_mirroring(world, undisturbed, tmp_path):
    model = fold_folder(undisturbed) / "checkpoint_final.pth"
    assert read_checkpoint(model)["inference_allowed_mirroring_axes"] is None
    images = tmp_path / "images"
    images.mkdir()
    (images / "case_0_0000.nii.gz").symlink_to(world.raw / "imagesTr" / "case_0_0000.nii.gz")
    environment = {**world.environment, "nnUNet_results": str(undisturbed), "nnUNet_extTrainer": trainer_search_path()}
    for name, options in (("mirrored", []), ("plain", ["--disable_tta"])):
        predict = [str(Path(sys.executable).parent / "nnUNetv2_predict"), "-d", "901", "-c", "2d", "-f", "0",
                   "-tr", "nnUNetTrainerExtNoMirror", "-p", "nnUNetPlansExtCPU", "-device", "cpu", "-npp", "1",
                   "-nps", "1", "--save_probabilities", "-i", str(images), "-o", str(tmp_path / name)]  # fmt: skip
        done = subprocess.run(
            [*predict, *options], env=environment, cwd="/", capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    mirrored, plain = (tmp_path / name for name in ("mirrored", "plain"))
    assert (mirrored / "case_0.nii.gz").read_bytes() == (plain / "case_0.nii.gz").read_bytes()
    with np.load(mirrored / "case_0.npz") as a, np.load(plain / "case_0.npz") as b:
        np.testing.assert_array_equal(a["probabilities"], b["probabilities"])
