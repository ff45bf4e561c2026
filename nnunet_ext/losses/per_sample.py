"""nnU-Net's losses, one value per sample instead of one per batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from nnunet_ext.losses.quality import at_least_single

Term: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Logits (B, K, [Z,] Y, X) and target to one loss per sample, (B,)."""

SMOOTH = 1e-5
"""nnU-Net's constant in numerator and denominator of the Dice."""


def one_hot(labels: torch.Tensor, classes: int) -> torch.Tensor:
    """Label maps (B, 1, [Z,] Y, X) as bool channels (B, classes, …), background first; labels beyond are in none."""
    numbers = torch.arange(classes, device=labels.device).view(1, -1, *[1] * (labels.ndim - 2))
    return labels == numbers


def mean_where(values: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
    """Mean of (B, …) per sample over the voxels that count, (B,); 0 where none does."""
    if valid is None:
        return values.flatten(1).mean(1)
    return (values * valid).flatten(1).sum(1) / valid.flatten(1).sum(1).clamp(min=1)


def cross_entropy_per_sample(logits: torch.Tensor, labels: torch.Tensor, ignore_label: int | None) -> torch.Tensor:
    """Mean cross-entropy over the voxels of each sample that count, (B,).

    nnU-Net divides by the voxels of the whole batch; the two differ only where samples have unequal shares to ignore.
    """
    labels = labels[:, 0]
    valid = None if ignore_label is None else labels != ignore_label
    known = labels if valid is None else torch.where(valid, labels, 0)
    return mean_where(cross_entropy(at_least_single(logits), known.long(), reduction="none"), valid)


def binary_cross_entropy_per_sample(
    logits: torch.Tensor, regions: torch.Tensor, valid: torch.Tensor | None
) -> torch.Tensor:
    """Binary cross-entropy of regions per sample, (B,).

    As nnU-Net the mean over regions and voxels, but with an ignore label (``valid`` given) the sum over regions of
    their means.
    """
    logits = at_least_single(logits)
    values = binary_cross_entropy_with_logits(logits, regions.to(logits.dtype), reduction="none")
    return mean_where(values if valid is None else values.sum(1, keepdim=True), valid)


def dice_loss_per_sample(
    probabilities: torch.Tensor, truth: torch.Tensor, valid: torch.Tensor | None = None
) -> torch.Tensor:
    """Minus the mean soft Dice over the classes of each sample: nnU-Net's loss with ``batch_dice`` off.

    Shape:
        probabilities: (B, C, [Z,] Y, X).
        truth: (B, C, [Z,] Y, X), bool.
        valid: (B, 1, [Z,] Y, X), bool.
        returns: (B,), from −1 to 0.
    """
    if valid is not None:
        probabilities, truth = probabilities * valid, truth & valid
    both = (probabilities * truth).flatten(2).sum(2)
    sizes = probabilities.flatten(2).sum(2) + truth.flatten(2).sum(2)
    return -((2 * both + SMOOTH) / (sizes + SMOOTH)).mean(1)


def label_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    entropy: Callable[[torch.Tensor, torch.Tensor, int | None], torch.Tensor] | None = cross_entropy_per_sample,
    dice: bool = True,
    ignore_label: int | None = None,
) -> torch.Tensor:
    """Dice + cross-entropy of labels that exclude each other, per sample.

    Args:
        logits: (B, K, [Z,] Y, X), background first.
        labels: (B, 1, [Z,] Y, X), any number type.
        entropy: The cross-entropy; None leaves it out.
        dice: With the Dice of the foreground classes.
        ignore_label: Label of voxels that do not count.

    Shape:
        returns: (B,).
    """
    loss = logits.new_zeros(len(logits)) if entropy is None else entropy(logits, labels, ignore_label)
    if dice:
        valid = None if ignore_label is None else labels != ignore_label
        probabilities = torch.softmax(at_least_single(logits), 1)[:, 1:]
        loss = loss + dice_loss_per_sample(probabilities, one_hot(labels, logits.shape[1])[:, 1:], valid)
    return loss


def region_loss(
    logits: torch.Tensor, target: torch.Tensor, *, entropy: bool = True, dice: bool = True, has_ignore: bool = False
) -> torch.Tensor:
    """Dice + binary cross-entropy of regions, which may overlap, per sample.

    Args:
        logits: (B, R, [Z,] Y, X).
        target: (B, R, [Z,] Y, X), bool; with an ignore label (B, R + 1, …), the last channel being what to ignore.
        entropy: With the cross-entropy.
        dice: With the Dice.
        has_ignore: Whether the last channel of the target is the ignore label.

    Shape:
        returns: (B,).
    """
    regions = target[:, :-1].bool() if has_ignore else target.bool()
    valid = ~target[:, -1:].bool() if has_ignore else None
    loss = binary_cross_entropy_per_sample(logits, regions, valid) if entropy else logits.new_zeros(len(logits))
    return loss + dice_loss_per_sample(torch.sigmoid(at_least_single(logits)), regions, valid) if dice else loss


class PerSampleLoss(nn.Module):
    """One loss per sample, over the levels of deep supervision and the passes of a refining network.

    Args:
        term: Loss of one output.
        level_weights: Of the levels, finest first, as they are; None is a single output.
        pass_weights: Of the passes; None is a network that answers once.

    Shape:
        output: logits, with levels a list of them, with passes a list of that.
        target: one tensor, with levels a list.
        returns: (B,).
    """

    def __init__(
        self,
        term: Term,
        level_weights: Sequence[float] | None = None,
        pass_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.term = term
        self.level_weights = level_weights
        self.pass_weights = pass_weights

    def forward(self, output: Any, target: Any) -> torch.Tensor:
        """The loss of every sample."""
        if self.pass_weights is None:
            return self._of_answer(output, target)
        return torch.stack(
            [w * self._of_answer(answer, target) for w, answer in zip(self.pass_weights, output, strict=True) if w != 0]
        ).sum(0)

    def _of_answer(self, output: Any, target: Any) -> torch.Tensor:
        if self.level_weights is None:
            return self.term(output, target)
        return torch.stack(
            [w * self.term(o, t) for w, o, t in zip(self.level_weights, output, target, strict=True) if w != 0]
        ).sum(0)
