"""A drawn head in CT and MR, on 3 mm slices, with a couch, a mask shell and sinuses, all in known places."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from nnunet_ext.geometry import Grid

SPACING_MM = (3.0, 1.0, 1.0)
GRID = Grid((30, 140, 120), SPACING_MM, (-59.5, -69.5, -43.5))
COUCH_ROWS = slice(122, 134)


def points(grid: Grid = GRID) -> np.ndarray:
    """(3, Z, Y, X), xyz in mm."""
    return grid.points_mm(np.indices(grid.shape).reshape(3, -1).T).T.reshape(3, *grid.shape)


def ellipsoid(radii_mm: tuple[float, float, float], centre_mm=(0.0, -10.0, 0.0), xyz=None) -> np.ndarray:
    xyz = points() if xyz is None else xyz
    return sum(((xyz[i] - centre_mm[i]) / radii_mm[i]) ** 2 for i in range(3)) <= 1


def draw(shell: bool = True, couch: bool = True) -> SimpleNamespace:
    """CT and the masks of its parts; the shell lies 3 mm off the skin and touches it at the forehead."""
    head = ellipsoid((40, 50, 60))
    sinus = ellipsoid((8, 10, 12), (0, -30, 0))
    hu = np.full(GRID.shape, -1000.0)
    parts = {"head": head, "sinus": sinus}
    if shell:
        inner, outer = (ellipsoid((40 + d, 50 + d, 60 + d)) for d in (3, 5.5))
        x, y, _ = points()
        contact = (np.abs(x) < 2) & (y < -58) & (y > -66)
        parts["shell"] = ((outer & ~inner & (y < 20)) | contact) & ~head
        hu[parts["shell"]] = 60.0
    if couch:
        parts["couch"] = np.zeros(GRID.shape, bool)
        parts["couch"][:, COUCH_ROWS, 5:115] = True
        hu[parts["couch"]] = -300.0
        hu[:, COUCH_ROWS, 5:115][:, 2:-2] = -900.0
    hu[head], hu[sinus] = 40.0, -1000.0
    noise = np.random.default_rng(0).normal(0, 12, GRID.shape)
    return SimpleNamespace(ct=(hu + noise).astype(np.float32), grid=GRID, **parts)


def draw_mr(xyz=None) -> np.ndarray:
    """An MR of the same head: bright brain, dark sinus, a bright eye on the left so that it has a side."""
    xyz = points() if xyz is None else xyz
    mr = np.where(ellipsoid((40, 50, 60), xyz=xyz), 300.0, 0.0)
    mr[ellipsoid((8, 10, 12), (0, -30, 0), xyz)] = 20.0
    mr[ellipsoid((9, 9, 9), (20, -42, 0), xyz)] = 600.0
    mr[ellipsoid((15, 20, 15), (-12, 5, 10), xyz)] = 450.0
    return mr.astype(np.float32)


@pytest.fixture
def head() -> SimpleNamespace:
    return SimpleNamespace(draw=draw, draw_mr=draw_mr, points=points, ellipsoid=ellipsoid, grid=GRID)
