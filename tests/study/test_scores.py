from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from nnunet_ext.study import scores

STRUCTURES = {"Lung": (1, 3), "Clavicle": (2, 3)}


def predicted(monkeypatch: pytest.MonkeyPatch, regions: bool, labels: Any, probabilities: Any) -> dict[str, np.ndarray]:
    monkeypatch.setattr(
        scores,
        "convert_predicted_logits_to_segmentation_with_correct_shape",
        lambda *arguments, **more: (np.asarray(labels), np.asarray(probabilities)),
    )
    trainer = SimpleNamespace(
        label_manager=SimpleNamespace(has_regions=regions), plans_manager=None, configuration_manager=None
    )
    predictor = SimpleNamespace(predict_sliding_window_return_logits=lambda data: torch.zeros(1))
    return scores._predict(trainer, predictor, np.zeros((1, 1, 1, 3), np.float32), {}, STRUCTURES)


def test_overlapping_regions_are_both_predicted(monkeypatch: pytest.MonkeyPatch) -> None:
    found = predicted(monkeypatch, True, [[[1, 2, 2]]], [[[[0.9, 0.8, 0.1]]], [[[0.2, 0.7, 0.6]]]])
    assert found["Lung"].ravel().tolist() == [True, True, False]
    assert found["Clavicle"].ravel().tolist() == [False, True, True]


def test_organs_of_a_label_map_are_predicted_by_their_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    found = predicted(monkeypatch, False, [[[1, 3, 2]]], np.zeros((4, 1, 1, 3)))
    assert found["Lung"].ravel().tolist() == [True, True, False]
    assert found["Clavicle"].ravel().tolist() == [False, True, True]


class TestDice:
    left, right, none = (np.array([[values]], bool) for values in ([1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]))

    def dice(self, predicted: dict[str, np.ndarray], drawn: dict[str, np.ndarray], *organs: str) -> float | None:
        return scores._dice(predicted, drawn, organs)

    def test_organs_are_joined_before_they_are_compared(self) -> None:
        drawn = {"L": self.left, "R": self.right}
        swapped = {"L": self.right, "R": self.left}
        assert self.dice(swapped, drawn, "L", "R") == 1.0
        assert self.dice(swapped, drawn, "L") == 0.0

    def test_it_is_twice_the_common_over_the_sum(self) -> None:
        assert self.dice({"L": self.left | self.right}, {"L": self.left}, "L") == pytest.approx(4 / 5)

    def test_what_nobody_drew_has_no_score(self) -> None:
        assert self.dice({"L": self.left, "R": self.right}, {"L": self.left}, "L", "R") is None
        assert self.dice({"L": self.none}, {"L": self.none}, "L") is None

    def test_an_organ_that_is_missed_counts_as_nothing(self) -> None:
        assert self.dice({"L": self.none}, {"L": self.left}, "L") == 0.0
