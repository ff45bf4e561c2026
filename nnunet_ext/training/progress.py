"""The picture of a training's progress, drawn as often as it may cost time."""

from __future__ import annotations

import time
from collections.abc import Callable

SHARE = 0.02
"""Of a training's time, at most, that goes into its picture; our choice."""


class PacedPlot:
    """Stock's plot of ``progress.png``, skipped while drawing it took more than its share of the time so far.

    Stock draws after every epoch, in about a second: a fifth of a training on a CPU whose epochs take four.

    Args:
        plot: Draws the picture into a folder.
        clock: Seconds, for tests.
    """

    def __init__(self, plot: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self.plot, self.clock = plot, clock
        self.due = clock()
        self.behind = False

    def __call__(self, folder: str) -> None:
        """Draw, unless the last time is too short ago."""
        if self.clock() < self.due:
            self.behind = True
            return
        self._draw(folder)

    def finish(self, folder: str) -> None:
        """Draw what was skipped last."""
        if self.behind:
            self._draw(folder)

    def _draw(self, folder: str) -> None:
        start = self.clock()
        self.plot(folder)
        end = self.clock()
        self.due, self.behind = end + (end - start) * (1 - SHARE) / SHARE, False
