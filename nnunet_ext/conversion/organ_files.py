"""One 0/1 file per organ to a label map."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nnunet_ext.conversion.checks import check_same_grid
from nnunet_ext.errors import InputError
from nnunet_ext.geometry import Grid
from nnunet_ext.io.nifti import read_labels


def paint_organs(
    files: Mapping[str, Path], image_path: Path, grid: Grid, organs: Mapping[str, int]
) -> tuple[NDArray[np.uint16], tuple[int, ...], list[str]]:
    """The organs painted in the order of their numbers, the numbers contoured, and one sentence per overlap.

    A voxel in two organs gets the later one: the lens over its eye, the chiasm over a nerve.

    Args:
        files: Organ name to a file whose voxels are 0 or 1 (any single value above 0).
        image_path: The image they belong to, for messages.
        grid: Of the image.
        organs: Organ name to label number.

    Shape:
        returns: labels of grid.shape.

    Raises:
        InputError: a file lies on another grid, or holds several values.
    """
    labels = np.zeros(grid.shape, dtype=np.uint16)
    names = {number: organ for organ, number in organs.items()}
    contoured, notes = [], []
    for organ in sorted(files, key=lambda name: organs[name]):
        mask = _read_mask(files[organ], image_path, grid)
        under, counts = np.unique(labels[mask], return_counts=True)
        notes += [f"{n} voxels of {names[u]} became {organ}" for u, n in zip(under, counts, strict=True) if u]
        labels[mask] = organs[organ]
        if mask.any():
            contoured.append(organs[organ])
    return labels, tuple(contoured), notes


def _read_mask(path: Path, image_path: Path, grid: Grid) -> NDArray[np.bool_]:
    values, its_grid = read_labels(path)
    check_same_grid(path, its_grid, image_path, grid)
    found = np.unique(values[values > 0]).tolist()
    if len(found) > 1:
        raise InputError(f"{path} has the values {found}, expected 0 and 1 in the file of one organ; split it.")
    return np.asarray(values > 0)
