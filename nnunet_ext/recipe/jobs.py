"""Training jobs as processes of their own: run side by side, restartable, with progress and an estimate."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nnunet_ext.errors import InputError, NnunetExtError

POLL_S = 1.0
STATUS_EVERY_S = 120.0
STOP_S = 20.0
"""Our choice: how long a training may take to stop before it is killed."""

ENVIRONMENT = {
    "PYTHONUNBUFFERED": "1",  # the log shows what happens when it happens
    "PYTHONSAFEPATH": "1",  # the installed package trains, not a folder of its name where the command is typed
}

CPU_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "0",
    "nnUNet_n_proc_DA": "0",
    "nnUNet_def_n_proc": "1",
    "nnUNet_compile": "f",
}
"""One thread per training, none that spins (benchmarks/RESULTS.md, "CPU threads"); set before torch is imported."""


def check_device(device: str) -> None:
    """Refuse a device that this machine does not have: now, not when all data are preprocessed.

    Raises:
        InputError: it has none.
    """
    if device == "cpu":
        return
    import torch  # seconds

    backend = torch.cuda if device == "cuda" else torch.backends.mps
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that there is no driver, which is the question
        usable = backend.is_available()
    if not usable:
        raise InputError(
            f"the page trains on device {device}, and there is none that can be used here; set device: cpu in the "
            "page, or mend the driver (nnunet-ext doctor)."
        )


@dataclass
class Job:
    """One fold of one model.

    Args:
        name: For messages.
        command: Arguments of ``python -m``.
        log: File for the output.
        fold_folder: Where nnU-Net writes its training log.
        done: Called in this process after success.
    """

    name: str
    command: Sequence[str]
    log: Path
    fold_folder: Path
    done: Callable[[], None] = lambda: None
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    started: float = field(default=0.0, init=False)

    def start(self, environment: Mapping[str, str]) -> None:
        """Start the process; its output goes to the log."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as stream:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *self.command],
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                preexec_fn=_end_with_parent if sys.platform == "linux" else None,
            )
        self.started = time.monotonic()

    def progress(self) -> str:
        """Name and epoch, read from nnU-Net's newest training log."""
        logs = sorted(self.fold_folder.glob("training_log_*.txt"), key=lambda p: p.stat().st_mtime)
        numbers = re.findall(r"Epoch (\d+)", logs[-1].read_text(errors="replace")) if logs else []
        return f"{self.name} epoch {numbers[-1]}" if numbers else f"{self.name} starting"


def run_jobs(jobs: Sequence[Job], at_once: int, device: str, say: Callable[[str], None]) -> None:
    """Run jobs, at most ``at_once`` side by side; the first failure stops the rest.

    Args:
        jobs: In the order to start.
        at_once: Processes side by side.
        device: "cpu" adds the thread settings.
        say: Receives one line per event.

    Raises:
        NnunetExtError: a job failed; the message names its log.
    """
    environment = {**os.environ, **ENVIRONMENT, **(CPU_ENVIRONMENT if device == "cpu" else {})}
    waiting, running, finished_s = list(jobs), list[Job](), list[float]()
    last_status = time.monotonic()
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                running.append(waiting.pop(0))
                running[-1].start(environment)
                say(f"started {running[-1].name}")
            time.sleep(POLL_S)
            if time.monotonic() - last_status > STATUS_EVERY_S:
                last_status = time.monotonic()
                say(f"{', '.join(j.progress() for j in running)}; {_left(waiting, running, finished_s, at_once)}")
            for job in [j for j in running if j.process is not None and j.process.poll() is not None]:
                running.remove(job)
                _finish(job)
                finished_s.append(time.monotonic() - job.started)
                left = _left(waiting, running, finished_s, at_once)
                say(f"finished {job.name} in {_duration(finished_s[-1])}; {left}")
    finally:
        _stop([job.process for job in running if job.process is not None])


def _end_with_parent() -> None:
    """Let a training end when ``nnunet-ext train`` is killed; else the next run would train the same fold beside it."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """End processes, and return only when they are gone: nobody writes into a folder that is no longer locked."""
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _finish(job: Job) -> None:
    if job.process is None or job.process.returncode != 0:
        tail = job.log.read_text(errors="replace").strip().splitlines()[-1:]
        raise NnunetExtError(f"{job.name} failed ({' '.join(tail)}); the whole story is in {job.log}, then run again.")
    job.done()


def _left(waiting: Sequence[Job], running: Sequence[Job], finished_s: Sequence[float], at_once: int) -> str:
    count = len(waiting) + len(running)
    if count == 0:
        return "none left"
    if not finished_s:
        return f"{count} left"
    mean_s = sum(finished_s) / len(finished_s)
    spent_s = sum(min(mean_s, time.monotonic() - job.started) for job in running)
    return f"{count} left, about {_duration((count * mean_s - spent_s) / at_once)}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min {rest:02d} s"
