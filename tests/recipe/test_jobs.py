from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nnunet_ext.errors import NnunetExtError
from nnunet_ext.recipe import jobs as module
from nnunet_ext.recipe.jobs import CPU_ENVIRONMENT, Job, run_jobs

WORKER = '''
"""Writes when it starts and ends, sleeps, prints its environment, fails on request."""
import os, sys, time
name, seconds, code = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
events = open(os.path.join(os.path.dirname(__file__), "events"), "a")
events.write(f"start {name} {os.getpid()}\\n"); events.flush()
time.sleep(seconds)
events.write(f"end {name} {os.getpid()}\\n"); events.flush()
print("threads", os.environ.get("OMP_NUM_THREADS"), os.environ.get("nnUNet_n_proc_DA"))
if code:
    print("the disk is on fire", file=sys.stderr)
sys.exit(code)
'''

Make = Callable[..., Job]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """A function that makes a job of a small module on the path; polls fast."""
    (tmp_path / "drawn_worker.py").write_text(WORKER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for name in CPU_ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(module, "POLL_S", 0.02)

    def job(name: str, seconds: float = 0.0, code: int = 0, done: Callable[[], None] = lambda: None) -> Job:
        command = ["drawn_worker", name, str(seconds), str(code)]
        return Job(name, command, tmp_path / "logs" / f"{name}.log", tmp_path / name, done)

    return job


def events(folder: Path) -> list[list[str]]:
    path = folder / "events"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def wait_for(condition: Callable[[], object], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_one_at_a_time_keeps_the_order_and_runs_the_callbacks_after_success(make: Make, tmp_path: Path) -> None:
    finished: list[str] = []
    jobs = [make(name, done=lambda name=name: finished.append(name)) for name in "abc"]
    said: list[str] = []
    run_jobs(jobs, 1, "cpu", said.append)
    assert [event[:2] for event in events(tmp_path)] == [[what, n] for n in "abc" for what in ("start", "end")]
    assert finished == ["a", "b", "c"]
    assert [line.split(" in ")[0] for line in said] == [
        f"{what} {n}" for n in "abc" for what in ("started", "finished")
    ]
    assert "2 left, about" in said[1]
    assert "none left" in said[-1]


def test_never_more_side_by_side_than_allowed(make: Make, tmp_path: Path) -> None:
    run_jobs([make(name, seconds=0.3) for name in "abcde"], 2, "cpu", lambda line: None)
    running, most = 0, 0
    for event in events(tmp_path):
        running += 1 if event[0] == "start" else -1
        most = max(most, running)
    assert (len(events(tmp_path)), most) == (10, 2)


def test_nothing_to_do_is_no_error() -> None:
    run_jobs([], 2, "cpu", lambda line: pytest.fail(line))


def test_the_first_failure_names_its_log_and_starts_nothing_more(make: Make, tmp_path: Path) -> None:
    finished: list[str] = []
    jobs = [make("a", code=1, done=lambda: finished.append("a")), make("b", done=lambda: finished.append("b"))]
    with pytest.raises(NnunetExtError) as caught:
        run_jobs(jobs, 1, "cpu", lambda line: None)
    assert "a failed (the disk is on fire)" in str(caught.value)
    assert str(tmp_path / "logs" / "a.log") in str(caught.value)
    assert caught.value.exit_code == 1
    assert finished == []
    assert {event[1] for event in events(tmp_path)} == {"a"}


def test_a_failure_ends_what_runs_beside_it_before_anybody_else_may_start(make: Make, tmp_path: Path) -> None:
    slow = make("slow", seconds=60, done=lambda: pytest.fail("it was stopped, not finished"))
    with pytest.raises(NnunetExtError, match="bad failed"):
        run_jobs([slow, make("bad", seconds=1.0, code=7)], 2, "cpu", lambda line: None)
    assert slow.process is not None
    assert slow.process.returncode == -signal.SIGTERM
    assert "end slow" not in (tmp_path / "events").read_text()


def test_a_job_that_ignores_the_request_to_end_is_killed(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STOP_S", 0.3)
    stubborn = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    (tmp_path / "stubborn.py").write_text(stubborn + "open(__file__ + '.up', 'w').close()\ntime.sleep(60)\n")
    job = Job("stubborn", ["stubborn"], tmp_path / "logs" / "s.log", tmp_path)

    def interrupt(line: str) -> None:
        wait_for((tmp_path / "stubborn.py.up").exists)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_jobs([job], 1, "cpu", interrupt)
    assert job.process is not None
    assert job.process.returncode == -signal.SIGKILL


def test_the_cpu_environment_reaches_the_child_and_only_on_a_cpu(make: Make, tmp_path: Path) -> None:
    run_jobs([make("a")], 1, "cpu", lambda line: None)
    run_jobs([make("b")], 1, "cuda", lambda line: None)
    assert (tmp_path / "logs" / "a.log").read_text() == "threads 1 0\n"
    assert (tmp_path / "logs" / "b.log").read_text() == "threads None None\n"


def test_a_folder_of_the_same_name_where_the_command_is_typed_does_not_train(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "drawn_worker.py").write_text("raise SystemExit('the wrong one')")
    monkeypatch.chdir(elsewhere)
    run_jobs([make("a")], 1, "cpu", lambda line: None)
    assert (tmp_path / "logs" / "a.log").read_text() == "threads 1 0\n"


def test_a_second_run_appends_to_the_log_of_the_first(make: Make, tmp_path: Path) -> None:
    for _ in range(2):
        run_jobs([make("a")], 1, "cpu", lambda line: None)
    assert (tmp_path / "logs" / "a.log").read_text().count("threads") == 2


def test_progress_reads_the_epoch_from_the_newest_training_log(make: Make, tmp_path: Path) -> None:
    job = make("a")
    assert job.progress() == "a starting"
    job.fold_folder.mkdir()
    for i, text in enumerate(["Epoch 7\n", "Epoch 0\nlr\nEpoch 1\n"]):
        log = job.fold_folder / f"training_log_{i}.txt"
        log.write_text(text)
        os.utime(log, (i, i))
    assert job.progress() == "a epoch 1"


@pytest.mark.skipif(sys.platform != "linux", reason="uses Linux's parent death signal")
def test_a_training_ends_when_the_command_that_started_it_is_killed(make: Make, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from nnunet_ext.recipe.jobs import Job, run_jobs; "
        "p = Path(sys.argv[1]); "
        "run_jobs([Job('a', ['drawn_worker', 'a', '60', '0'], p / 'a.log', p)], 1, 'cpu', print)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.DEVNULL) as command:
        wait_for(lambda: events(tmp_path))
        pid = int(events(tmp_path)[0][2])
        assert is_running(pid)
        command.kill()
    wait_for(lambda: not is_running(pid))
