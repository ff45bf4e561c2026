"""The competition of a training step: who takes part, by which driver, against which remembered samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeAlias

import torch

from nnunet_ext.losses.memory import LIMITS, CaseMemory, ScoreMemory
from nnunet_ext.losses.quality import Verdict, at_least_single, bounded_score, compete
from nnunet_ext.losses.readiness import Readiness

Driver: TypeAlias = Literal["loss", "displacement", "readiness"]

MEMORY = 0.95
"""Share of the old in the running mean of the answers, per step."""

ENOUGH = 8
"""Samples of a step that are enough to compete without remembered ones; our choice."""


@dataclass(frozen=True)
class Samples:
    """What a competition must know about N samples with C organs; a row of numbers each, to be sent to other processes.

    Args:
        case: (N,), number of the case.
        answer: (N,), of the QAM; NaN where it was not asked.
        loss: (N,); NaN where it says nothing about the contours.
        displacement: (N, C), mm; NaN where an organ is absent.
        both: (N, C), ``Σ p y`` in voxels.
        predicted: (N, C), ``Σ p`` in voxels.
        labelled: (N, C), ``Σ y`` in voxels.
        foreground: (N,), voxels with any label.
    """

    case: torch.Tensor
    answer: torch.Tensor
    loss: torch.Tensor
    displacement: torch.Tensor
    both: torch.Tensor
    predicted: torch.Tensor
    labelled: torch.Tensor
    foreground: torch.Tensor

    def rows(self) -> torch.Tensor:
        """(N, 4 + 4 C), double precision, on the CPU."""
        case, *columns = (getattr(self, field.name).detach() for field in fields(self))
        wide = at_least_single(self.loss)
        numbers = torch.cat([column.reshape(len(column), -1).to(wide) for column in columns], 1).cpu()  # one transfer
        return torch.cat([case.cpu().double()[:, None], numbers.double()], 1)

    @classmethod
    def of_rows(cls, rows: torch.Tensor) -> Samples:
        """Samples from their rows."""
        organs = (rows.shape[1] - 4) // 4
        single = [1, 1, 1, organs, organs, organs, organs, 1]
        parts = rows.split(single, 1)
        names = [field.name for field in fields(cls)]
        wide = {"displacement", "both", "predicted", "labelled"}
        return cls(**{n: part if n in wide else part[:, 0] for n, part in zip(names, parts, strict=True)})


@dataclass(frozen=True)
class Outcome:
    """A verdict on N samples and what it rests on.

    Args:
        verdict: Weights and pulls.
        score: (N,), NaN where the QAM was not asked.
        driver: (N,), NaN where there is none.
        comparable: (N,) bool, samples with enough foreground.
        competed: (N,) bool, those of them that had a driver and an answer.
    """

    verdict: Verdict
    score: torch.Tensor
    driver: torch.Tensor
    comparable: torch.Tensor
    competed: torch.Tensor


class Competition:
    """Holds what lasts beyond a step, and judges the samples of one.

    It decides from detached numbers in double precision, so every process of a distributed training that is given the
    same samples comes to the same verdict and keeps the same memory.

    Args:
        organs: C.
        bound: λ.
        bounded: Whether the score is ``λ tanh(a − ā)`` (OCM) or the answer itself.
        centre: Whether ``ā`` is the running mean of the answers that compete, or 0 (as published). What all answers
            have in common changes no softmax, so nothing holds it: they drift together to where tanh is flat, all
            weights are equal there, and no gradient leads back.
        driver: "loss", "displacement" (mean over organs, mm) or "readiness" (see Readiness), with which a sample that
            shows an organ that is not known yet may gain weight, but not lose any.
        ready_dice: Soft Dice above which an organ counts for "readiness".
        min_foreground: Labelled voxels that a sample needs to be comparable.
        memory: Earlier samples to compete with where fewer than 8 of a step do; 0 is none.
        case_memory: Whether a sample's score is averaged with the running one of its case.
    """

    def __init__(
        self,
        organs: int,
        *,
        bound: float = 2.0,
        bounded: bool = True,
        centre: bool = True,
        driver: Driver = "readiness",
        ready_dice: float = 0.6,
        min_foreground: int = 100,
        memory: int = 0,
        case_memory: bool = False,
    ) -> None:
        self.bound, self.bounded, self.min_foreground = bound, bounded, min_foreground
        self.mean: float | None = None
        self.centre = centre
        self.readiness = Readiness(organs, ready_dice)
        self.drive: Callable[[Samples], torch.Tensor] = {
            "loss": lambda samples: samples.loss,
            "displacement": lambda samples: samples.displacement.nanmean(1),
            "readiness": lambda samples: self.readiness.driver(
                samples.displacement, samples.both, samples.predicted, samples.labelled
            ),
        }[driver]
        self.protects = driver == "readiness"
        self.memory = ScoreMemory(memory)
        self.cases = CaseMemory() if case_memory else None

    def score(self, answers: torch.Tensor, strength: float) -> torch.Tensor:
        """Scores of the QAM's answers, with its graph; those of a step only after it was judged, which moves ``ā``.

        Args:
            answers: (N,).
            strength: 0 to 1, the share of λ that holds now.
        """
        if not self.bounded:
            return strength * answers.float()
        return bounded_score(at_least_single(answers) - (self.mean or 0.0), strength * self.bound)

    def judge(self, samples: Samples, strength: float | None) -> Outcome:
        """The verdict on all samples of a step, wherever they live; remembers them.

        Args:
            samples: Of all micro-batches and processes.
            strength: As for score; None before the QAM is asked, which leaves all weights at 1.
        """
        self.readiness.update(samples.displacement, samples.both, samples.predicted, samples.labelled)
        driver = self.drive(samples)
        comparable = samples.foreground >= self.min_foreground
        if strength is None:
            verdict = Verdict(torch.ones_like(samples.loss), torch.zeros_like(samples.loss))
            return Outcome(verdict, samples.answer, driver, comparable, torch.zeros_like(comparable))
        competes = comparable & driver.isfinite() & samples.answer.isfinite()
        if self.centre and bool(competes.any()):
            self._move_mean(float(samples.answer[competes].mean()))
        score = self.score(samples.answer, strength).double()
        few = self.memory.size > 0 and int(competes.sum()) < ENOUGH
        remembered = self.memory.entries() if few else self.memory.entries()[:0]
        weights, pull = compete(
            score if self.cases is None else self.cases.joined(samples.case, score),
            driver,
            competes,
            remembered=torch.stack([self.score(remembered[:, 0], strength), remembered[:, 1]], 1),
            limits=LIMITS if few else None,
        )
        if self.protects:
            unknown = self.readiness.shows_unknown(samples.labelled)
            weights = torch.where(unknown, weights.clamp(min=1), weights)
        self.memory.push(samples.answer[competes], driver[competes])
        if self.cases is not None:
            self.cases.update(samples.case[competes], score[competes])
        return Outcome(Verdict(weights, pull), score, driver, comparable, competes)

    def _move_mean(self, value: float) -> None:
        self.mean = value if self.mean is None else MEMORY * self.mean + (1 - MEMORY) * value

    def state_dict(self) -> dict[str, Any]:
        """Running means and memories, for a checkpoint."""
        return {
            "readiness": self.readiness.state_dict(),
            "memory": self.memory.state_dict(),
            "cases": {} if self.cases is None else self.cases.state_dict(),
            "mean": self.mean,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint; of one without a mean of the answers the next step has it."""
        self.mean = state.get("mean") if self.centre else None
        self.readiness.load_state_dict(state["readiness"])
        self.memory.load_state_dict(state["memory"])
        if self.cases is not None:
            self.cases.load_state_dict(state["cases"])


def joined(samples: Sequence[Samples]) -> Samples:
    """The samples of several micro-batches as one."""
    return Samples.of_rows(torch.cat([part.rows() for part in samples]))
