from __future__ import annotations

import numpy as np
import pytest

from nnunet_ext.preprocessing.images import closed, distance_mm, filled_per_slice, largest_component, opened

SPACING_MM = (3.0, 1.0, 1.0)


def test_distance_is_in_mm_along_every_axis():
    mask = np.zeros((3, 5, 5), bool)
    mask[1, 2, 2] = True
    distance = distance_mm(mask, SPACING_MM)
    assert distance[1, 2, 2] == 0
    assert distance[0, 2, 2] == pytest.approx(3)
    assert distance[1, 2, 4] == pytest.approx(2)
    assert distance[1, 3, 3] == pytest.approx(2**0.5)


def test_distance_to_an_empty_mask_is_infinite():
    assert np.isinf(distance_mm(np.zeros((2, 2, 2), bool), SPACING_MM)).all()


def test_opening_removes_a_thin_plate_and_keeps_a_thick_one():
    mask = np.zeros((9, 30, 30), bool)
    mask[:, 3:6] = True
    mask[:, 12:26] = True
    result = opened(mask, SPACING_MM, 4.0)
    assert not result[:, 3:6].any()
    assert result[:, 12:26, 5:25].all()


def test_opening_does_not_eat_from_the_edge_of_the_image():
    assert opened(np.ones((4, 12, 12), bool), SPACING_MM, 4.0).all()


def test_closing_bridges_a_gap():
    mask = np.ones((5, 20, 20), bool)
    mask[:, 9:12] = False
    assert closed(mask, SPACING_MM, 4.0).all()


def test_empty_masks_stay_empty():
    empty = np.zeros((2, 4, 4), bool)
    for result in (opened(empty, SPACING_MM, 2.0), closed(empty, SPACING_MM, 2.0), largest_component(empty)):
        assert not result.any()
    assert not filled_per_slice(empty, 0).any()


def test_corner_neighbours_are_one_piece():
    mask = np.zeros((2, 3, 3), bool)
    mask[0, 0, 0] = mask[1, 1, 1] = mask[0, 2, 2] = True
    assert largest_component(mask).sum() == 3
    mask[0, 2, 2], mask[0, 0, 2] = False, True
    assert largest_component(mask).sum() == 3
