from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_ext.roi.provenance import HELD_OUT_CSV
from nnunet_ext.training.quality import nnUNetTrainerExtQuality
from nnunet_ext.training.quality_held_out import case_answer, covering_tiles, heads_target, write_held_out

LABELS = LabelManager({"background": 0, "a": 1, "b": 2}, None)


def contours() -> np.ndarray:
    labels = np.zeros((1, 10, 30, 40), np.int8)
    labels[0, 2:7, 5:28, 3:12] = 1
    labels[0, 4:6, 10:12, 20:22] = 2
    return labels


@pytest.mark.parametrize("patch", [(4, 8, 8), (16, 64, 64), (8, 8), (64, 48)])
def test_patches_cover_every_contour_once(patch):
    foreground = contours()[0] > 0
    seen = np.zeros(foreground.shape, int)
    for box in covering_tiles(foreground, patch):
        assert box.shape == (1,) * (3 - len(patch)) + patch
        seen[tuple(slice(max(0, a), b) for a, b in zip(box.start, box.stop, strict=True))] += 1
    assert (seen[foreground] == 1).all()


def test_no_contour_no_patch_no_answer():
    empty = np.zeros((1, 4, 8, 8), np.int8)
    assert covering_tiles(empty[0] > 0, (4, 4)) == []
    assert np.isnan(case_answer(np.zeros((1, 4, 8, 8)), empty, (4, 4), LABELS, 1, lambda *seen: torch.zeros(1)))


def test_patches_with_few_labelled_voxels_do_not_count_unless_there_are_no_others():
    def ask(image: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        asked.append((tuple(image.shape), (target > 0).flatten(1).sum(1)))
        return image.flatten(1).mean(1)

    image = np.broadcast_to(np.arange(10.0)[:, None, None], (2, 10, 30, 40))
    asked: list[Any] = []
    answer = case_answer(image, contours(), (32, 48), LABELS, 210, ask)
    assert [int(n) for _, sizes in asked for n in sizes] == [211, 211]  # slices 4 and 5 show both organs
    assert asked[0][0] == (2, 2, 32, 48)
    assert answer == pytest.approx(4.5 * 29 * 37 / (32 * 48))  # what of the patch lies in the image
    asked.clear()
    case_answer(image, contours(), (32, 48), LABELS, 10_000, ask)
    assert [int(n) for _, sizes in asked for n in sizes] == [211, 211]


def test_regions_and_padding_come_as_in_training():
    manager = LabelManager({"background": 0, "both": [1, 2], "b": 2, "ignore": 3}, [1, 2])
    patch = np.array([[[-1, 0, 1, 2, 3]]], np.int8)
    assert heads_target(patch, LABELS).tolist() == [[[0, 0, 1, 2, 3]]]
    assert heads_target(patch, manager).int().tolist() == [[[0, 0, 1, 1, 0]], [[0, 0, 0, 1, 0]], [[0, 0, 0, 0, 1]]]


def test_weights_are_relative_to_the_other_held_out_cases(tmp_path: Path):
    write_held_out(tmp_path / "out.csv", {"b": 0.0, "a": float(np.log(3.0)), "empty": float("nan")})
    with (tmp_path / "out.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["case"], float(row["weight"])) for row in rows] == [("a", 1.5), ("b", 0.5)]
    write_held_out(tmp_path / "none.csv", {})
    assert (tmp_path / "none.csv").read_text() == "case,score,weight\n"


@pytest.mark.slow
@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_the_trainer_judges_the_cases_of_its_fold_alone(in_world, world, configuration):
    trainer = in_world(nnUNetTrainerExtQuality, configuration)
    trainer.initialize()
    trainer.judge_held_out()
    with Path(trainer.output_folder, HELD_OUT_CSV).open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["case"] for row in rows] == sorted(world.splits[0]["val"])
    assert np.mean([float(row["weight"]) for row in rows]) == pytest.approx(1, abs=1e-4)
    assert len({row["score"] for row in rows}) == len(rows)
