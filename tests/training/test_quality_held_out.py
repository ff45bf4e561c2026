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
from nnunet_ext.training.quality_held_out import (
    case_answer,
    counted_labels,
    covering_tiles,
    heads_target,
    write_held_out,
)

LABELS = LabelManager({"background": 0, "a": 1, "b": 2}, None)
IGNORE = LabelManager({"background": 0, "a": 1, "b": 2, "ignore": 3}, None)
REGIONS = LabelManager({"background": 0, "both": [1, 2], "b": 2, "ignore": 3}, [1, 2])


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
    patch = np.array([[[-1, 0, 1, 2, 3]]], np.int8)
    assert heads_target(patch, LABELS).tolist() == [[[0, 0, 1, 2, 3]]]
    assert heads_target(patch, REGIONS).int().tolist() == [[[0, 0, 1, 1, 0]], [[0, 0, 0, 1, 0]], [[0, 0, 0, 0, 1]]]


def test_contours_are_those_of_heads_that_were_contoured():
    assert counted_labels(LABELS) == counted_labels(IGNORE) == counted_labels(REGIONS) == [1, 2]
    assert counted_labels(IGNORE, [False, True, False]) == [2]
    assert counted_labels(REGIONS, [False, True]) == [1, 2]
    assert counted_labels(REGIONS, [True, False]) == [2]
    assert counted_labels(REGIONS, [True, True]) == []


