"""One case is read ahead, one is written behind; a fault stays with its case and an interruption leaves whole files."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from nnunet_ext.errors import BusyError, CasesFailedError, InputError
from nnunet_ext.geometry import Grid
from nnunet_ext.io import contours
from nnunet_ext.io.nifti import read_labels, write_image
from nnunet_ext.recipe import predict
from nnunet_ext.recipe.predict import predict_folder

GRID = Grid((3, 8, 9), (3.0, 1.0, 1.0))
CASES = ["a", "b", "c", "d"]


@dataclass
class Fake:
    """Stands for a Composed: the label of a case is its number; ``hook`` runs before it answers."""

    hook: Callable[[int], None] = lambda number: None
    channels: Sequence[str] = ("CT",)
    needed: dict[str, int] = field(default_factory=lambda: {"CT": 0})
    digest: str = "0123"
    recipe: Any = field(default_factory=lambda: SimpleNamespace(name="drawn"))
    table: Any = field(default_factory=lambda: SimpleNamespace(organs={"Brainstem": 1}))

    def predict(
        self, images: NDArray[np.float32], grid: Grid, say: Callable[[str], None]
    ) -> tuple[NDArray[np.integer], dict[str, Any]]:
        number = int(images.max())
        self.hook(number)
        return np.full(grid.shape, number, np.uint8), {"warnings": []}


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    for number, case in enumerate(CASES, 1):
        image = np.full(GRID.shape, number, np.float32)
        image[0] = -1000
        write_image(tmp_path / "IN" / f"{case}_0000.nii.gz", image, GRID)
    return tmp_path / "IN", tmp_path / "OUT"


def run(folders: tuple[Path, Path], model: Fake | None = None) -> list[str]:
    said: list[str] = []
    predict_folder(model or Fake(), *folders, said.append)  # type: ignore[arg-type]
    return said


def check_whole(output: Path, cases: Sequence[str]) -> None:
    """Exactly these cases lie there, whole, and no half file beside them."""
    names = {f"{case}{ending}" for case in cases for ending in (".nii.gz", ".json")}
    assert {path.name for path in output.iterdir()} == names | {".lock", "dataset.json"}
    for case in cases:
        assert (read_labels(output / f"{case}.nii.gz")[0] == CASES.index(case) + 1).all()
        assert json.loads((output / f"{case}.json").read_text())["case"] == case


def spy(monkeypatch: pytest.MonkeyPatch, name: str, before: Callable[[str], None]) -> None:
    """Let ``before`` know the case before the reader or the writer works on it."""
    work = getattr(predict, name)

    def spied(*arguments: Any) -> Any:
        before(arguments[2 if name == "_read_case" else 1].case)
        return work(*arguments)

    monkeypatch.setattr(predict, name, spied)


def test_the_next_case_is_read_and_the_last_one_written_meanwhile_and_no_further_one(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    reading = {case: threading.Event() for case in CASES}
    writing = {case: threading.Event() for case in CASES}
    release = {case: threading.Event() for case in CASES}

    def read(case: str) -> None:
        events.append(f"read {case}")
        reading[case].set()

    def write(case: str) -> None:
        writing[case].set()
        assert release[case].wait(20)  # until the following case is being predicted
        events.append(f"write {case}")

    def follow(number: int) -> None:
        case = CASES[number - 1]
        if number < len(CASES):
            assert reading[CASES[number]].wait(20)
        else:
            release[case].set()  # nothing follows
        if number > 1:
            assert writing[CASES[number - 2]].wait(20)
            release[CASES[number - 2]].set()
        assert not any(reading[later].is_set() for later in CASES[number + 1 :])
        events.append(f"predict {case}")

    spy(monkeypatch, "_read_case", read)
    spy(monkeypatch, "_write_case", write)
    said = run(folders, Fake(follow))
    assert [line.split(":")[0] for line in said] == [f"[{i}/4] {case}" for i, case in enumerate(CASES, 1)]
    for kind in ("read", "predict", "write"):
        assert [event for event in events if event.startswith(kind)] == [f"{kind} {case}" for case in CASES]
    assert events.index("read b") < events.index("predict a") < events.index("read c") < events.index("predict b")
    check_whole(folders[1], CASES)


@pytest.mark.parametrize("step", ["_read_case", "_write_case"])
@pytest.mark.parametrize("error", [OSError("gone"), MemoryError("no memory"), InputError("strange")])
def test_a_fault_while_reading_or_writing_stays_with_its_case(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, step: str, error: Exception
) -> None:
    def fail(case: str) -> None:
        if case == "b":
            raise error

    run(folders)
    spy(monkeypatch, step, fail)
    with pytest.raises(CasesFailedError) as caught:
        run(folders, Fake(digest="4567"))  # everything is done again
    assert str(caught.value).splitlines()[1:] == [f"  b: {error}"]
    check_whole(folders[1], ["a", "c", "d"])


@pytest.mark.parametrize("step", ["_read_case", "_write_case"])
def test_a_full_disk_ends_the_run(folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def full(case: str) -> None:
        if case == "b":
            raise BusyError("no space left")

    spy(monkeypatch, step, full)
    with pytest.raises(BusyError):
        run(folders)
    check_whole(folders[1], ["a"])


def test_a_run_that_ends_busy_still_writes_what_is_predicted(folders: tuple[Path, Path]) -> None:
    def full(number: int) -> None:
        if number == 3:
            raise BusyError("no space left")

    with pytest.raises(BusyError):
        run(folders, Fake(full))
    check_whole(folders[1], ["a", "b"])


@pytest.fixture
def listening() -> Iterator[None]:
    """Ctrl-C is heard, also where the tests were started in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("listening")
