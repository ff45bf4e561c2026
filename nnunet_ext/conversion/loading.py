"""One case from its source files to checked arrays in the canonical frame and the dataset's label numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nnunet_ext.conversion.checks import check_same_grid, read_checked_image, renumber_labels
from nnunet_ext.conversion.hdf5 import load_hdf5_case
from nnunet_ext.conversion.loaded_case import LoadedCase, drawn_and_empty
from nnunet_ext.conversion.organ_files import paint_organs
from nnunet_ext.conversion.radiograph import load_radiograph
from nnunet_ext.conversion.source import Case, Hdf5Case, NiftiCase, RadiographCase, Source, SparseCase
from nnunet_ext.conversion.sparse import load_sparse_case
from nnunet_ext.conversion.treatment import move_onto
from nnunet_ext.errors import InputError
from nnunet_ext.geometry import Grid
from nnunet_ext.io.nifti import read_labels
from nnunet_ext.io.orientation import axis_codes, to_lps


def load_case(case: Case, source: Source) -> LoadedCase:
    """Read, check and orient one case; organs without a voxel are contoured where the source says so.

    Raises:
        InputError: the case must not be used; the message names the file, the fault and the remedy.
    """
    if case.fault:
        raise InputError(case.fault)
    loaded = _load(case, source)
    if source.empty == "not-contoured":
        return loaded
    return replace(loaded, contoured=tuple(sorted({*loaded.contoured, *loaded.empty})))


def _load(case: Case, source: Source) -> LoadedCase:
    if isinstance(case, SparseCase):
        return load_sparse_case(case, source)
    if isinstance(case, Hdf5Case):
        return load_hdf5_case(case, source)
    if isinstance(case, RadiographCase):
        return load_radiograph(case, source)
    return _load_nifti_case(case, source)


def _load_nifti_case(case: NiftiCase, source: Source) -> LoadedCase:
    images, grid, notes = _read_channels(case, source)
    labels: NDArray[np.uint16] | None = None
    contoured: tuple[int, ...] = ()
    empty: tuple[int, ...] = ()
    if case.label:
        labels, dropped = _read_label_map(case.label, case.images[0], grid, source)
        notes += dropped
        contoured, empty = drawn_and_empty(labels, source.organs.values())
    elif case.organs:
        labels, contoured, overlaps = paint_organs(case.organs, case.images[0], grid, source.organs)
        notes += overlaps
        empty = tuple(sorted({source.organs[organ] for organ in case.organs} - set(contoured)))
    turned = [to_lps(image, grid) for image in images]
    return LoadedCase(
        images=tuple(image for image, _ in turned),
        grid=turned[0][1],
        labels=None if labels is None else to_lps(labels, grid)[0],
        contoured=contoured,
        empty=empty,
        orientation=axis_codes(grid),
        notes=tuple(notes),
        guide=None if case.guide is None else to_lps(_read_guide(case.guide, case.images[0], grid), grid)[0],
    )


def _read_channels(case: NiftiCase, source: Source) -> tuple[list[NDArray[np.float32]], Grid, list[str]]:
    images: list[NDArray[np.float32]] = []
    grids: list[Grid] = []
    notes: list[str] = []
    for path, modality in zip(case.images, source.channels, strict=True):
        image, grid, repairs = read_checked_image(path, modality, source.treatment.stored)
        if images and source.treatment.register:
            image, grid, found = move_onto(images[0], grids[0], image, grid, str(path))
            repairs += found
        images.append(image)
        grids.append(grid)
        notes += [f"{modality}: {repair}" for repair in repairs]
        check_same_grid(path, grid, case.images[0], grids[0])
    return images, grids[0], notes


def _read_guide(path: Path, image_path: Path, grid: Grid) -> NDArray[np.bool_]:
    guide, guide_grid = read_labels(path)
    check_same_grid(path, guide_grid, image_path, grid)
    if not guide.any():
        raise InputError(f"{path} is empty, so there is nothing to crop to; add the contour or remove the file.")
    return np.asarray(guide > 0)


def _read_label_map(path: Path, image_path: Path, grid: Grid, source: Source) -> tuple[NDArray[np.uint16], list[str]]:
    labels, label_grid = read_labels(path)
    check_same_grid(path, label_grid, image_path, grid)
    return renumber_labels(labels, source.values, str(path), unlisted_is_background=source.unlisted_is_background)
