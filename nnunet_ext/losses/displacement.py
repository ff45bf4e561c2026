"""How far a predicted boundary lies from a contour, in mm: a measure that small and large organs share."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch


def gradient_magnitude(maps: torch.Tensor, spacing_mm: Sequence[float]) -> torch.Tensor:
    """Length of the gradient by central differences, per mm; its sum over voxels is the boundary's area / voxel volume.

    Central ones, because the one-sided make a diagonal boundary longer in one direction than in the other.

    Args:
        maps: (B, [Z,] Y, X), float.
        spacing_mm: One per axis.

    Shape:
        returns: as maps.
    """
    squares = torch.zeros_like(maps)
    for axis, step in enumerate(spacing_mm, start=1):
        n = maps.shape[axis]
        wider = torch.cat([maps.narrow(axis, 0, 1), maps, maps.narrow(axis, n - 1, 1)], axis)
        squares += ((wider.narrow(axis, 2, n) - wider.narrow(axis, 0, n)) / (2 * step)).square()
    return squares.sqrt()


def boundary_displacement(
    probabilities: torch.Tensor,
    truth: torch.Tensor,
    spacing_mm: Sequence[float],
    valid: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mean distance between the boundaries of prediction and contour, per sample and class.

    ``d = 2 Σ|p − y| / (P(p) + P(y) + 1)`` with the perimeter (area) ``P(m) = Σ |∇m|`` and 1 voxel face. An organ that
    is dilated or eroded by n mm costs about n, whatever its size, where cross-entropy and Dice prefer the one or the
    other. Do not average ``1 / P(p)`` and ``1 / P(y)``: an erased organ would then cost its area.

    Args:
        probabilities: (B, C, [Z,] Y, X), of the foreground classes.
        truth: (B, C, [Z,] Y, X), bool.
        spacing_mm: One per axis.
        valid: (B, 1, [Z,] Y, X), bool; elsewhere nothing counts.

    Shape:
        returns: (B, C), mm, in single precision, no gradient; NaN where neither the contour nor a probability above
            one half is there.
    """
    probabilities, truth = probabilities.detach().float(), truth.float()
    face = 1 / math.prod(spacing_mm) ** (1 / len(spacing_mm))
    columns = []
    for p, y in zip(probabilities.unbind(1), truth.unbind(1), strict=True):
        counts = torch.ones_like(p) if valid is None else valid[:, 0].float()
        y = torch.where(counts > 0, y, p)
        area = (gradient_magnitude(p, spacing_mm) + gradient_magnitude(y, spacing_mm)) * counts
        displacement = 2 * (p - y).abs().flatten(1).sum(1) / (area.flatten(1).sum(1) + face)
        there = ((torch.maximum(p, y) * counts) > 0.5).flatten(1).any(1)
        columns.append(torch.where(there, displacement, torch.nan))
    return torch.stack(columns, 1)


def overlap_sums(
    probabilities: torch.Tensor, truth: torch.Tensor, valid: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``Σ p y``, ``Σ p`` and ``Σ y`` per sample and class, each (B, C), no gradient: what a soft Dice is made of."""
    probabilities, truth = probabilities.detach().float(), truth.float()
    if valid is not None:
        probabilities, truth = probabilities * valid, truth * valid
    sums = (probabilities * truth, probabilities, truth)
    both, predicted, labelled = (maps.flatten(2).sum(2) for maps in sums)
    return both, predicted, labelled
