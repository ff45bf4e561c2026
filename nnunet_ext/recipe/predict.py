"""A composed model on a folder of new cases: bad ones isolated, every file whole or not there, resumable."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_ext.conversion.checks import check_spacing, check_values, read_checked_image
from nnunet_ext.errors import BusyError, CasesFailedError, InputError, NnunetExtError
from nnunet_ext.geometry import Grid, grid_difference
from nnunet_ext.io.atomic import sha256_of
from nnunet_ext.io.contours import contour_folder, earlier_report, withdraw_contour, write_contour
from nnunet_ext.recipe.composed import Composed, Labels
from nnunet_ext.recipe.inputs import InputCase, find_cases

Files = str | Path | Sequence[str | Path] | Mapping[str, str | Path]
"""One image file, or one per channel: in the order of the recipe's dataset, or by the channels' names."""
FAILURES = (NnunetExtError, ValueError, OSError, RuntimeError, MemoryError)
"""What ends one case and not the run; BusyError, among them, ends the run."""


def predict_folder(composed: Composed, source: Path, output: Path, say: Callable[[str], None]) -> None:
    """Contour every case of a folder; a bad one is isolated, the others finish.

    One thread reads the next case and one writes the last while a case is predicted.

    Writes ``<case>.nii.gz`` on the grid of the input and ``<case>.json`` (owners, regions, fall-backs, laterality). A
    case is skipped when its outputs are whole and were made from the same image by the same models; run again after a
    kill. Where a case fails, an earlier contour of it is removed: it may belong to another image. A contour that was
    corrected by hand, or is not ours, is never replaced or removed: its case fails.

    Args:
        composed: The loaded model.
        source: Folder with ``<case>_0000.nii.gz``.
        output: Folder to write.
        say: Receives one line per case.

    Raises:
        InputError: no folder or no images, or the output holds contours of another recipe or numbering.
        CasesFailedError: some cases failed; each is named with its cause.
        BusyError: another process writes there.
    """
    cases, failed = find_cases(source, len(composed.channels))
    made_by = {"recipe": composed.recipe.name, "models": composed.digest}
    with (
        contour_folder(output, composed.table.organs, made_by, composed.channels, [source]),
        ThreadPoolExecutor(1, "read") as reader,
        ThreadPoolExecutor(1, "write") as writer,
    ):
        stream = _Stream(composed, output, writer, say, len(cases), failed)
        for case, ready in _one_ahead(reader, partial(_read_case, composed, output), cases):
            stream.add(case, ready)
        stream.settle()
    if failed:
        listed = "\n  ".join(f"{name}: {cause}" for name, cause in sorted(failed.items()))
        raise CasesFailedError(f"{len(failed)} inputs failed, {len(cases)} cases were tried:\n  {listed}")


def predict_image(
    composed: Composed,
    image: Files | NDArray[np.floating],
    grid: Grid | None = None,
    say: Callable[[str], None] | None = None,
) -> tuple[Labels, dict[str, Any]]:
    """Contour one image in memory or from its files, with the checks and the result of ``predict_folder``.

    Args:
        composed: The loaded model.
        image: One file, one per channel of ``composed.needed`` (in its order, or by name, where others may be there and
            are not read), or an array of these channels.
        grid: Of an array; a file has its own.
        say: Receives the progress of slow preprocessing.

    Shape:
        image: (Z, Y, X), or (C, Z, Y, X) with the channels of ``composed.needed``.
        returns: (Z, Y, X) label map on the grid of the image in the recipe's numbers, and the report.

    Raises:
        InputError: a channel is missing, or an image cannot be trusted.
        ValueError: an array without its grid, or of another shape.
    """
    names = list(composed.needed)
    if isinstance(image, np.ndarray):
        images, grid, repairs = _checked(image, grid, names)
    elif grid is not None:
        raise ValueError("files have a grid of their own; give one beside an array only.")
    else:
        images, grid, repairs = _read(_paths(image, names), names)
    labels, report = composed.predict(images, grid, say)
    return labels, {"repairs": repairs, **report}


@dataclass
class _Ready:
    """One case, read and checked."""

    key: dict[str, Any]
    images: NDArray[np.float32]
    grid: Grid
    repairs: list[str]
    seconds: float


@dataclass
class _Stream:
    """Cases on their way: while one is predicted the next is read and the last one written.

    Three cases at most are in memory. A case's line is said when its files lie there, so the lines keep their order.

    Args:
        composed: The loaded model.
        output: Folder to write.
        writer: One thread.
        say: Receives one line per case.
        total: Number of cases.
        failed: Case to cause, filled.
        writing: The last case and what becomes of it.
        said: Number of lines.
    """

    composed: Composed
    output: Path
    writer: ThreadPoolExecutor
    say: Callable[[str], None]
    total: int
    failed: dict[str, str]
    writing: tuple[InputCase, Future[str]] | None = None
    said: int = 0

    def add(self, case: InputCase, reading: Future[_Ready | str]) -> None:
        """Predict one case and let it be written."""
        try:
            write = self._predict(case, reading)
        except FAILURES as error:
            self.settle()  # the last case is still written
            if isinstance(error, BusyError):
                raise
            self._fail(case, error)
        else:
            self.settle()
            self.writing = (case, self.writer.submit(write))

    def _predict(self, case: InputCase, reading: Future[_Ready | str]) -> Callable[[], str]:
        """What is left to do for a case: write it and return its line."""
        ready = reading.result()
        if isinstance(ready, str):
            return lambda: ready
        start = time.perf_counter()
        labels, report = self.composed.predict(ready.images, ready.grid, lambda line: self.say(f"{case.case}, {line}"))
        seconds = ready.seconds + time.perf_counter() - start
        entry = {**ready.key, "repairs": ready.repairs, **report}
        return partial(_write_case, self.output, case, entry, labels, ready.grid, seconds)

    def settle(self) -> None:
        """Wait for the case that is being written and say how it ended."""
        if self.writing is None:
            return
        (case, writing), self.writing = self.writing, None
        try:
            self._say(writing.result())
        except BusyError:
            raise
        except FAILURES as error:
            self._fail(case, error)

    def _fail(self, case: InputCase, error: BaseException) -> None:
        self.failed[case.case] = str(error) or type(error).__name__
        with contextlib.suppress(InputError):  # not ours to remove
            withdraw_contour(self.output, case.case)
        self._say(f"{case.case}: FAILED, {self.failed[case.case]}")

    def _say(self, line: str) -> None:
        self.said += 1
        self.say(f"[{self.said}/{self.total}] {line}")


def _one_ahead(
    pool: ThreadPoolExecutor, work: Callable[[InputCase], _Ready | str], cases: Sequence[InputCase]
) -> Iterator[tuple[InputCase, Future[_Ready | str]]]:
    """Every case with its finished reading; the next one is read meanwhile, no further one."""
    coming = [pool.submit(work, case) for case in cases[:1]]
    for i, case in enumerate(cases, 1):
        current = coming.pop()
        wait([current])
        coming = [pool.submit(work, following) for following in cases[i : i + 1]]
        yield case, current


def _read_case(composed: Composed, output: Path, case: InputCase) -> _Ready | str:
    """Hashed, and read and checked; or the line to say where its outputs lie there already."""
    start = time.perf_counter()
    earlier = earlier_report(output, case.case)
    paths = case.require_channels(composed.needed)
    key = {"models": composed.digest, "inputs": [sha256_of(path) for path in paths]}
    if earlier and all(earlier.get(k) == v for k, v in key.items()):
        return _line(case, "done before, kept", earlier)
    images, grid, repairs = _read(paths, list(composed.needed))
    return _Ready(key, images, grid, repairs, time.perf_counter() - start)


def _write_case(
    output: Path, case: InputCase, report: Mapping[str, Any], labels: Labels, grid: Grid, seconds: float
) -> str:
    """Write the contour and its report, and return the line to say."""
    start = time.perf_counter()
    write_contour(output, case.case, labels, grid, report)
    return _line(case, f"{seconds + time.perf_counter() - start:.1f} s", report)


def _line(case: InputCase, done: str, report: Mapping[str, Any]) -> str:
    return "; ".join([f"{case.case}: {done}", *report["warnings"]])


def _read(paths: Sequence[Path], channels: Sequence[str]) -> tuple[NDArray[np.float32], Grid, list[str]]:
    images, repairs = [], []
    first: Grid | None = None
    for path, channel in zip(paths, channels, strict=True):
        image, grid, repaired = read_checked_image(path, channel)
        first = first or grid
        difference = grid_difference(first, grid)
        if difference:
            raise InputError(f"{path} lies on another grid than {paths[0].name}: {difference}; resample it.")
        images.append(image)
        repairs += repaired
    if first is None:
        raise InputError("the recipe has no channel.")
    return images[0][None] if len(images) == 1 else np.stack(images), first, repairs


def _checked(
    array: NDArray[np.floating], grid: Grid | None, names: Sequence[str]
) -> tuple[NDArray[np.float32], Grid, list[str]]:
    """An array as ``_read`` gives files."""
    images = array[None] if array.ndim == 3 else array
    if grid is None or images.shape != (len(names), *grid.shape):
        raise ValueError(
            f"the image has shape {array.shape}, its grid {'is not given' if grid is None else grid.shape}; expected "
            f"the channels {', '.join(names)} along the first axis and their grid."
        )
    check_spacing(grid, "the image")
    checked = [check_values(one.astype(np.float32), name, name) for one, name in zip(images, names, strict=True)]
    return np.stack([one for one, _ in checked]), grid, [line for _, repairs in checked for line in repairs]


def _paths(files: Files, names: Sequence[str]) -> list[Path]:
    """One path per channel, in order."""
    if isinstance(files, Mapping):
        missing = [name for name in names if name not in files]
        chosen: Iterable[str | Path] = [files[name] for name in names if name in files]
    else:
        chosen = [files] if isinstance(files, str | Path) else list(files)
        missing = list(names) if len(chosen) != len(names) else []
    if missing:
        raise InputError(
            f"{len(files) if not isinstance(files, str | Path) else 1} files are given, channel {', '.join(missing)} "
            f"is missing or cannot be told; give one file for each of {', '.join(names)}, best by name."
        )
    return [Path(path) for path in chosen]
