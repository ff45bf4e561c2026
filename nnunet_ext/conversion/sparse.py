"""OpenKBP's sparse CSV layout to arrays, and the crop that keeps its contours from leaking into the image.

A file lists ``index,value`` (or ``index,`` for a mask): the index is flat, C order, into a cube of 128³
voxels whose axes are back (Y), left (X) and feet (Z reversed). Measured on patients that exist in both
layouts: volumes turned by ``transpose(2, 0, 1)[::-1]`` equal the published NIfTI conversion voxel by voxel,
left on the left.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from nnunet_ext.conversion.checks import check_spacing, check_values
from nnunet_ext.conversion.loaded_case import LoadedCase
from nnunet_ext.conversion.source import Source, SparseCase
from nnunet_ext.errors import InputError
from nnunet_ext.geometry import Box, Grid

Voxel = TypeVar("Voxel", bound=np.generic)

SIDE = 128
HU_OFFSET = 1024.0
MIN_CONTEXT = 0.4
"""Least area of a kept slice as a fraction of the median (the rule of the known NIfTI conversion)."""
EMPTY_SLICE = 0.1
"""Our choice: slices below this fraction of the largest show only the blurred rim of the contours and are
left out of the
median; on long scans with a short dose slab they are the majority and would pull it down to some 50
voxels."""


def load_sparse_case(case: SparseCase, source: Source) -> LoadedCase:
    """Read one patient, crop it to slices with real body context, and paint the organs in the order of their
    numbers.

    A voxel in two contours gets the later organ (cord over brainstem, mandible over parotid).

    Raises:
        InputError: a file is cut, holds no numbers or points outside the cube, or a check of the image fails.
    """
    values = read_values(case.image)
    masks = {organ: _turned(read_mask(path)) for organ, path in case.structures.items()}
    spoken_for = np.zeros((SIDE,) * 3, dtype=bool)
    for mask in (*masks.values(), *(_turned(read_mask(path)) for path in case.others)):
        spoken_for |= mask
    body = _turned(values) > 0
    box = leak_free_box(body, spoken_for, str(case.image))
    inside = tuple(slice(a, b) for a, b in zip(box.start, box.stop, strict=True))
    grid = Grid((SIDE,) * 3, read_spacing(case.spacing)).cropped(box)
    check_spacing(grid, str(case.spacing))
    cropped = np.ascontiguousarray(_turned(values)[inside], dtype=np.float32) - np.float32(HU_OFFSET)
    image, repairs = check_values(cropped, "CT", str(case.image))
    contoured = {organ: mask for organ, mask in masks.items() if mask.any()}
    kept = {organ: float(mask[inside].sum() / mask.sum()) for organ, mask in contoured.items()}
    return LoadedCase(
        images=(image,),
        grid=grid,
        labels=_painted({organ: mask[inside] for organ, mask in contoured.items()}, source, grid),
        contoured=tuple(sorted(source.organs[organ] for organ in contoured)),
        empty=tuple(sorted(source.organs[organ] for organ in masks if organ not in contoured)),
        orientation="PLI",
        notes=(*repairs, *_crop_notes(box, kept)),
        kept={organ: round(fraction, 4) for organ, fraction in kept.items()},
    )


def read_values(path: Path) -> NDArray[np.float64]:
    """The cube of a file with index and value; voxels that are not listed are 0.

    Raises:
        InputError: cut, not numbers, outside the cube, or a voxel listed twice.
    """
    table = _table(path, columns=(0, 1))
    cube = np.zeros(SIDE**3)
    cube[_indices(table[:, 0], path)] = table[:, 1]
    return cube.reshape((SIDE,) * 3)


def read_mask(path: Path) -> NDArray[np.bool_]:
    """The cube of a file that lists the voxels of a contour.

    Raises:
        InputError: as for read_values.
    """
    table = _table(path, columns=(0,))
    cube = np.zeros(SIDE**3, dtype=bool)
    cube[_indices(table[:, 0], path)] = True
    return cube.reshape((SIDE,) * 3)


def read_spacing(path: Path) -> tuple[float, float, float]:
    """Voxel size along (Z, Y, X) in mm; the file lists the cube's axes (Y, X, Z), one per line.

    Raises:
        InputError: not three numbers.
    """
    try:
        y, x, z = (float(line) for line in path.read_text(encoding="utf-8").split())
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError(f"{path} must hold three voxel sizes in mm, one per line ({error}).") from error
    return z, y, x


def leak_free_box(body: NDArray[np.bool_], structures: NDArray[np.bool_], name: str) -> Box:
    """The box of the longest run of axial slices that show the body and not only the contours.

    OpenKBP's CT is blank outside dose region and contours, so beyond the dose slab the image *is* the label.
    A slice counts when its CT area without the contours is at least MIN_CONTEXT of the median. In the plane
    the box is that of the CT.

    Shape:
        body, structures: (Z, Y, X) bool.

    Raises:
        InputError: no slice has any CT beyond the contours.
    """
    area = np.count_nonzero(body & ~structures, axis=(1, 2))
    if not area.any():
        raise InputError(f"{name} has no CT voxel beyond the contours; download the patient again.")
    shown = area[area > EMPTY_SLICE * area.max()]
    first, last = _longest_run(area >= MIN_CONTEXT * float(np.median(shown)))
    _, rows, columns = np.nonzero((body | structures)[first:last])
    return Box((first, int(rows.min()), int(columns.min())), (last, int(rows.max()) + 1, int(columns.max()) + 1))


def _longest_run(wanted: NDArray[np.bool_]) -> tuple[int, int]:
    """First and last + 1 of the longest run of True; the first of equals."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], wanted, [False])).astype(np.int8)))
    starts, stops = edges[::2], edges[1::2]
    best = int(np.argmax(stops - starts))
    return int(starts[best]), int(stops[best])


