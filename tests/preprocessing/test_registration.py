from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from nnunet_ext.errors import InputError
from nnunet_ext.geometry import Grid
from nnunet_ext.preprocessing.registration import register_rigid

MR_GRID = Grid((46, 75, 65), (2.5, 2.0, 2.0), (-70.0, -95.0, -60.0))
SHIFT_MM = np.array([14.0, -9.0, 6.0])
TURN = Rotation.from_euler("xyz", [3, -4, 8], degrees=True).as_matrix()


@pytest.fixture(scope="module")
def moved_mr():
    """Function that draws the MR of a patient who was moved: the head's point p lies at TURN p + SHIFT."""

    def draw(draw_mr, points):
        xyz = points(MR_GRID)
        home = np.tensordot(TURN.T, xyz - SHIFT_MM[:, None, None, None], axes=1)
        return draw_mr(home)

    return draw


def test_a_known_motion_is_undone_and_the_heads_meet(head, moved_mr):
    ct = head.draw(shell=False, couch=False).ct
    found = register_rigid(ct, head.grid, moved_mr(head.draw_mr, head.points), MR_GRID)
    assert found.overlap_before < 0.85
    assert found.overlap_after > 0.95
    assert found.image.shape == head.grid.shape
    eye = head.ellipsoid((9, 9, 9), (20, -42, 0))
    bright = found.image > 525
    assert 2 * (eye & bright).sum() / (eye.sum() + bright.sum()) > 0.8
    centre = np.asarray(found.centre_mm)
    turn = Rotation.from_euler("zxy", [found.angles_rad[i] for i in (2, 0, 1)]).as_matrix()
    for point in np.array([[20.0, -42, 0], [-12, 5, 10], [0, 20, -20]]):
        there = turn @ (point - centre) + centre + found.shift_mm
        assert np.linalg.norm(there - (TURN @ point + SHIFT_MM)) < 2.5


def test_two_runs_agree_exactly(head, moved_mr):
    ct = head.draw(shell=False, couch=False).ct
    mr = moved_mr(head.draw_mr, head.points)
    first, second = (register_rigid(ct, head.grid, mr, MR_GRID) for _ in range(2))
    assert first.shift_mm == second.shift_mm
    assert np.array_equal(first.image, second.image)


def test_an_mr_without_a_head_is_refused(head):
    with pytest.raises(InputError, match="no head"):
        register_rigid(head.draw().ct, head.grid, np.zeros(MR_GRID.shape, np.float32), MR_GRID)
