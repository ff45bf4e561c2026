"""A learning rate that falls where the training loss no longer does, computed anew from the logged losses."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

FACTOR = 0.2
PATIENCE = 30
MEMORY = 0.93
"""Of the running average: its share of the old value."""
GAIN = 1e-3
"""By how much the average must fall below its best to count as better, in units of the loss."""
STOP_AFTER = 50
STOP_RATE = 1e-6


@dataclass(frozen=True)
class Plateau:
    """Where a training stands.

    Args:
        rate: Learning rate of the next epoch.
        waited: Epochs since the running average of the loss was last better than its best by ``GAIN``.
    """

    rate: float
    waited: int

    @property
    def is_over(self) -> bool:
        """Whether a lower rate promises nothing any more."""
        return self.waited >= STOP_AFTER and self.rate <= STOP_RATE


def plateau_after(losses: Sequence[float], initial_lr: float) -> Plateau:
    """Learning rate and patience after these epochs.

    Source: nnU-Net v1 (``nnUNetTrainer``, before its polynomial schedule): torch's ReduceLROnPlateau with factor 0.2,
    patience 30 and an absolute threshold of 1e-3, on the running average of the training loss with a memory of 0.93;
    training ends after 50 epochs without gain once the rate is 1e-6 or less. Differs: one threshold for both rules (v1
    ends by 5e-4), no new patience of 25 epochs at a higher rate, and an epoch whose loss is not a number leaves the
    average as it is.

    Args:
        losses: Mean training loss of every epoch so far.
        initial_lr: Of the first epoch.
    """
    average, best = math.nan, math.inf
    rate, waited, bad = initial_lr, 0, 0
    for loss in losses:
        if math.isfinite(loss):
            average = loss if math.isnan(average) else MEMORY * average + (1 - MEMORY) * loss
        if average < best - GAIN:
            best, waited, bad = average, 0, 0
        else:
            waited, bad = waited + 1, bad + 1
        if bad > PATIENCE:
            rate, bad = rate * FACTOR, 0
    return Plateau(rate, waited)


class PlateauScheduler:
    """Sets the learning rate from the losses of the epochs before; holds no state, so a continued run cannot differ.

    Args:
        optimizer: Whose rate is set.
        initial_lr: Of the first epoch.
        losses: Gives the mean training loss of every epoch so far.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, initial_lr: float, losses: Callable[[], Sequence[float]]
    ) -> None:
        self.optimizer, self.initial_lr, self.losses = optimizer, initial_lr, losses

    def step(self, epoch: float) -> None:
        """Set the rate of this epoch, or of a point within it."""
        rate = plateau_after(self.losses()[: int(epoch)], self.initial_lr).rate
        for group in self.optimizer.param_groups:
            group["lr"] = rate
