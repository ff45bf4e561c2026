"""Earlier samples and earlier scores of a case, so that single samples have something to compete with."""

from __future__ import annotations

from collections import deque
from typing import Any

import torch

LIMITS = (0.1, 5.0)
"""Of a sample's weight when it competes with remembered ones: with 31 of them and λ = 2 it could reach 20."""

MEMORY = 0.9
"""Share of the old in the running score of a case."""


class ScoreMemory:
    """The last samples: first in, first out, and nothing older than four times as many steps as it holds samples.

    Older ones would compete with the larger drivers of an earlier, worse segmenter.

    Args:
        size: How many; 0 remembers nothing.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.step = 0
        self._entries: deque[tuple[int, float, float]] = deque(maxlen=size)

    def entries(self) -> torch.Tensor:
        """(M, 2) of double precision: answer of the QAM and driver, oldest first."""
        return torch.tensor([entry[1:] for entry in self._entries], dtype=torch.float64).reshape(-1, 2)

    def push(self, answers: torch.Tensor, driver: torch.Tensor) -> None:
        """Close a step with its samples, each (F,); F may be 0."""
        self.step += 1
        self._entries.extend((self.step, a, d) for a, d in zip(answers.tolist(), driver.tolist(), strict=True))
        while self._entries and self._entries[0][0] <= self.step - 4 * self.size:
            self._entries.popleft()

    def state_dict(self) -> dict[str, Any]:
        """Content, for a checkpoint."""
        return {"step": self.step, "entries": [list(entry) for entry in self._entries]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint; of one with a larger memory the newest samples stay."""
        self.step = state["step"]
        self._entries = deque(((int(n), a, d) for n, a, d in state["entries"]), maxlen=self.size)


class CaseMemory:
    """Running mean of the score of every case, because noise belongs to a case: one annotator, one habit."""

    def __init__(self) -> None:
        self._means: dict[int, float] = {}

    def joined(self, cases: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Mean of a sample's score and the running one of its case, which keeps the bound; new cases have their own.

        Shape:
            cases: (N,), numbers of cases.
            scores: (N,).
            returns: (N,).
        """
        known = torch.tensor(
            [self._means.get(int(c), float(s)) for c, s in zip(cases.tolist(), scores.tolist(), strict=True)],
            dtype=scores.dtype,
        )
        return (scores + known) / 2

    def update(self, cases: torch.Tensor, scores: torch.Tensor) -> None:
        """Take the scores of a step, each (F,), into the running means."""
        for case, score in zip(cases.tolist(), scores.tolist(), strict=True):
            number = int(case)
            self._means[number] = MEMORY * self._means.get(number, score) + (1 - MEMORY) * score

    def state_dict(self) -> dict[int, float]:
        """Content, for a checkpoint."""
        return dict(self._means)

    def load_state_dict(self, state: dict[int, float]) -> None:
        """Continue from a checkpoint."""
        self._means = dict(state)
