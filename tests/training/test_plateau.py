"""The learning rate that follows the training loss: against torch's own scheduler, and through a resumed training."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nnunet_ext.training.base import EarlyStop, nnUNetTrainerExt
from nnunet_ext.training.checkpoint import plain, read_checkpoint
from nnunet_ext.training.plateau import MEMORY, Plateau, PlateauScheduler, plateau_after

FALLING = [1 - 0.01 * epoch for epoch in range(80)]


def optimizer(rate: float = 0.5) -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], rate)


def test_a_falling_loss_keeps_the_rate():
    assert plateau_after(FALLING, 0.5) == Plateau(0.5, 0)


def test_before_the_first_epoch_nothing_has_happened():
    assert plateau_after([], 0.5) == Plateau(0.5, 0)


@pytest.mark.parametrize(("epochs", "reductions"), [(31, 0), (32, 1), (62, 1), (63, 2), (94, 3)])
def test_a_flat_loss_lowers_the_rate_to_a_fifth_after_thirty_epochs_without_gain(epochs, reductions):
    """The first epoch sets the best; the 31st after it is one too many, as in torch."""
    reached = plateau_after([1.0] * epochs, 0.5)
    assert reached.rate == pytest.approx(0.5 * 0.2**reductions)
    assert reached.waited == epochs - 1


@pytest.mark.parametrize(("gain", "waited"), [(0.9e-3, 1), (1.1e-3, 0)])
def test_a_gain_below_a_thousandth_is_none(gain, waited):
    assert plateau_after([1.0, 1.0 - gain / (1 - MEMORY)], 0.5).waited == waited


@pytest.mark.parametrize("seed", range(5))
def test_rates_are_those_of_torch_on_the_running_average(seed):
    losses = np.exp(-np.arange(400) / 40) + np.random.default_rng(seed).normal(0, 0.1, 400)
    reference, average = optimizer(), losses[0]
    torchs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        reference, factor=0.2, patience=30, threshold=1e-3, threshold_mode="abs", eps=0
    )
    for epoch, loss in enumerate(losses):
        average = loss if epoch == 0 else 0.93 * average + 0.07 * loss
        torchs.step(average)
        assert plateau_after(losses[: epoch + 1], 0.5).rate == pytest.approx(reference.param_groups[0]["lr"])
    assert reference.param_groups[0]["lr"] < 0.5


@pytest.mark.parametrize(
    ("rate", "epochs", "over"), [(1e-6, 50, False), (1e-6, 51, True), (1e-4, 51, False), (1e-4, 200, True)]
)
def test_training_is_over_after_fifty_epochs_without_gain_at_the_lowest_rate(rate, epochs, over):
    assert plateau_after([1.0] * epochs, rate).is_over is over


def test_an_epoch_that_is_not_a_number_counts_as_one_without_gain_and_spoils_nothing_else():
    assert plateau_after([1.0, math.nan, 0.5], 0.5) == Plateau(0.5, 0)
    assert plateau_after([math.nan, 1.0], 0.5).waited == 0
    assert plateau_after([1.0, math.nan, math.inf], 0.5).waited == 2
    assert plateau_after([math.nan] * 40, 0.5).rate == pytest.approx(0.1)


def test_the_scheduler_sees_only_earlier_epochs_and_may_be_asked_within_one():
    kind = optimizer()
    scheduler = PlateauScheduler(kind, 0.5, lambda: [1.0] * 40)
    for epoch, rate in ((0, 0.5), (31.9, 0.5), (32, 0.1), (35.5, 0.1), (3, 0.5)):
        scheduler.step(epoch)
        assert kind.param_groups[0]["lr"] == pytest.approx(rate)


# --- in a trainer ----------------------------------------------------------------------------------------------------


def made(in_world: Any, **settings: Any) -> Any:
    return in_world(nnUNetTrainerExt, "2d", nnunet_ext={"lr_schedule": "plateau", "num_epochs": 200, **settings})


def at_epoch(trainer: Any, losses: list[Any]) -> Any:
    trainer.logger.local_logger.my_fantastic_logging["train_losses"] = list(losses)
    trainer.current_epoch = len(losses)
    return trainer


@pytest.mark.slow
class TestTrainer:
    def test_the_rate_follows_the_logged_losses(self, in_world):
        trainer = made(in_world, initial_lr=0.5)
        trainer.initialize()
        rates = []
        for epochs in (0, 31, 32, 63):
            at_epoch(trainer, [1.0] * epochs)
            trainer.on_epoch_start()
            trainer.on_train_epoch_start()
            rates.append(trainer.optimizer.param_groups[0]["lr"])
        assert rates == pytest.approx([0.5, 0.5, 0.1, 0.02])

    def test_a_rate_per_iteration_is_the_epochs(self, in_world, monkeypatch):
        monkeypatch.setattr(nnUNetTrainerExt.__bases__[0], "train_step", lambda self, batch: {"loss": 0.0})
        trainer = made(in_world, initial_lr=0.5, lr_update="iteration")
        trainer.initialize()
        at_epoch(trainer, [1.0] * 32).on_train_epoch_start()
        trainer.train_step({})
        trainer.train_step({})
        assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0.1)

    def test_training_ends_as_if_this_epoch_were_the_last(self, in_world):
        trainer = at_epoch(made(in_world, initial_lr=1e-6), [1.0] * 51)
        with pytest.raises(EarlyStop):
            trainer.on_epoch_start()
        assert "Stopping after epoch 50: no lower training loss for 50 epochs" in Path(trainer.log_file).read_text()

    def test_other_schedules_do_not_end(self, in_world):
        at_epoch(made(in_world, initial_lr=1e-6, lr_schedule="constant"), [1.0] * 51).on_epoch_start()

    def test_a_continued_training_has_the_same_rates_bit_by_bit(self, in_world, tmp_path):
        """Losses as nnU-Net logs them, in single precision, over several reductions; continued after every tenth."""
        losses = (0.3 + np.random.default_rng(0).normal(0, 0.05, 120)).astype(np.float32)
        rates: dict[bool, list[float]] = {False: [], True: []}
        for continued in (False, True):
            trainer = made(in_world, initial_lr=1 / 3)
            trainer.initialize()
            for epoch, loss in enumerate(losses):
                trainer.current_epoch = epoch
                trainer.on_epoch_start()
                trainer.on_train_epoch_start()
                rates[continued].append(trainer.optimizer.param_groups[0]["lr"])
                trainer.logger.log("train_losses", loss, epoch)
                if continued and epoch % 10 == 9:
                    path = tmp_path / "checkpoint_latest.pth"
                    torch.save(plain(trainer.checkpoint_content()), path)
                    trainer = made(in_world, initial_lr=1 / 3)
                    trainer.load_checkpoint(read_checkpoint(path))
        assert rates[False] == rates[True]
        assert len(set(rates[True])) >= 3
