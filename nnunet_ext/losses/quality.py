"""Weights of training samples by the quality of their contours: bounded score, competition, loss, surrogate.

Source: quality awareness and overfitting control modules, QAM and OCM (Zhu, Shi, Wu 2019: Pick-and-Learn, MICCAI): a
network gives every sample of a batch one answer ``a``, ``s = λ tanh a`` bounds it, ``w = softmax(s)`` weighs the
samples' losses. The surrogate, the driver beside the loss, the competition among comparable samples and the one with
remembered samples are ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch

Gather: TypeAlias = Callable[[torch.Tensor], tuple[torch.Tensor, int]]
"""Gives the rows of all processes one below the other, and the number of the first that is the caller's."""


class Verdict(NamedTuple):
    """What a competition says about N samples.

    Args:
        weights: (N,), of the losses; 1 is the weight of a sample in plain training.
        pull: (N,), of the scores: ``w (d − mean d)``, by which a score falls that its driver does not deserve.
    """

    weights: torch.Tensor
    pull: torch.Tensor


def alone(rows: torch.Tensor) -> tuple[torch.Tensor, int]:
    """The gather of a single process."""
    return rows, 0


def bounded_score(answers: torch.Tensor, bound: float) -> torch.Tensor:
    """``λ tanh(a)``, so that no two weights of a batch differ by more than the factor ``exp(2 λ)``.

    Shape:
        answers: (N,), any floating type.
        returns: (N,), within ±``bound``, in single precision at least.
    """
    return bound * torch.tanh(at_least_single(answers))


def batch_weights(scores: torch.Tensor) -> torch.Tensor:
    """Softmax over the samples; (N,) in, (N,) out, in single precision at least, sum 1."""
    return torch.softmax(at_least_single(scores), 0)


def weighted_loss(losses: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """``Σ w L``: the published loss, whose one backward pass trains segmenter and QAM; (N,), (N,) to a scalar."""
    return (weights * losses).sum()


def surrogate_loss(losses: torch.Tensor, scores: torch.Tensor, driver: torch.Tensor | None = None) -> torch.Tensor:
    """``Σ sg(w) L + Σ sg(w (d − d̄)) s``: the gradients of the weighted loss, with a driver of the scores' own.

    ``sg`` stops the gradient, ``d̄ = Σ w d``. The value is no loss; its gradients are what counts.

    Args:
        losses: (N,), with the segmenter's graph.
        scores: (N,), with the QAM's graph.
        driver: (N,), what a score is judged by; None is the loss, which makes the gradients those of weighted_loss.
    """
    weights = batch_weights(scores.detach())
    driver = (losses if driver is None else driver).detach()
    pull = weights * (driver - (weights * driver).sum())
    return (weights * losses).sum() + (pull * scores).sum()


def compete(
    scores: torch.Tensor,
    driver: torch.Tensor,
    competes: torch.Tensor | None = None,
    *,
    remembered: torch.Tensor | None = None,
    limits: tuple[float, float] | None = None,
) -> Verdict:
    """Weights by softmax among comparable samples, together with remembered ones; all others keep weight 1.

    Background-only patches are nearly free of loss; in one softmax with the others they would win every time. With F
    comparable and M remembered samples ``weights = (F + M) softmax(s)``, of which the present ones are returned. A
    sample without anybody to compete with has weight 1 and no pull.

    Args:
        scores: (N,), detached.
        driver: (N,); only read where a sample competes.
        competes: (N,) bool, the comparable samples; None is all.
        remembered: (M, 2), scores and drivers of earlier samples.
        limits: Smallest and largest weight that a loss may have; the pull keeps the unlimited one.

    Shape:
        returns: two of (N,); weights sum to N where nothing is remembered or limited.
    """
    competes = torch.ones_like(scores, dtype=torch.bool) if competes is None else competes
    remembered = scores.new_zeros((0, 2)) if remembered is None else remembered.to(scores)
    pool = torch.cat([scores[competes], remembered[:, 0]])
    judged = torch.cat([driver[competes], remembered[:, 1]])
    shares = torch.softmax(pool, 0)
    mine = len(pool) * shares[: int(competes.sum())]
    weights, pull = torch.ones_like(scores), torch.zeros_like(scores)
    weights[competes] = mine if limits is None else mine.clamp(*limits)
    pull[competes] = mine * (driver[competes] - (shares * judged).sum())
    return Verdict(weights, pull)


def step_loss(
    losses: torch.Tensor, scores: torch.Tensor | None, verdict: Verdict, samples: int, processes: int = 1
) -> torch.Tensor:
    """What to run backward for these samples, which may be a part of those that competed.

    Summed over all parts of a step, or averaged over the processes of a distributed one, the gradients are those of
    ``1/N Σ weights L + 1/N Σ pull s``: exact for micro-batches that accumulate and for batches of unequal size.

    Args:
        losses: (n,), with the segmenter's graph.
        scores: (n,), with the QAM's graph; None trains the segmenter alone.
        verdict: Of these n samples, cut out of the verdict on all.
        samples: N, how many all parts and processes have together in this step.
        processes: By how many the gradients will be divided.
    """
    total = (verdict.weights.to(losses) * losses).sum()
    if scores is not None:
        total = total + (verdict.pull.to(scores) * scores).sum()
    return total * (processes / samples)


def at_least_single(values: torch.Tensor) -> torch.Tensor:
    """The same numbers in single precision, or in double if that is what they have."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
