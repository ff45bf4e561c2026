"""Folders of label maps, one per model, to one folder of fused maps and a report of what was contested."""

from __future__ import annotations

import contextlib
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from nnunet_ext.errors import BusyError, CasesFailedError, InputError
from nnunet_ext.evaluation.folder import label_files
from nnunet_ext.evaluation.laterality import check_laterality
from nnunet_ext.fusion.merge import Fused, fuse_labels
from nnunet_ext.fusion.rules import FusionTable
from nnunet_ext.geometry import Grid, grid_difference
from nnunet_ext.io.atomic import write_json
from nnunet_ext.io.contours import contour_folder, withdraw_contour, write_contour
from nnunet_ext.io.nifti import read_labels
from nnunet_ext.labels import swap_pairs

REPORT_FILE = "fusion_report.json"
Maps = dict[str, NDArray[np.uint16]]


@dataclass(frozen=True)
class FolderFusion:
    """What came out of fusing folders.

    Args:
        cases: Case to its part of the report: contested voxels and laterality.
        failed: Case to the sentence that says why it was not fused.
    """

    cases: dict[str, dict[str, Any]]
    failed: dict[str, str]


def inputs_from_arguments(arguments: Sequence[str], table: FusionTable) -> dict[str, Path]:
    """Model to folder, from ``NAME=FOLDER`` or from plain folders in the order of the table's models.

    Raises:
        InputError: forms are mixed, a model is unknown or given twice, or the number of folders is wrong.
    """
    models = list(table.models)
    named = [argument.partition("=") for argument in arguments if argument.partition("=")[0] in models]
    named = [parts for parts in named if parts[1]]
    if named and len(named) < len(arguments):
        raise InputError(f"{list(arguments)}: give all inputs as NAME=FOLDER; the table's models are {models}.")
    if len({name for name, _, _ in named}) < len(named):
        raise InputError(f"{list(arguments)}: a model is given twice.")
    if named:
        return {name: Path(folder) for name, _, folder in named}
    if len(arguments) != len(models):
        raise InputError(
            f"{len(arguments)} folders for the {len(models)} models {models}; give one for each in this "
            "order, or name them as NAME=FOLDER."
        )
    return dict(zip(models, map(Path, arguments), strict=True))


def fuse_folders(inputs: Mapping[str, Path], table: FusionTable, output: Path, quiet: bool = False) -> FolderFusion:
    """Fuse every case of the owners' folders and write ``<case>.nii.gz``, ``<case>.json`` and fusion_report.json.

    Where a case fails, an earlier map of it is removed; one that was corrected by hand, or is not ours, is kept and its
    case fails.

    With ``on_conflict = "probability"`` each owner's folder needs nnU-Net's ``<case>.npz``
    (--save_probabilities).

    Args:
        inputs: Model to its folder; models that own nothing are not read.
        table: The fusion table.
        output: Folder for the fused maps, in the grid of the inputs.
        quiet: No progress bar.

    Raises:
        InputError: a folder is missing, empty or of an unknown model, or the output holds other contours.
        BusyError: another process writes there.
        CasesFailedError: some cases could not be fused (missing in a folder, grids differ, damaged); the
            others are done.
    """
    _check_inputs(inputs, table)
    files = {model: label_files(inputs[model]) for model in table.owners}
    result = FolderFusion({}, {})
    cases = sorted(set().union(*files.values()))
    made_by = {"fusion": ", ".join(table.owners)}
    with contour_folder(output, table.organs, made_by, table.channels, list(inputs.values())):
        for case in tqdm(cases, desc="fuse", unit="case", disable=quiet):
            try:
                result.cases[case] = _fuse_case(case, files, table, output)
            except BusyError:
                raise
            except (InputError, ValueError, OSError, MemoryError) as error:
                result.failed[case] = str(error) or type(error).__name__
                with contextlib.suppress(InputError):  # not ours to remove
                    withdraw_contour(output, case)
        write_json(output / REPORT_FILE, {"version": 1, "table": table.as_dict(), **asdict(result)})
    if result.failed:
        causes = " ".join(f"{case}: {cause}" for case, cause in result.failed.items())
        raise CasesFailedError(f"{len(result.failed)} of {len(cases)} cases failed, the others are done. {causes}")
    return result


def _check_inputs(inputs: Mapping[str, Path], table: FusionTable) -> None:
    unknown = [model for model in inputs if model not in table.models]
    missing = [model for model in table.owners if model not in inputs]
    if unknown or missing:
        raise InputError(
            f"inputs {list(inputs)}: unknown {unknown or 'none'}, missing {missing or 'none'}; "
            f"the table's owners are {table.owners}."
        )


def _fuse_case(case: str, files: Mapping[str, Mapping[str, Path]], table: FusionTable, output: Path) -> dict[str, Any]:
    maps, grid = _read_case(case, files)
    probabilities = None
    if table.on_conflict == "probability":
        probabilities = {
            model: _read_probabilities(files[model][case], case, table.owned_labels(model)) for model in files
        }
    fused = fuse_labels(maps, table, probabilities)
    report = _case_report(fused, grid, table)
    write_contour(output, case, fused.labels, grid, report)
    return report


def _read_case(case: str, files: Mapping[str, Mapping[str, Path]]) -> tuple[Maps, Grid]:
    missing = [model for model in files if case not in files[model]]
    if missing:
        raise InputError(f"no label map of {', '.join(missing)}; predict the case with every model that owns an organ.")
    maps: Maps = {}
    grid: Grid | None = None
    first = next(iter(files.values()))[case]
    for model, paths in files.items():
        maps[model], own = read_labels(paths[case])
        grid = grid or own
        difference = grid_difference(grid, own)
        if difference:
            raise InputError(f"{first} and {paths[case]} differ in grid: {difference}; predict from the same images.")
    if grid is None:
        raise ValueError("no model owns an organ.")
    return maps, grid


def _read_probabilities(labels: Path, case: str, owned: Mapping[str, int]) -> dict[str, NDArray[np.floating]]:
    """Organ to probability from nnU-Net's npz beside a label map; channel c belongs to label c."""
    path = labels.parent / f"{case}.npz"
    if not path.is_file():
        raise InputError(f'{path} is missing; predict with --save_probabilities or set on_conflict to "priority".')
    try:
        with path.open("rb") as stream, np.load(stream) as content:  # given a path, it leaves damaged files open
            if "probabilities" not in content:
                raise InputError(f"{path} has {content.files}, expected nnU-Net's array probabilities.")
            channels = content["probabilities"]
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise InputError(f"{path} is truncated or damaged ({error}); predict the case again.") from error
    if max(owned.values()) >= len(channels):
        raise InputError(f"{path} has {len(channels)} channels, the table needs label {max(owned.values())}.")
    return {organ: channels[label] for organ, label in owned.items()}


def _case_report(fused: Fused, grid: Grid, table: FusionTable) -> dict[str, Any]:
    names = {label: organ for organ, label in table.organs.items()}
    findings = check_laterality(fused.labels, grid, swap_pairs(table.organs))
    return {
        "contested": fused.contested,
        "laterality": {f"{names[f.left]}|{names[f.right]}": f.verdict for f in findings},
    }
