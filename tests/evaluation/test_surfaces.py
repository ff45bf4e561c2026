from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from nnunet_ext.evaluation.surfaces import foreground_extent, surface_distances, surface_mask, surface_points


def test_surface_equals_mask_minus_its_six_connected_erosion() -> None:
    mask = ndimage.gaussian_filter(np.random.default_rng(3).normal(size=(9, 20, 20)), 2) > 0
    np.testing.assert_array_equal(surface_mask(mask), mask & ~ndimage.binary_erosion(mask))


def test_surface_of_all_labels_is_the_surface_of_each() -> None:
    labels = np.random.default_rng(4).integers(0, 3, size=(5, 6, 7))
    together = surface_mask(labels)
    for label in (1, 2):
        np.testing.assert_array_equal(together & (labels == label), surface_mask(labels == label))


def test_points_are_in_mm_and_empty_for_an_absent_organ() -> None:
    labels = np.zeros((4, 5, 6), dtype=np.uint8)
    labels[1, 2, 3] = 2
    absent, single = surface_points(labels, [[1], [2]], (3, 1, 1))
    assert absent.shape == (0, 3)
    np.testing.assert_array_equal(single, [[3.0, 2.0, 3.0]])


def test_a_surface_without_points_is_refused() -> None:
    with pytest.raises(ValueError, match="got 0 and 1"):
        surface_distances(np.zeros((0, 3)), np.zeros((1, 3)))


def test_extent_holds_the_foreground_of_all_maps() -> None:
    a, b = np.zeros((4, 5, 6), dtype=np.uint8), np.zeros((4, 5, 6), dtype=np.uint8)
    a[1, 2, 3], b[3, 0, 4] = 1, 2
    assert foreground_extent(a, b) == (slice(1, 4), slice(0, 3), slice(3, 5))


def test_extent_of_nothing_is_empty() -> None:
    empty = np.zeros((4, 5, 6), dtype=np.uint8)
    assert empty[foreground_extent(empty)].size == 0


def test_extent_of_different_shapes_is_refused() -> None:
    with pytest.raises(ValueError, match="one shape"):
        foreground_extent(np.zeros((2, 2, 2), dtype=np.uint8), np.zeros((2, 2, 3), dtype=np.uint8))
