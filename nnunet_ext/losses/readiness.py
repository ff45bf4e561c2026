"""Which organs the segmenter knows well enough to judge a contour by them."""

from __future__ import annotations

import torch

MEMORY = 0.95
"""Share of the old in the running means, per batch."""


class Readiness:
    """Turns displacements per organ into one driver per sample; an organ counts once it is known.

    A network without an opinion prefers eroded or dilated contours, and no measure is neutral before it has one. So an
    organ counts while its running soft Dice is above a limit, and its displacement is divided by its running mean, so
    that no organ drowns the others.

    Args:
        classes: C, the number of organs.
        known: Running soft Dice above which an organ counts.
    """

    def __init__(self, classes: int, known: float = 0.6) -> None:
        self.known = known
        self.dice = torch.full((classes,), torch.nan, dtype=torch.float64)
        self.displacement = torch.full((classes,), torch.nan, dtype=torch.float64)

    def update(
        self, displacement: torch.Tensor, both: torch.Tensor, predicted: torch.Tensor, labelled: torch.Tensor
    ) -> None:
        """Take all samples of a step into the running means; each (N, C), organs that are absent change nothing."""
        dice = 2 * both.sum(0) / (predicted + labelled).sum(0)
        self.dice = _moved(self.dice, torch.where(labelled.sum(0) > 0, dice, torch.nan))
        self.displacement = _moved(self.displacement, displacement.nanmean(0))

    @property
    def ready(self) -> torch.Tensor:
        """(C,) bool, the organs that count now."""
        return self.dice > self.known

    def driver(self, displacement: torch.Tensor) -> torch.Tensor:
        """Mean over the organs that count of their displacement relative to the usual; (N, C) to (N,), NaN if none."""
        usual = self.displacement.clamp(min=torch.finfo(torch.float64).tiny)
        return torch.where(self.ready, displacement / usual, torch.nan).nanmean(1)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Running means, for a checkpoint."""
        return {"dice": self.dice, "displacement": self.displacement}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Continue from a checkpoint."""
        self.dice, self.displacement = state["dice"].cpu().double(), state["displacement"].cpu().double()


def _moved(mean: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """The running mean after a value; the first value is the mean, a NaN changes nothing."""
    moved = torch.where(mean.isnan(), value, MEMORY * mean + (1 - MEMORY) * value)
    return torch.where(value.isnan(), mean, moved)
