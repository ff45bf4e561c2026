"""Losses that nnU-Net does not have: binary cross-entropy of exclusive labels, and one loss over several passes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, log_softmax


def one_against_rest(logits: torch.Tensor) -> torch.Tensor:
    """Logits of "this class or any other" that give the same probabilities by sigmoid as these do by softmax.

    ``logit_c = log p_c − log(1 − p_c)``. Where p_c is near one, 1 − p_c is summed over the other classes instead of
    subtracted, so that nothing is lost and gradients stay finite.

    Shape:
        logits: (B, K, [Z,] Y, X), K of 2 or more.
        returns: (B, K, [Z,] Y, X), in single precision at least.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    log_p = log_softmax(logits, 1)
    largest = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, logits.argmax(1, keepdim=True), True)
    beside_largest = torch.logsumexp(log_p.masked_fill(largest, -torch.inf), 1, keepdim=True)
    beside_smaller = torch.log1p(-log_p.exp().masked_fill(largest, 0))  # p is at most one half here
    return log_p - torch.where(largest, beside_largest, beside_smaller)


class ExclusiveBCELoss(nn.Module):
    """Mean binary cross-entropy of every organ against all else, for labels that exclude each other.

    Takes the place of nnU-Net's cross-entropy, whose classes share one term per voxel; with one organ the two are
    equal. Every organ counts alike, the background has no term of its own.

    ``−mean over organs and voxels of [g log p + (1 − g) log(1 − p)]`` with p from the softmax.

    Args:
        ignore_label: Label of voxels that do not count; None counts all.

    Shape:
        logits: (B, K, [Z,] Y, X), background first.
        labels: (B, [Z,] Y, X), any number type; 0 is background.
        returns: scalar; 0 where no voxel counts.
    """

    def __init__(self, ignore_label: int | None = None) -> None:
        super().__init__()
        self.ignore_label = ignore_label

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The loss."""
        organs = torch.arange(1, logits.shape[1], device=labels.device).view(1, -1, *[1] * (labels.ndim - 1))
        against_rest = one_against_rest(logits)[:, 1:]
        truth = (labels[:, None] == organs).to(against_rest.dtype)
        if self.ignore_label is None:
            return binary_cross_entropy_with_logits(against_rest, truth)
        counts = (labels[:, None] != self.ignore_label).expand_as(truth)
        losses = binary_cross_entropy_with_logits(against_rest, truth, reduction="none")
        return (losses * counts).sum() / counts.sum().clamp(min=1)


class PassWeightedLoss(nn.Module):
    """Weighted mean of a loss over the passes of a refining network; of a single answer the loss itself.

    In training such a network answers once per pass, otherwise with its last answer, which need not be told: an answer
    is a tensor, or under deep supervision (when ``target`` is a list too) a list of tensors.

    Source: Mosinska et al. 2018 (Beyond the pixel-wise loss for topology-aware delineation, CVPR), section 3.2:
    ``1/Z Σ k L_k`` over K passes with ``Z = K (K + 1) / 2``, which is the weights 1, 2, …, K. Differs: any weights.

    Args:
        loss: Of one answer, with nnU-Net's wrapper for deep supervision where that is on.
        weights: One per pass, first pass first; only their ratio matters.

    Shape:
        output: a list of answers, one per pass; or one answer.
        target: as the loss takes it.
        returns: scalar.

    Raises:
        ValueError: a negative or infinite weight, none that is positive, or another number of passes.
    """

    def __init__(self, loss: nn.Module, weights: Sequence[float]) -> None:
        super().__init__()
        if min(weights, default=0.0) < 0 or not 0 < sum(weights) < math.inf:
            raise ValueError(
                f"weights of passes must be finite, 0 or more and one of them positive, got {list(weights)}."
            )
        self.loss = loss
        self.weights = tuple(weight / sum(weights) for weight in weights)

    def forward(self, output: Any, target: Any) -> torch.Tensor:
        """The loss of one answer, or of all passes."""
        finest = output[0] if isinstance(target, list) else output
        if isinstance(finest, torch.Tensor):
            return self.loss(output, target)
        if len(output) != len(self.weights):
            raise ValueError(f"expected {len(self.weights)} passes, one per weight, got {len(output)}.")
        losses = [
            weight * self.loss(answer, target)
            for weight, answer in zip(self.weights, output, strict=True)
            if weight > 0
        ]
        return torch.stack(losses).sum()
