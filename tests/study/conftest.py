"""A study of drawn files, with nnU-Net's work replaced, so that its preparation takes no time."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from nnunet_ext.planning import plan
from nnunet_ext.study.page import Study
from nnunet_ext.study.world import PLANS, World

CASES = ["a", "b", "c", "d"]
PAGE = {
    "name": "tiny",
    "title": "A study.",
    "dataset": 301,
    "held_out": 0,
    "configuration": "2d",
    "device": "cpu",
    "seeds": [7],
    "methods": {"plain": {}},
}


@dataclass
class Planner:
    """What nnU-Net would do, in short.

    Args:
        block: Training settings that the plans bring along.
        broken: Whether preprocessing fails.
        seen: Training images at the time of every fingerprint.
    """

    world: World
    block: dict[str, object] = field(default_factory=dict)
    broken: bool = False
    seen: list[list[str]] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        return self.world.preprocessed / self.world.clean

    def make_fingerprint(self, *_: object) -> None:
        images = (self.world.raw / self.world.clean / "imagesTr").iterdir()
        self.seen.append(sorted(path.name[0] for path in images))
        assert not (self.folder / "dataset_fingerprint.json").exists()
        (self.folder / "dataset_fingerprint.json").write_text("{}")

    def make_plans(self, *_: object, **__: object) -> None:
        configuration = {"data_identifier": f"{PLANS}_2d", "nnunet_ext": self.block}
        (self.folder / f"{PLANS}.json").write_text(json.dumps({"configurations": {"2d": configuration}}))

    def preprocess(self, *_: object) -> None:
        if self.broken:
            raise OSError("the disk is gone")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """The user's dataset."""
    folder = tmp_path / "raw" / "Dataset301_Drawn"
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    for case in CASES:
        (folder / "imagesTr" / f"{case}_0000.nii.gz").write_text(f"image {case}")
        (folder / "labelsTr" / f"{case}.nii.gz").write_text(f"labels {case}")
    (folder / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "Heart": 1}}))
    (folder / "present_labels.json").write_text(json.dumps({"a": [1]}))
    return folder


@pytest.fixture
def world_with(source: Path, tmp_path: Path) -> Callable[..., World]:
    """The world of a study with these test cases and these changes of its page."""

    def make(test: str = "d", **changes: object) -> World:
        training = tuple(case for case in CASES if case not in test)
        return World(Study.model_validate({**PAGE, **changes}), tmp_path / "study", source, training, tuple(test))

    return make


@pytest.fixture
def planner(world_with: Callable[..., World], monkeypatch: pytest.MonkeyPatch) -> Planner:
    found = Planner(world_with())
    for name in ("make_fingerprint", "make_plans", "preprocess"):
        monkeypatch.setattr(plan, name, getattr(found, name))
    monkeypatch.setattr(plan, "override", lambda *_: None)
    return found
