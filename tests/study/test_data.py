from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nnunet_ext.errors import InputError
from nnunet_ext.settings import resolve_settings
from nnunet_ext.study.data import prepare
from nnunet_ext.study.worker import run_digest
from nnunet_ext.study.world import World
from nnunet_ext.training.networks import nnUNetTrainerExtDeepResPublished

Worlds = Callable[..., World]


def prepared(world: World) -> World:
    world.root.mkdir(exist_ok=True)
    prepare(world, world.runs(), lambda line: None)
    return world


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class TestCleanDataset:
    def test_plans_see_the_training_cases_alone(self, planner: Any, world_with: Worlds) -> None:
        world = prepared(world_with())
        assert planner.seen == [["a", "b", "c"]]
        assert len(list((world.raw / world.clean / "imagesTr").iterdir())) == 4

    def test_twice_prepares_once(self, planner: Any, world_with: Worlds) -> None:
        prepared(world_with())
        prepared(world_with())
        assert len(planner.seen) == 1

    def test_what_failed_for_other_test_cases_leaves_nothing_that_decides_a_plan(
        self, planner: Any, world_with: Worlds, source: Path
    ) -> None:
        before = files_of(source)
        planner.broken = True
        with pytest.raises(OSError, match="the disk is gone"):
            prepared(world_with("d"))
        planner.broken = False
        world = prepared(world_with("ab", planning={"preset": "cpu"}))
        assert planner.seen == [["a", "b", "c"], ["c", "d"]]  # the fingerprint was not there any more, either
        assert json.loads((planner.folder / "splits_final.json").read_text())[0] == {
            "train": ["c", "d"], "val": ["a", "b"],
        }  # fmt: skip
        assert len(list((world.raw / world.clean / "labelsTr").iterdir())) == 4
        assert files_of(source) == before

    def test_images_and_labels_are_links_and_the_edited_list_is_a_copy(
        self, planner: Any, world_with: Worlds, source: Path
    ) -> None:
        world = prepared(world_with())
        raw = world.raw / world.clean
        for name, same in (
            ("imagesTr/a_0000.nii.gz", True),
            ("labelsTr/a.nii.gz", True),
            ("present_labels.json", False),
        ):
            assert (raw / name).samefile(source / name) == same
        assert json.loads((raw / "present_labels.json").read_text()) == {"a": [1]}

    def test_cases_that_the_study_does_not_use_are_not_in_its_list(
        self, planner: Any, world_with: Worlds, source: Path
    ) -> None:
        (source / "imagesTs").mkdir(exist_ok=True)
        (source / "imagesTs" / "a test case_0000.nii.gz").write_text("image")
        (source / "present_labels.json").write_text(json.dumps({"a": [1], "a test case": []}))
        world = prepared(world_with())
        assert json.loads((world.raw / world.clean / "present_labels.json").read_text()) == {"a": [1]}

    @pytest.mark.parametrize("what", ["labels", "image", "time", "list", "no list"])
    def test_other_files_are_refused(self, planner: Any, world_with: Worlds, source: Path, what: str) -> None:
        prepared(world_with())
        image, present = source / "imagesTr" / "a_0000.nii.gz", source / "present_labels.json"
        match what:
            case "labels":
                (source / "labelsTr" / "a.nii.gz").write_text("other labels")
            case "image":
                image.write_text("another image")
            case "time":
                os.utime(image, (1, 1))
            case "list":
                present.write_text(json.dumps({"a": []}))
            case "no list":
                present.unlink()
        with pytest.raises(InputError, match="delete it or give the study another name"):
            prepared(world_with())


class TestNoisyDataset:
    LEVELS = {"levels": [{"voxels": [1, 2]}], "ratios": [1], "without_noise": False}  # noqa: RUF012

    @pytest.fixture
    def moved(self, planner: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
        """Noise that moves case a alone, and a preprocessor that writes what it was given."""
        from nnunet_ext.study import data

        found = SimpleNamespace(cases=["a"])

        def add_noise(clean: Path, raw: Path, number: int, name: str, *_: object, **__: object) -> tuple[Path, Any]:
            folder = raw / f"Dataset{number:03d}_{name}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "dataset.json").write_text((clean / "dataset.json").read_text())
            entries = {case: {"direction": "erode"} if case in found.cases else None for case in "abcd"}
            return folder, {"cases": entries}

        def preprocess(world: World, dataset: str, cases: list[str], folder: Path) -> None:
            folder.mkdir(parents=True, exist_ok=True)
            for case in cases:
                assert not (folder / f"{case}_seg.b2nd").exists()
                (folder / f"{case}_seg.b2nd").write_text("moved")

        def clean_preprocess(*_: object) -> None:
            folder = planner.folder / "nnUNetPlansStudy_2d"
            folder.mkdir()
            for case in "abcd":
                (folder / f"{case}_seg.b2nd").write_text("clean")

        monkeypatch.setattr(data, "add_noise", add_noise)
        monkeypatch.setattr(data, "lines_of", lambda sidecar: [])
        monkeypatch.setattr(data, "_preprocess", preprocess)
        monkeypatch.setattr("nnunet_ext.planning.plan.preprocess", clean_preprocess)
        return found

    def test_cases_that_were_noisy_before_are_clean_again(self, moved: Any, world_with: Worlds) -> None:
        world = prepared(world_with(**self.LEVELS))
        moved.cases = ["b"]
        prepared(world_with(**self.LEVELS, in_plane=True))
        found = {path.name[0]: path.read_text() for path in world.preprocessed.glob("Dataset002*/*/*_seg.b2nd")}
        assert found == {"a": "clean", "b": "moved", "c": "clean", "d": "clean"}


@pytest.mark.parametrize("planned", [{}, {"early_stop": 30}])
def test_no_run_stops_by_its_test_cases(planner: Any, world_with: Worlds, planned: dict[str, int]) -> None:
    planner.block = planned
    world = prepared(world_with(methods={"published": {"trainer": "nnUNetTrainerExtDeepResPublished"}}))
    plans = json.loads((planner.folder / f"{world.runs()[0].plans}.json").read_text())
    block = plans["configurations"]["2d"]["nnunet_ext"]
    assert nnUNetTrainerExtDeepResPublished.early_stop == 50
    found = resolve_settings(nnUNetTrainerExtDeepResPublished, block, "plans")
    assert (found.early_stop, found.seed) == (None, 7)


def test_what_is_contoured_decides_a_training(planner: Any, world_with: Worlds) -> None:
    world = prepared(world_with())
    (run,) = world.runs()
    before = run_digest(world, run)
    (world.raw / world.clean / "present_labels.json").write_text(json.dumps({"a": []}))
    assert run_digest(world, run) != before