def asked(
    labels: np.ndarray, manager: LabelManager, absent: list[bool] | None = None, least: int = 1
) -> list[torch.Tensor]:
    """Targets of the patches of 8 x 8 that the QAM is asked about."""
    seen: list[torch.Tensor] = []

    def ask(_: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        seen.extend(target)
        return torch.zeros(len(target))

    case_answer(np.zeros(labels.shape), labels, (8, 8), manager, least, ask, absent)
    return seen


@pytest.mark.parametrize("manager", [IGNORE, REGIONS], ids=["labels", "regions"])
def test_what_is_to_be_ignored_is_no_contour(manager):
    labels = np.full((1, 2, 40, 40), 3, np.int8)  # sparse: all but one corner of one slice is to be ignored
    labels[0, 0, :8, :8] = 0
    assert asked(labels, manager) == []
    labels[0, 0, 2:4, 2:5] = 1
    (target,) = asked(labels, manager)
    assert (target[0] == 1).sum() == 6
    labels[0, 1, 2, 2] = 2  # a slice with one contoured voxel, and 63 to ignore
    assert len(asked(labels, manager)) == 2
    assert len(asked(labels, manager, least=6)) == 1


@pytest.mark.parametrize(
    ("manager", "gone"), [(IGNORE, [False, True, False]), (REGIONS, [True, False])], ids=["labels", "regions"]
)
def test_what_was_not_contoured_is_not_there(manager, gone):
    labels = np.zeros((1, 2, 8, 8), np.int8)
    labels[0, 0, :, :4] = 1  # of a, which is gone; its slice goes with it
    labels[0, 1, :2, :2] = 2
    labels[0, 1, 2:, :] = 1
    assert len(asked(labels, manager)) == 2
    (target,) = asked(labels, manager, gone)
    if manager.has_regions:
        assert target.flatten(1).sum(1).tolist() == [0, 4, 0]
    else:
        assert sorted(target.unique().tolist()) == [0, 2]
    all_gone = [False, True, True] if manager is IGNORE else [True, True]
    assert asked(labels, manager, all_gone) == []


def test_weights_are_relative_to_the_other_held_out_cases(tmp_path: Path):
    write_held_out(tmp_path / "out.csv", {"b": 0.0, "a": float(np.log(3.0)), "empty": float("nan")})
    with (tmp_path / "out.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["case"], float(row["weight"])) for row in rows] == [("a", 1.5), ("b", 0.5)]
    write_held_out(tmp_path / "none.csv", {})
    assert (tmp_path / "none.csv").read_text() == "case,score,weight\n"


def competing(in_world: Any, configuration: str = "2d") -> Any:
    """A trainer whose QAM has had a step."""
    quality = {"burn_in": 0.0, "ramp": 0.0, "driver": "displacement", "min_foreground": 0}
    block = {"oversample_foreground_percent": 1.0, "quality": quality}
    trainer = in_world(nnUNetTrainerExtQuality, configuration, nnunet_ext=block)
    trainer.initialize()
    trainer.dataloader_train, _ = trainer.get_dataloaders()
    trainer.set_deep_supervision_enabled(trainer.enable_deep_supervision)
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    trainer.train_step(next(trainer.dataloader_train))
    return trainer


@pytest.mark.slow
@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_the_trainer_judges_the_cases_of_its_fold_alone(in_world, world, configuration):
    trainer = competing(in_world, configuration)
    trainer.judge_held_out()
    with Path(trainer.output_folder, HELD_OUT_CSV).open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["case"] for row in rows] == sorted(world.splits[0]["val"])
    assert np.mean([float(row["weight"]) for row in rows]) == pytest.approx(1, abs=1e-4)
    assert len({row["score"] for row in rows}) == len(rows)


@pytest.mark.slow
def test_a_qam_that_was_never_trained_judges_nobody(in_world):
    trainer = in_world(nnUNetTrainerExtQuality, "2d", nnunet_ext={"quality": {"burn_in": 1.0, "ramp": 1.0}})
    trainer.initialize()
    old = Path(trainer.output_folder, HELD_OUT_CSV)
    for _ in range(2):
        trainer.judge_held_out()
        assert not old.exists()
        old.write_text("case,score,weight\ncase_0,1,1\n")  # of an earlier training
    assert f"No {HELD_OUT_CSV}: the QAM was never trained" in Path(trainer.log_file).read_text()


@pytest.mark.slow
def test_judgements_stay_where_only_the_qam_is_missing(in_world):
    """Of a checkpoint without the file beside it, which prediction does not need."""
    trainer = competing(in_world)
    trainer.judge_held_out()
    written = Path(trainer.output_folder, HELD_OUT_CSV)
    before = written.read_bytes()
    trainer.logger.log("mean_fg_dice", 0.5, 0)
    final = Path(trainer.output_folder, "checkpoint_final.pth")
    trainer.save_checkpoint(str(final))
    final.with_suffix(".quality.pth").unlink()
    trainer.load_checkpoint(str(final))
    trainer.judge_held_out()
    assert written.read_bytes() == before
    assert f"{HELD_OUT_CSV} stays as it was" in Path(trainer.log_file).read_text()
    trainer.train_step(next(trainer.dataloader_train))
    trainer.judge_held_out()
    assert written.read_bytes() != before


@pytest.mark.slow
def test_what_a_cascade_appends_to_the_image_is_not_shown(in_world, monkeypatch):
    trainer, seen = competing(in_world), []
    _, cases = trainer.get_tr_and_val_datasets()
    image, labels, previous, properties = cases.load_case(cases.identifiers[0])
    longer = np.concatenate([image, np.ones_like(image)])
    monkeypatch.setattr(cases, "load_case", lambda _: (longer, labels, previous, properties))
    monkeypatch.setattr(trainer, "get_tr_and_val_datasets", lambda: (None, cases))
    ask = trainer.ask_qam
    monkeypatch.setattr(trainer, "ask_qam", lambda shown, target: seen.append(shown.shape[1]) or ask(shown, target))
    trainer.judge_held_out()
    assert set(seen) == {1}


@pytest.mark.slow
def test_the_trainer_leaves_out_what_was_not_contoured_in_a_case(in_world, world, monkeypatch):
    trainer, (case, other) = competing(in_world), sorted(world.splits[0]["val"])
    trainer._absent = {case: [False, True, False, False]}
    _, cases = trainer.get_tr_and_val_datasets()
    monkeypatch.setattr(trainer, "get_tr_and_val_datasets", lambda: (None, cases))
    ask, seen = trainer.ask_qam, []
    monkeypatch.setattr(trainer, "ask_qam", lambda image, target: seen.append(target) or ask(image, target))
    found = {}
    for name in (case, other):
        seen.clear()
        cases.identifiers = [name]
        trainer.judge_held_out()
        found[name] = sorted(torch.cat(seen).unique().tolist())
    assert found == {case: [0, 2, 3], other: [0, 1, 2, 3]}