def test_ctrl_c_leaves_whole_cases_and_a_second_run_does_the_others(folders: tuple[Path, Path]) -> None:
    def interrupt(number: int) -> None:
        if number == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(folders, Fake(interrupt))
    check_whole(folders[1], ["a", "b"])
    said = run(folders)
    assert ["kept" in line for line in said] == [True, True, False, False]
    check_whole(folders[1], CASES)


@pytest.mark.parametrize("step", ["predict", "write"])
def test_a_killed_run_leaves_whole_cases_and_a_second_run_does_the_others(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    child = os.fork()
    if child == 0:  # pragma: no cover (another process, which dies)
        run_until_killed(folders, monkeypatch, step)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    left = {path.name for path in folders[1].iterdir()}
    assert {"a.nii.gz", "a.json"} <= left
    assert not {"c.nii.gz", "c.json", "d.nii.gz"} & left
    assert step != "write" or any(name.startswith(".part-") for name in left)
    said = run(folders)
    assert ["kept" in line for line in said][::3] == [True, False]
    check_whole(folders[1], CASES)


def run_until_killed(folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """Kill this process while case c is predicted, or with half of its label map on disk."""

    def kill(number: int = 3) -> None:
        if number == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    def write_half(path: Path, labels: NDArray[np.integer], grid: Grid) -> None:
        if labels.max() == 3:
            path.write_bytes(b"half")
            kill()
        write(path, labels, grid)

    try:
        write = contours.save_labels
        if step == "write":
            monkeypatch.setattr(contours, "save_labels", write_half)
        run(folders, Fake(kill) if step == "predict" else Fake())
    finally:
        os._exit(1)


MOMENTS = ("unlink a.nii.gz", "unlink a.json", "replace a.json", "replace a.nii.gz")
"""What happens to the files of a case that is done again, in this order."""


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_that_is_killed_at_any_moment_of_replacing_a_case_continues_by_itself(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, moment: str, after: bool
) -> None:
    run(folders)
    child = os.fork()
    if child == 0:  # pragma: no cover (another process, which dies)
        try:
            kill_at(monkeypatch, moment, after)
            run(folders, Fake(digest="4567"))
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    said = run(folders, Fake(digest="4567"))
    assert ("kept" in said[0]) == (after and moment == MOMENTS[-1])
    assert not any("kept" in line for line in said[1:])
    check_whole(folders[1], CASES)


def kill_at(monkeypatch: pytest.MonkeyPatch, moment: str, after: bool) -> None:
    """Kill this process before or after a file is removed or comes to its place."""
    verb, _, name = moment.partition(" ")
    act = getattr(Path, verb)

    def acting(path: Path, *arguments: Any, **options: Any) -> Any:
        due = Path(arguments[0] if arguments else path).name == name
        if due and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        done = act(path, *arguments, **options)
        if due:
            os.kill(os.getpid(), signal.SIGKILL)
        return done

    monkeypatch.setattr(Path, verb, acting)


def test_a_second_run_goes_by_content(folders: tuple[Path, Path]) -> None:
    assert not any("kept" in line for line in run(folders))
    check_whole(folders[1], CASES)
    assert all("kept" in line for line in run(folders))
    assert not any("kept" in line for line in run(folders, Fake(digest="4567")))
