from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from nnunet_ext.geometry import Grid
from nnunet_ext.io.orientation import axis_codes, from_lps, to_lps

SHAPE = (4, 5, 6)
AXIS_FRAMES = [
    np.diag(signs)[:, list(order)] for order in permutations(range(3)) for signs in product((1.0, -1.0), repeat=3)
]


def _grid(direction: np.ndarray) -> Grid:
    return Grid(SHAPE, (3.0, 1.0, 2.0), (10.0, -20.0, 30.0), tuple(direction.ravel()))


def _oblique(degrees: float) -> np.ndarray:
    angle = np.radians(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    tilt = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    return turn @ tilt


@pytest.mark.parametrize("frame", AXIS_FRAMES, ids=lambda frame: axis_codes(_grid(frame)))
@pytest.mark.parametrize("degrees", [0.0, 12.0])
def test_every_voxel_keeps_its_value_and_its_place(frame, degrees):
    grid = _grid(_oblique(degrees) @ frame)
    array = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    turned, turned_grid = to_lps(array, grid)
    order = np.argsort(turned.ravel())
    places = turned_grid.points_mm(np.argwhere(np.ones(turned.shape)))[order]
    np.testing.assert_allclose(places, grid.points_mm(np.argwhere(np.ones(SHAPE))), atol=1e-9)
    assert axis_codes(turned_grid) == "LPS"


@pytest.mark.parametrize("frame", AXIS_FRAMES, ids=lambda frame: axis_codes(_grid(frame)))
def test_agrees_with_simpleitk(frame):
    grid = _grid(_oblique(12.0) @ frame)
    array = np.arange(np.prod(SHAPE), dtype=np.int32).reshape(SHAPE)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(grid.spacing_mm[::-1])
    image.SetOrigin(grid.origin_mm)
    image.SetDirection(grid.direction)
    reference = sitk.DICOMOrient(image, "LPS")
    turned, turned_grid = to_lps(array, grid)
    np.testing.assert_array_equal(turned, sitk.GetArrayFromImage(reference))
    np.testing.assert_allclose(turned_grid.origin_mm, reference.GetOrigin(), atol=1e-9)
    np.testing.assert_allclose(turned_grid.direction, reference.GetDirection(), atol=1e-9)


@pytest.mark.parametrize("frame", AXIS_FRAMES, ids=lambda frame: axis_codes(_grid(frame)))
def test_way_back_gives_the_original_array(frame):
    grid = _grid(_oblique(12.0) @ frame)
    array = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    np.testing.assert_array_equal(from_lps(to_lps(array, grid)[0], grid), array)


def test_lps_image_is_left_alone():
    grid = _grid(np.eye(3))
    turned, turned_grid = to_lps(np.zeros(SHAPE), grid)
    assert turned_grid == grid
    assert turned.shape == SHAPE


def test_codes_name_where_the_index_axes_point():
    assert axis_codes(_grid(np.diag([-1.0, -1.0, 1.0]))) == "RAS"
    assert axis_codes(_grid(np.eye(3)[:, [2, 0, 1]])) == "SLP"
