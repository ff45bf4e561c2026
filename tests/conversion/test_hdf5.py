from __future__ import annotations

import numpy as np
import pytest

from nnunet_ext.conversion.hdf5 import direction_from
from nnunet_ext.errors import InputError
from nnunet_ext.geometry import IDENTITY_DIRECTION, Grid
from nnunet_ext.io.orientation import axis_codes


def test_slices_from_the_feet_rows_to_the_back_columns_to_the_left_are_the_identity():
    assert direction_from("SPL") == IDENTITY_DIRECTION


@pytest.mark.parametrize("axes", ["SPL", "IAR", "LPS", "RAI", "PLS"])
def test_letters_say_where_the_array_axes_grow_to(axes):
    grid = Grid((2, 3, 4), (3.0, 1.0, 1.0), direction=direction_from(axes))
    assert axis_codes(grid) == axes[::-1]  # codes name the index axes x, y, z: the array axes backwards
    step = grid.points_mm([(1, 0, 0)])[0]
    signs = {"L": (3, 0, 0), "R": (-3, 0, 0), "P": (0, 3, 0), "S": (0, 0, 3), "I": (0, 0, -3)}
    np.testing.assert_allclose(step, signs[axes[0]])


@pytest.mark.parametrize("axes", ["", "SP", "SSL", "XYZ", "SPLI", "spl"])
def test_axes_that_are_not_three_different_ones_are_refused(axes):
    with pytest.raises(InputError, match="not understood"):
        direction_from(axes)
