from __future__ import annotations

import numpy as np
import pytest

from nnunet_ext.geometry import Grid
from nnunet_ext.preprocessing.resampling import grid_at_spacing, resample_image, resample_labels

OBLIQUE = (0.96, -0.28, 0.0, 0.28, 0.96, 0.0, 0.0, 0.0, -1.0)
GRID = Grid((12, 30, 32), (3.0, 1.0, 1.0), (5.0, -7.0, 9.0), OBLIQUE)


def _on(grid: Grid, function) -> np.ndarray:
    points = grid.points_mm(np.indices(grid.shape).reshape(3, -1).T)
    return function(*points.T).reshape(grid.shape)


def test_field_of_view_keeps_its_edges():
    target = grid_at_spacing(GRID, (2.5, 0.8, 0.8))
    assert target.shape == (14, 38, 40)
    for end in (0, 1):
        corners = [g.points_mm([[(n - 1) * end + (end - 0.5) for n in g.shape]])[0] for g in (GRID, target)]
        assert corners[0] == pytest.approx(corners[1], abs=1e-9)


def test_same_spacing_is_the_same_grid():
    assert grid_at_spacing(GRID, GRID.spacing_mm) == GRID


def test_cubic_splines_reproduce_a_quadratic_away_from_the_border():
    def f(x, y, z):
        return 3 + 0.5 * x - 0.2 * y + 0.1 * z + 0.02 * x * y + 0.01 * y * y

    image = _on(GRID, f).astype(np.float32)
    target = grid_at_spacing(GRID, (2.0, 0.8, 1.3))
    result = resample_image(image, GRID, target, outside=-1024)
    inner = (slice(6, -6), slice(9, -9), slice(6, -6))
    assert result[inner] == pytest.approx(_on(target, f)[inner], abs=0.02)


def test_splines_do_not_overshoot_the_values_of_the_image():
    image = np.full(GRID.shape, -1000, np.float32)
    image[4:8, 10:20, 10:20] = 3000
    result = resample_image(image, GRID, grid_at_spacing(GRID, (2.0, 0.7, 0.7)), outside=-1024)
    assert result.min() >= -1000
    assert result.max() <= 3000


def test_beyond_the_field_of_view_lies_the_outside_value():
    beyond = Grid(GRID.shape, GRID.spacing_mm, (500.0, 0.0, 0.0), GRID.direction)
    ones = np.ones(GRID.shape, np.float32)
    assert (resample_image(ones, GRID, beyond, outside=-1024) == -1024).all()
    for method in ("nearest", "linear"):
        assert (resample_labels(ones.astype(np.uint8), GRID, beyond, method) == 0).all()


@pytest.mark.parametrize("method", ["nearest", "linear"])
def test_labels_stay_those_of_the_input(method):
    labels = np.random.default_rng(0).choice([0, 3, 7], GRID.shape).astype(np.uint8)
    result = resample_labels(labels, GRID, grid_at_spacing(GRID, (1.3, 0.6, 1.7)), method)
    assert result.dtype == np.uint8
    assert set(np.unique(result)) <= {0, 3, 7}


@pytest.mark.parametrize("method", ["nearest", "linear"])
def test_labels_on_their_own_grid_do_not_change(method):
    labels = np.random.default_rng(0).integers(0, 4, GRID.shape).astype(np.uint16)
    assert np.array_equal(resample_labels(labels, GRID, GRID, method), labels)


def test_linear_labels_treat_left_and_right_alike():
    straight = Grid((6, 20, 21), (3.0, 1.0, 1.0))
    target = grid_at_spacing(straight, (2.0, 0.7, 0.83))
    labels = np.zeros(straight.shape, np.uint8)
    labels[2:4, 5:13, 3:9] = 1
    there = resample_labels(labels, straight, target)
    mirrored = resample_labels(np.ascontiguousarray(labels[:, :, ::-1]), straight, target)
    assert np.array_equal(mirrored[:, :, ::-1], there)
    volume = labels.sum() * straight.voxel_ml
    assert there.sum() * target.voxel_ml == pytest.approx(volume, rel=0.12)


def test_unknown_method_and_impossible_spacing_are_refused():
    with pytest.raises(ValueError, match="nearest or linear"):
        resample_labels(np.zeros(GRID.shape, np.uint8), GRID, GRID, "cubic")
    with pytest.raises(ValueError, match="positive"):
        grid_at_spacing(GRID, (0.0, 1.0, 1.0))
