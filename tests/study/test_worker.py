from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from nnunet_ext.errors import BusyError, InputError
from nnunet_ext.io.lock import locked
from nnunet_ext.study import worker
from nnunet_ext.study.data import prepare
from nnunet_ext.study.world import Run, World

SCORES = {"d": {"Heart": 0.5}}


@pytest.fixture
def ready(planner: Any, world_with: Callable[..., World]) -> tuple[World, Run]:
    """A study that is prepared, and its only run."""
    world = world_with()
    world.root.mkdir()
    prepare(world, world.runs(), lambda line: None)
    return world, world.runs()[0]


def test_a_run_that_another_worker_has_is_left_to_it(ready: tuple[World, Run], monkeypatch: pytest.MonkeyPatch) -> None:
    world, run = ready
    monkeypatch.setattr(worker, "_train_and_judge", lambda *_: SCORES)
    with locked(run.folder(world) / ".study_lock"):
        worker.work_on(world, run)
    assert worker.scores_of(world, run) is None
    worker.work_on(world, run)
    assert worker.scores_of(world, run) == SCORES


def test_a_full_disk_ends_the_worker(ready: tuple[World, Run], monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(*_: object) -> None:
        raise BusyError("no space left")

    world, run = ready
    monkeypatch.setattr(worker, "_train_and_judge", fill)
    with pytest.raises(BusyError, match="no space left"):
        worker.work_on(world, run)
    assert worker.scores_of(world, run) is None


def test_a_finished_run_is_refused_when_another_list_says_what_is_contoured(
    ready: tuple[World, Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    world, run = ready
    monkeypatch.setattr(worker, "_train_and_judge", lambda *_: SCORES)
    worker.work_on(world, run)
    (world.raw / run.dataset / "present_labels.json").write_text(json.dumps({"a": []}))
    with pytest.raises(InputError, match="other settings or data than the study has now; delete it"):
        worker.scores_of(world, run)
