"""A composed model on a folder of new cases: bad ones isolated, every file whole or not there, resumable."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_ext.conversion.checks import read_checked_image
from nnunet_ext.errors import BusyError, CasesFailedError, InputError, NnunetExtError
from nnunet_ext.geometry import Grid, grid_difference
from nnunet_ext.io.atomic import read_json, write_json
from nnunet_ext.io.lock import locked
from nnunet_ext.io.nifti import write_labels
from nnunet_ext.recipe.composed import Composed
from nnunet_ext.recipe.inputs import InputCase, find_cases
from nnunet_ext.roi.provenance import FILE_ENDING, sha256_of


def predict_folder(composed: Composed, source: Path, output: Path, say: Callable[[str], None]) -> None:
    """Contour every case of a folder; a bad one is isolated, the others finish.

    Writes ``<case>.nii.gz`` on the grid of the input and ``<case>.json`` (owners, regions, fall-backs, laterality). A
    case is skipped when its outputs are whole and were made from the same image by the same models; run again after a
    kill. Where a case fails, an earlier contour of it is removed: it may belong to another image.

    Args:
        composed: The loaded model.
        source: Folder with ``<case>_0000.nii.gz``.
        output: Folder to write.
        say: Receives one line per case.

    Raises:
        InputError: no folder or no images.
        CasesFailedError: some cases failed; each is named with its cause.
        BusyError: another process writes there.
    """
    cases, failed = find_cases(source, len(composed.channels))
    with locked(output / ".lock"):
        write_json(output / "dataset.json", _output_dataset_json(composed))
        for i, case in enumerate(cases, 1):
            try:
                line = _predict_case(composed, case, output)
            except BusyError:
                raise
            except (NnunetExtError, ValueError, OSError, RuntimeError, MemoryError) as error:
                failed[case.case] = str(error) or type(error).__name__
                _withdraw(case, output)
                line = f"{case.case}: FAILED, {failed[case.case]}"
            say(f"[{i}/{len(cases)}] {line}")
    if failed:
        listed = "\n  ".join(f"{name}: {cause}" for name, cause in sorted(failed.items()))
        raise CasesFailedError(f"{len(failed)} inputs failed, {len(cases)} cases were tried:\n  {listed}")


def _predict_case(composed: Composed, case: InputCase, output: Path) -> str:
    paths = case.require_channels(composed.channels)
    key = {"models": composed.digest, "inputs": [sha256_of(path) for path in paths]}
    target, report_path = output / f"{case.case}{FILE_ENDING}", output / f"{case.case}.json"
    if _is_done(report_path, target, key):
        return f"{case.case}: done before, kept"
    start = time.perf_counter()
    images, grid, repairs = _read(paths, composed.channels)
    labels, report = composed.predict(images, grid)
    write_labels(target, labels, grid)
    entry = {"case": case.case, **key, "output_sha256": sha256_of(target), "repairs": repairs, **report}
    write_json(report_path, entry)
    warnings = "".join(f"; {line}" for line in report["warnings"])
    return f"{case.case}: {time.perf_counter() - start:.1f} s{warnings}"


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
    return np.stack(images), first, repairs


def _withdraw(case: InputCase, output: Path) -> None:
    """Remove an earlier contour of a case that now fails: it may belong to another image."""
    for path in (output / f"{case.case}{FILE_ENDING}", output / f"{case.case}.json"):
        path.unlink(missing_ok=True)


def _is_done(report_path: Path, target: Path, key: dict[str, Any]) -> bool:
    if not report_path.exists() or not target.exists():
        return False
    try:
        entry = dict(read_json(report_path))
    except (ValueError, TypeError):
        return False
    return all(entry.get(k) == v for k, v in key.items()) and entry.get("output_sha256") == sha256_of(target)


def _output_dataset_json(composed: Composed) -> dict[str, Any]:
    return {
        "channel_names": {str(i): name for i, name in enumerate(composed.channels)},
        "labels": {"background": 0, **composed.table.organs},
        "file_ending": FILE_ENDING,
        "nnunet_ext": {"recipe": composed.recipe.name, "models": composed.digest},
    }
