"""A folder of contours that a command writes: whose it is, what its numbers mean, and which files are left alone.

Beside every ``<case>.nii.gz`` lies a ``<case>.json`` that vouches for it by its hash. A map without such a report is
somebody else's, one with another hash was corrected by hand, and neither is replaced or removed. A killed run leaves
neither of them: the old map is removed before its report, and the new report is written before its map.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_ext.errors import InputError, some_of
from nnunet_ext.geometry import Grid
from nnunet_ext.io.atomic import atomic_path, read_json, sha256_of, write_json
from nnunet_ext.io.lock import locked
from nnunet_ext.io.nifti import save_labels
from nnunet_ext.locations import FILE_ENDING

DATASET_FILE, BLOCK = "dataset.json", "nnunet_ext"
HASH = "output_sha256"


@contextlib.contextmanager
def contour_folder(
    folder: Path,
    organs: Mapping[str, int],
    made_by: Mapping[str, str],
    channels: Sequence[str] = (),
    sources: Collection[Path] = (),
) -> Iterator[None]:
    """Keep a folder to oneself while contours are written, with the dataset.json that numbers its organs.

    Args:
        folder: Where to write.
        organs: Organ to its number in the maps.
        made_by: For the block ``nnunet_ext``; the first entry names the maker, the others may differ from run to run.
        channels: Names of the channels that the contours were made from.
        sources: Folders that are read.

    Raises:
        InputError: the folder is a source, or holds contours of another maker, with other numbers or of nobody knows
            whom; nothing is written then.
        BusyError: another process writes there.
    """
    page = {
        "channel_names": {str(i): name for i, name in enumerate(channels)},
        "labels": {"background": 0, **organs},
        "file_ending": FILE_ENDING,
        BLOCK: dict(made_by),
    }
    _check_own(folder, page, sources)
    with locked(folder / ".lock"):
        for left in folder.glob(".part-*"):  # of a run that was killed
            left.unlink()
        write_json(folder / DATASET_FILE, page)
        yield


def earlier_report(folder: Path, case: str) -> dict[str, Any]:
    """The report of a contour that lies in the folder as it was written; empty where none lies there.

    Raises:
        InputError: the contour was not written by us, or changed since.
    """
    target, path = _files(folder, case)
    found = [file for file in (target, path) if file.exists()]
    if not found:
        return {}
    report = _report(path)
    if HASH not in report:
        raise InputError(
            f"{found[0]} was not written by nnunet-ext (no report with its hash beside it); move it elsewhere, or "
            "choose another folder."
        )
    if target not in found:
        return {}
    if report[HASH] != sha256_of(target):
        raise InputError(
            f"{target} was changed after nnunet-ext wrote it, and is kept; to contour the case anew, move it and "
            f"{path.name} elsewhere."
        )
    return report


def write_contour(folder: Path, case: str, labels: NDArray[np.integer], grid: Grid, report: Mapping[str, Any]) -> None:
    """Write a label map and the report that vouches for it in place of earlier ones.

    Raises:
        InputError: as ``earlier_report``; nothing is written then.
    """
    target, path = _files(folder, case)
    with atomic_path(target) as coming:
        save_labels(coming, labels, grid)
        withdraw_contour(folder, case)
        write_json(path, {"case": case, HASH: sha256_of(coming), **report})


def withdraw_contour(folder: Path, case: str) -> None:
    """Remove an earlier contour: it may belong to another image.

    Raises:
        InputError: as ``earlier_report``; nothing is removed then.
    """
    earlier_report(folder, case)
    for path in _files(folder, case):
        path.unlink(missing_ok=True)


def _files(folder: Path, case: str) -> tuple[Path, Path]:
    return folder / f"{case}{FILE_ENDING}", folder / f"{case}.json"


def _report(path: Path) -> dict[str, Any]:
    try:
        return dict(read_json(path))
    except (InputError, ValueError, TypeError):
        return {}


def _check_own(folder: Path, page: Mapping[str, Any], sources: Collection[Path]) -> None:
    if folder.resolve() in [source.resolve() for source in sources]:
        raise InputError(f"{folder} is also an input; choose another folder to write.")
    path = folder / DATASET_FILE
    if not path.exists():
        foreign = sorted(map.name for map in folder.glob(f"*{FILE_ENDING}") if not map.name.startswith("."))
        if foreign:
            raise InputError(
                f"{folder} holds {some_of(foreign)} and no {DATASET_FILE} of ours; choose another folder to write."
            )
        return
    found = _report(path)
    maker, ours = _maker(found), _maker(page)
    if maker != ours:
        raise InputError(f"{folder} holds contours of {maker}, not of {ours}; choose another folder to write.")
    wanted = page["labels"]
    theirs = found["labels"] if isinstance(found.get("labels"), dict) else {}
    other = [organ for organ in {**theirs, **wanted} if theirs.get(organ) != wanted.get(organ)]
    if other:
        raise InputError(
            f"{folder} holds contours of {maker} with other organs or numbers ({some_of(other)}); choose another "
            "folder to write."
        )


def _maker(page: Mapping[str, Any]) -> str:
    """Who numbered the organs, as the first entry of the block says."""
    block = page.get(BLOCK)
    return " ".join(map(str, next(iter(block.items())))) if isinstance(block, dict) and block else "another program"
