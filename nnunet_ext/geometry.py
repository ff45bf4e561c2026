"""Grids, boxes and body axes: numbers only, no files, no pixels.

Array axes are (Z, Y, X); points are (N, 3) xyz in mm in the DICOM patient frame LPS (x grows to the patient's left, y
to the back, z to the head). Directions are ITK's: a 3×3 matrix whose *columns* are the index axes x, y, z.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEFT_RIGHT, FRONT_BACK, HEAD_FOOT = 0, 1, 2
"""Patient axes: rows of a direction matrix in LPS."""
IDENTITY_DIRECTION = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
MAX_OBLIQUE_DEG = 20.0
"""Our choice: beyond 20° no array axis may be called left-right."""


@dataclass(frozen=True)
class Grid:
    """The voxel grid of an image: where every voxel centre lies in the patient.

    Args:
        shape: Voxels along (Z, Y, X).
        spacing_mm: Voxel size along (Z, Y, X) in mm.
        origin_mm: Centre of voxel (0, 0, 0) as xyz in mm, LPS.
        direction: Row-major 3×3 direction cosines, columns are the index axes x, y, z.
    """

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
    origin_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    direction: tuple[float, ...] = IDENTITY_DIRECTION

    @property
    def affine(self) -> NDArray[np.float64]:
        """4×4 matrix that maps an index (x, y, z, 1) to a point (x, y, z, 1) in mm, LPS."""
        matrix = np.eye(4)
        matrix[:3, :3] = np.reshape(self.direction, (3, 3)) * np.asarray(self.spacing_mm[::-1])
        matrix[:3, 3] = self.origin_mm
        return matrix

    def points_mm(self, voxels: ArrayLike) -> NDArray[np.float64]:
        """Patient positions of voxels.

        Shape:
            voxels: (N, 3), indices (z, y, x), float or int.
            returns: (N, 3), xyz in mm, LPS.
        """
        index = np.asarray(voxels, dtype=np.float64).reshape(-1, 3)[:, ::-1]
        matrix = self.affine
        return np.asarray(index @ matrix[:3, :3].T + matrix[:3, 3])

    def cropped(self, box: Box) -> Grid:
        """The grid of a region of this image: same spacing and direction, origin moved. Negative starts are fine."""
        origin = self.points_mm([box.start])[0]
        return Grid(box.shape, self.spacing_mm, (float(origin[0]), float(origin[1]), float(origin[2])), self.direction)

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in millilitres."""
        return float(np.prod(self.spacing_mm)) / 1000.0


@dataclass(frozen=True)
class Box:
    """A half-open integer box of voxels, ``start <= index < stop``, in the axis order (Z, Y, X).

    It may reach beyond the image on every side; what lies outside is padded, the box is never shifted.

    Raises:
        ValueError: a side is empty or negative.
    """

    start: tuple[int, int, int]
    stop: tuple[int, int, int]

    def __post_init__(self) -> None:
        if any(b <= a for a, b in zip(self.start, self.stop, strict=True)):
            raise ValueError(f"a box needs stop > start on every axis, got start {self.start}, stop {self.stop}.")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along (Z, Y, X)."""
        z, y, x = (b - a for a, b in zip(self.start, self.stop, strict=True))
        return z, y, x

    def shifted(self, by: Sequence[int]) -> Box:
        """The same box moved by whole voxels (z, y, x)."""
        z0, y0, x0 = (a + int(d) for a, d in zip(self.start, by, strict=True))
        z1, y1, x1 = (b + int(d) for b, d in zip(self.stop, by, strict=True))
        return Box((z0, y0, x0), (z1, y1, x1))

    @classmethod
    def around(cls, centre: Sequence[float], shape: Sequence[int]) -> Box:
        """The box of ``shape`` whose voxel ``shape // 2`` is the rounded ``centre`` (z, y, x); never shifted."""
        start = [int(np.floor(c + 0.5)) - s // 2 for c, s in zip(centre, shape, strict=True)]
        z, y, x = start
        return cls((z, y, x), (z + int(shape[0]), y + int(shape[1]), x + int(shape[2])))


def grid_difference(a: Grid, b: Grid, tolerance_vox: float = 0.1) -> str | None:
    """Say how two grids differ, or None where they agree.

    Use before two arrays are compared voxel by voxel. Corners are compared, so spacing, origin and direction are judged
    together by what they do to the voxels.

    Args:
        a: One grid.
        b: The other grid.
        tolerance_vox: Largest allowed distance between equal corners, in voxels of the finer axis (our choice: 0.1).
    """
    if a.shape != b.shape:
        return f"shapes {a.shape} and {b.shape}"
    corners = np.array(
        [[z, y, x] for z in (0, a.shape[0] - 1) for y in (0, a.shape[1] - 1) for x in (0, a.shape[2] - 1)]
    )
    off_mm = float(np.abs(a.points_mm(corners) - b.points_mm(corners)).max())
    if off_mm > tolerance_vox * min(a.spacing_mm):
        return (
            f"corners up to {off_mm:.2f} mm apart (spacing {_triple(a.spacing_mm)} and {_triple(b.spacing_mm)} mm, "
            f"origin {_triple(a.origin_mm)} and {_triple(b.origin_mm)} mm)"
        )
    return None


def body_axis(direction: Sequence[float], patient_axis: int) -> tuple[int, float]:
    """Array axis that runs along a patient axis, and how oblique it is.

    Args:
        direction: Row-major 3×3 direction cosines, columns are the index axes x, y, z (ITK).
        patient_axis: 0 left-right, 1 anterior-posterior, 2 head-foot (rows of the matrix, LPS).

    Returns:
        The axis in (Z, Y, X) order, 0 to 2, and the angle in degrees between it and the patient axis.
    """
    row = np.abs(np.reshape(direction, (3, 3))[patient_axis])
    index_axis = int(np.argmax(row))
    return 2 - index_axis, float(np.degrees(np.arccos(min(1.0, float(row[index_axis])))))


def _triple(values: Sequence[float]) -> str:
    return "×".join(f"{v:g}" for v in values)
