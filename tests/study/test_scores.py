from __future__ import annotations

import json
from pathlib import Path
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

    def dice(
        self, predicted: dict[str, np.ndarray], drawn: dict[str, np.ndarray], *organs: str, ignored: Any = none
    ) -> float | None:
        return scores._dice(predicted, drawn, organs, ignored)

    def test_organs_are_joined_before_they_are_compared(self) -> None:
        drawn = {"L": self.left, "R": self.right}
        swapped = {"L": self.right, "R": self.left}
        assert self.dice(swapped, drawn, "L", "R") == 1.0
        assert self.dice(swapped, drawn, "L") == 0.0

    def test_it_is_twice_the_common_over_the_sum(self) -> None:
        assert self.dice({"L": self.left | self.right}, {"L": self.left}, "L") == pytest.approx(4 / 5)

    def test_what_is_to_be_ignored_does_not_count(self) -> None:
        both = self.left | self.right
        assert self.dice({"L": both}, {"L": self.left}, "L", ignored=self.right) == 1.0
        assert self.dice({"L": self.right}, {"L": self.none}, "L", ignored=self.right) is None

    def test_what_nobody_drew_has_no_score(self) -> None:
        assert self.dice({"L": self.left, "R": self.right}, {"L": self.left}, "L", "R") is None
        assert self.dice({"L": self.none}, {"L": self.none}, "L") is None

    def test_an_organ_that_is_missed_counts_as_nothing(self) -> None:
        assert self.dice({"L": self.none}, {"L": self.left}, "L") == 0.0


def judged(monkeypatch: pytest.MonkeyPatch, raw: Path, labels: dict[str, int], truth: Any) -> Any:
    """Scores of a network that sees organ A in the first three of four voxels."""
    dataset = raw / "Dataset001_Drawn"
    dataset.mkdir(parents=True)
    (dataset / "dataset.json").write_text(json.dumps({"labels": labels}))
    monkeypatch.setattr(scores, "_predictor", lambda trainer: None)
    monkeypatch.setattr(scores, "_predict", lambda *_: {"A": np.array([[[True, True, True, False]]])})
    monkeypatch.setattr(scores, "_truth", lambda *_: np.array([[truth]]))
    cases = SimpleNamespace(load_case=lambda case: (np.zeros(1), None, None, {}))
    trainer = SimpleNamespace(
        set_deep_supervision_enabled=lambda on: None,
        network=torch.nn.Identity(),
        dataset_class=lambda *_: cases,
        preprocessed_dataset_folder="",
    )
    world = SimpleNamespace(raw=raw, clean=dataset.name, test=["a"], study=SimpleNamespace(structures={}))
    return scores.judge(world, trainer)["a"]["A"]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("labels", "dsc"), [({"background": 0, "A": 1, "ignore": 2}, 1.0), ({"background": 0, "A": 1}, 4 / 5)]
)
def test_the_datasets_ignore_label_is_ignored(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, labels: dict[str, int], dsc: float
) -> None:
    truth = [1, 1, labels.get("ignore", 0), 0]
    assert judged(monkeypatch, tmp_path, labels, truth) == pytest.approx(dsc)
