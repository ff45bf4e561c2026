"""Which organs the segmenter knows well enough to judge a contour by them."""

from __future__ import annotations

import torch

MEMORY = 0.95
"""Share of the old in the running mean of the displacement, per batch."""

RECENT = 64
"""Contours of an organ by which it is decided whether it is known; our choice."""

UPPER_QUARTILE = 0.75
"""Our choice: wrong contours lower the mean of the Dice however well the organ is known, but hardly its better quarter
while at least that many contours are right."""


class Readiness:
    """Turns displacements per organ into one driver per sample; an organ counts once it is known.

    A network without an opinion prefers eroded or dilated contours, and no measure is neutral before it has one. So an
    organ counts while the upper quartile of its recent soft Dices is above a limit, and its displacement is divided by
    its running mean, so that no organ drowns the others.

    Args:
        classes: C, the number of organs.
        known: Soft Dice, of the better quarter, above which an organ counts.
    """

    def __init__(self, classes: int, known: float = 0.6) -> None:
        self.known = known
        self.displacement = torch.full((classes,), torch.nan, dtype=torch.float64)
        self.recent = torch.full((0, classes), torch.nan, dtype=torch.float64)

    def update(
        self, displacement: torch.Tensor, both: torch.Tensor, predicted: torch.Tensor, labelled: torch.Tensor
    ) -> None:
        """Take in all samples of a step; each (N, C), organs that are absent change nothing."""
        dice = torch.where(labelled > 0, 2 * both / (predicted + labelled), torch.nan)
        self.recent = _last_of_each(torch.cat([self.recent, dice.double()]))
        self.displacement = _moved(self.displacement, displacement.nanmean(0))

    @property
    def dice(self) -> torch.Tensor:
        """(C,), upper quartile of the recent soft Dices; NaN of an organ that was never seen."""
        if not len(self.recent):
            return torch.full_like(self.displacement, torch.nan)
        return self.recent.nanquantile(UPPER_QUARTILE, 0)

    @property
    def ready(self) -> torch.Tensor:
        """(C,) bool, the organs that count now."""
        return self.dice > self.known

    def driver(self, displacement: torch.Tensor, labelled: torch.Tensor) -> torch.Tensor:
        """Mean over the organs that count of their displacement relative to the usual.

        A sample with an organ that is not known yet has none: judged by its other organs it could lose its weight, and
        the organ would never be learnt.

        Shape:
            displacement, labelled: (N, C), mm and voxels.
            returns: (N,), NaN where there is none.
        """
        usual = self.displacement.clamp(min=torch.finfo(torch.float64).tiny)
        ready = self.ready
        driver = torch.where(ready, displacement / usual, torch.nan).nanmean(1)
        unknown = ((labelled > 0) & ~ready).any(1)
        return torch.where(unknown, torch.nan, driver)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Recent Dices and running means, for a checkpoint."""
        return {"recent": self.recent, "displacement": self.displacement}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Continue from a checkpoint."""
        self.recent, self.displacement = state["recent"].cpu().double(), state["displacement"].cpu().double()


def _last_of_each(dices: torch.Tensor) -> torch.Tensor:
    """Of each organ its last ``RECENT`` numbers, oldest first; (N, C) to (M, C), NaN above where there are fewer."""
    columns = [column[column.isfinite()][-RECENT:] for column in dices.unbind(1)]
    most = max((len(column) for column in columns), default=0)
    return torch.stack([torch.nn.functional.pad(c, (most - len(c), 0), value=torch.nan) for c in columns], 1)


def _moved(mean: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """The running mean after a value; the first value is the mean, a NaN changes nothing."""
    moved = torch.where(mean.isnan(), value, MEMORY * mean + (1 - MEMORY) * value)
    return torch.where(value.isnan(), mean, moved)