def _turned(cube: NDArray[Voxel]) -> NDArray[Voxel]:
    """The cube as (Z, Y, X) in LPS."""
    return cube.transpose(2, 0, 1)[::-1]


def _painted(masks: dict[str, NDArray[np.bool_]], source: Source, grid: Grid) -> NDArray[np.uint16]:
    labels = np.zeros(grid.shape, dtype=np.uint16)
    for organ in sorted(masks, key=lambda name: source.organs[name]):
        labels[masks[organ]] = source.organs[organ]
    return labels


def _crop_notes(box: Box, kept: dict[str, float]) -> list[str]:
    lost = [organ for organ, fraction in kept.items() if fraction == 0]
    notes = [f"{', '.join(lost)} contoured, but wholly outside the kept slices"] if lost else []
    return [f"cropped to slices {box.start[0]} to {box.stop[0] - 1} of {SIDE}", *notes]


def _table(path: Path, columns: tuple[int, ...]) -> NDArray[np.float64]:
    """Columns of a CSV file with one header line."""
    try:
        text = path.read_text(encoding="utf-8")
        if not text.endswith("\n"):
            raise InputError(f"{path} ends in the middle of a line; download it again.")
        rows = [line.split(",") for line in text.splitlines()[1:]]
        table = np.array([[float(row[c]) for c in columns] for row in rows], dtype=np.float64)
    except (ValueError, IndexError) as error:
        raise InputError(f"{path} is no list of index,value ({error}); download it again.") from error
    return table.reshape(-1, len(columns))


def _indices(column: NDArray[np.float64], path: Path) -> NDArray[np.int64]:
    valid = (column >= 0) & (column < SIDE**3) & (column == np.rint(column))
    if not valid.all():
        raise InputError(f"{path} lists voxel {column[~valid][0]:g}, expected whole numbers from 0 to {SIDE**3 - 1}.")
    indices = column.astype(np.int64)
    if len(np.unique(indices)) < len(indices):
        raise InputError(f"{path} lists a voxel twice; download it again.")
    return indices
