"""Which organs the segmenter knows well enough to judge a contour by them."""

from __future__ import annotations

import torch

MEMORY = 0.95
"""Share of the old in the running mean of the displacement, per batch."""

RECENT = 64
"""Contours of an organ by which it is decided whether it is known, and what the middle one is; our choice."""

UPPER_QUARTILE = 0.75
"""Our choice: wrong contours lower the mean of the Dice however well the organ is known, but hardly its better quarter
while at least that many contours are right."""


class Readiness:
    """Turns displacements per organ into one driver per sample; an organ counts once it is known.

    A network without an opinion prefers eroded or dilated contours, and no measure is neutral before it has one. So an
    organ counts while the upper quartile of its recent soft Dices is above a limit, and its displacement is divided by
    its running mean, so that no organ drowns the others.

    A network that leans to large or small contours would find those right that lean with it, and lean further. So
    contours are judged by the middle one instead of by the prediction: of a displacement ``d`` the part
    ``e = d Σ(p − y) / Σ|p − y|`` is size, and ``|e − median e| + d − |e|`` counts. It equals d where the network leans
    to neither side, and is right while the middle contour is: where fewer than half are wrong in the same direction.

    Args:
        classes: C, the number of organs.
        known: Soft Dice, of the better quarter, above which an organ counts.
    """

    def __init__(self, classes: int, known: float = 0.6) -> None:
        self.known = known
        self.displacement = torch.full((classes,), torch.nan, dtype=torch.float64)
        self.recent = torch.full((0, classes), torch.nan, dtype=torch.float64)
        self.excess = torch.full((0, classes), torch.nan, dtype=torch.float64)

    def update(
        self, displacement: torch.Tensor, both: torch.Tensor, predicted: torch.Tensor, labelled: torch.Tensor
    ) -> None:
        """Take in all samples of a step; each (N, C), organs that are absent change nothing."""
        dice = torch.where(labelled > 0, 2 * both / (predicted + labelled), torch.nan)
        excess = torch.where(labelled > 0, excess_of(displacement, both, predicted, labelled), torch.nan)
        self.recent = _last_of_each(torch.cat([self.recent, dice.double()]))
        self.excess = _last_of_each(torch.cat([self.excess, excess.double()]))
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

    @property
    def middle(self) -> torch.Tensor:
        """(C,), median of the recent excesses in mm; NaN of an organ that was never seen."""
        return self.excess.nanquantile(0.5, 0) if len(self.excess) else torch.full_like(self.displacement, torch.nan)

    def driver(
        self, displacement: torch.Tensor, both: torch.Tensor, predicted: torch.Tensor, labelled: torch.Tensor
    ) -> torch.Tensor:
        """Mean over the organs that count of their displacement from the middle contour, relative to the usual.

        Shape:
            displacement, both, predicted, labelled: (N, C), mm and voxels.
            returns: (N,), NaN where there is none.
        """
        usual = self.displacement.clamp(min=torch.finfo(torch.float64).tiny)
        excess = excess_of(displacement, both, predicted, labelled)
        from_middle = (excess - self.middle).abs() + displacement - excess.abs()
        return torch.where(self.ready, from_middle / usual, torch.nan).nanmean(1)

    def shows_unknown(self, labelled: torch.Tensor) -> torch.Tensor:
        """Samples with a contour of an organ that is not known yet; (N, C) voxels to (N,) bool.

        Judged by its other organs alone such a sample could lose its weight, and the organ would never be learnt.
        """
        return ((labelled > 0) & ~self.ready).any(1)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Recent Dices and excesses and running means, for a checkpoint."""
        return {"recent": self.recent, "excess": self.excess, "displacement": self.displacement}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Continue from a checkpoint; what an older one does not have is collected anew."""
        self.displacement = state["displacement"].cpu().double()
        nothing = self.displacement.new_zeros((0, len(self.displacement)))
        self.recent, self.excess = (state.get(name, nothing).cpu().double() for name in ("recent", "excess"))


def excess_of(
    displacement: torch.Tensor, both: torch.Tensor, predicted: torch.Tensor, labelled: torch.Tensor
) -> torch.Tensor:
    """By how many mm predictions are larger than their contours, negative where smaller: the part of a displacement
    that is size, ``d Σ(p − y) / Σ|p − y|``; all (N, C), mm and voxels as Samples has them."""
    apart = predicted + labelled - 2 * both  # Σ|p − y|, because y is 0 or 1
    return displacement * ((predicted - labelled) / apart.clamp(min=torch.finfo(torch.float32).tiny)).clamp(-1, 1)


def _last_of_each(dices: torch.Tensor) -> torch.Tensor:
    """Of each organ its last ``RECENT`` numbers, oldest first; (N, C) to (M, C), NaN above where there are fewer."""
    columns = [column[column.isfinite()][-RECENT:] for column in dices.unbind(1)]
    most = max((len(column) for column in columns), default=0)
    return torch.stack([torch.nn.functional.pad(c, (most - len(c), 0), value=torch.nan) for c in columns], 1)


def _moved(mean: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """The running mean after a value; the first value is the mean, a NaN changes nothing."""
    moved = torch.where(mean.isnan(), value, MEMORY * mean + (1 - MEMORY) * value)
    return torch.where(value.isnan(), mean, moved)
