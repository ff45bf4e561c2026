"""The picture of a training's progress costs little, and its last state is drawn."""

from __future__ import annotations

import pytest

from nnunet_ext.training.base import nnUNetTrainerExt
from nnunet_ext.training.progress import SHARE, PacedPlot


class Watch:
    """A clock that only moves when told, and a plot that takes two seconds of it."""

    def __init__(self) -> None:
        self.now, self.drawn = 0.0, []
        self.paced = PacedPlot(self.plot, lambda: self.now)

    def plot(self, folder: str) -> None:
        self.now += 2.0
        self.drawn.append((folder, self.now))

    def train(self, epochs: int, seconds: float) -> None:
        for _ in range(epochs):
            self.now += seconds
            self.paced("fold_0")


def test_the_first_epoch_is_drawn():
    watch = Watch()
    watch.train(1, 5.0)
    assert watch.drawn == [("fold_0", 7.0)]


def test_long_epochs_are_all_drawn_and_short_ones_now_and_then():
    long, short = Watch(), Watch()
    long.train(10, 200.0)
    short.train(100, 5.0)
    assert len(long.drawn) == 10
    assert 2 <= len(short.drawn) <= 7
    assert 2.0 * (len(short.drawn) - 1) <= SHARE * short.now


def test_what_was_skipped_is_drawn_at_the_end_and_only_that():
    watch = Watch()
    watch.train(3, 5.0)
    watch.paced.finish("fold_0")
    watch.paced.finish("fold_0")
    assert len(watch.drawn) == 2


@pytest.mark.slow
def test_a_training_draws_through_it_and_ends_with_its_last_epoch(in_world):
    watch = Watch()
    trainer = in_world(nnUNetTrainerExt, "2d", nnunet_ext={"num_epochs": 3})
    trainer.progress_plot.plot, trainer.progress_plot.clock = watch.plot, lambda: watch.now
    trainer.progress_plot.due = 0.0
    trainer.run_training()
    assert watch.drawn == [(trainer.output_folder, 2.0), (trainer.output_folder, 4.0)]
