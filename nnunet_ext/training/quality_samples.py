"""What the quality trainers need of a batch: the loss of every sample, label channels, and numbers to compete with."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from nnunet_ext.losses.competition import Samples
from nnunet_ext.losses.displacement import boundary_displacement, overlap_sums
from nnunet_ext.losses.per_sample import (
    PerSampleLoss,
    cross_entropy_per_sample,
    label_loss,
    mean_where,
    one_hot,
    region_loss,
)
from nnunet_ext.training.losses import PassWeightedLoss, one_against_rest


@dataclass
class Answer:
    """What both networks say about one batch.

    Args:
        losses: (B,), with the segmenter's graph.
        answers: (B,), with the QAM's graph; None during burn-in.
        samples: What the competition must know of them.
    """

    losses: torch.Tensor
    answers: torch.Tensor | None
    samples: Samples


def per_sample_loss(kind: str, labels: LabelManager, loss: nn.Module) -> PerSampleLoss:
    """A trainer's loss, one value per sample.

    Args:
        kind: Setting ``loss`` of the trainer.
        labels: Of the dataset.
        loss: Of the trainer, per batch; levels and passes weigh as in it.
    """
    if labels.has_regions:
        term = partial(region_loss, entropy=kind != "dice", dice=kind != "bce", has_ignore=labels.has_ignore_label)
    else:
        entropy = {"dice": None, "dice_ce": cross_entropy_per_sample}.get(kind, exclusive_bce_per_sample)
        term = partial(label_loss, entropy=entropy, dice=kind != "bce", ignore_label=labels.ignore_label)
    passes = loss if isinstance(loss, PassWeightedLoss) else None
    levels = getattr(loss if passes is None else passes.loss, "weight_factors", None)
    return PerSampleLoss(term, levels, None if passes is None else passes.weights)


def exclusive_bce_per_sample(logits: torch.Tensor, labels: torch.Tensor, ignore_label: int | None) -> torch.Tensor:
    """Binary cross-entropy of every organ against all else, per sample; see ExclusiveBCELoss."""
    against_rest = one_against_rest(logits)[:, 1:]
    truth = one_hot(labels, logits.shape[1])[:, 1:].to(against_rest.dtype)
    losses = binary_cross_entropy_with_logits(against_rest, truth, reduction="none").mean(1, keepdim=True)
    return mean_where(losses, None if ignore_label is None else labels != ignore_label)


def label_channels(target: torch.Tensor, labels: LabelManager) -> tuple[torch.Tensor, torch.Tensor | None]:
    """One bool channel per head, (B, K, …), and with an ignore label which voxels count, (B, 1, …)."""
    if labels.has_regions:
        target = target.bool()
        return (target[:, :-1], ~target[:, -1:]) if labels.has_ignore_label else (target, None)
    valid = target != labels.ignore_label if labels.has_ignore_label else None
    return one_hot(target, labels.num_segmentation_heads), valid


def measured(
    logits: torch.Tensor,
    heads: torch.Tensor,
    valid: torch.Tensor | None,
    *,
    regions: bool,
    spacing_mm: Sequence[float],
    losses: torch.Tensor,
    answers: torch.Tensor | None,
    keys: Sequence[str],
) -> Samples:
    """The numbers of a batch that a competition needs.

    Args:
        logits: (B, K, [Z,] Y, X), the finest of the last pass.
        heads: As label_channels gives them.
        valid: Likewise.
        regions: Whether the heads are independent.
        spacing_mm: Of the patch, one per axis.
        losses: (B,).
        answers: (B,), of the QAM; None where it was not asked.
        keys: Names of the cases.
    """
    logits = logits.detach().float()
    probabilities = torch.sigmoid(logits) if regions else torch.softmax(logits, 1)[:, 1:]
    organs = heads if regions else heads[:, 1:]
    any_organ = organs.any(1, keepdim=True)
    both, predicted, labelled = overlap_sums(probabilities, organs, valid)
    return Samples(
        case=torch.tensor([case_number(key) for key in keys], dtype=torch.float64),
        answer=losses.new_full((len(losses),), torch.nan) if answers is None else answers,
        loss=losses,
        displacement=boundary_displacement(probabilities, organs, spacing_mm, valid),
        both=both,
        predicted=predicted,
        labelled=labelled,
        foreground=(any_organ if valid is None else any_organ & valid).flatten(1).sum(1),
    )


def case_number(case: str) -> int:
    """A number of 52 bits for a case's name, the same in every process and run, that a double holds exactly."""
    return int(hashlib.sha256(str(case).encode()).hexdigest()[:13], 16)
