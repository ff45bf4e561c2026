from __future__ import annotations

import numpy as np
import pytest

from nnunet_ext.roi.centre import body_box, centre_of, find, find_all, mask_of

SPACING_MM = (3.0, 1.0, 1.0)


def drawn(*boxes: tuple[slice, slice, slice], shape: tuple[int, int, int] = (40, 24, 30)) -> np.ndarray:
    labels = np.zeros(shape, np.uint8)
    for number, box in enumerate(boxes, 1):
        labels[box] = number
    return labels


def patient() -> np.ndarray:
    """A body of water in air, with a couch below it and air inside."""
    image = np.full((10, 20, 30), -1000.0)
    image[1:9, 4:14, 5:25] = 40.0
    image[3:6, 8:10, 10:12] = -1000.0
    image[:, 18:, :] = 100.0
    return image


def test_centre_of_a_cube_is_its_middle():
    labels = drawn(np.s_[10:15, 4:9, 6:9])
    assert centre_of(labels, [1], SPACING_MM) == (12.0, 6.0, 7.0)


def test_centre_of_several_organs_is_that_of_their_union():
    labels = drawn(np.s_[10:15, 4:9, 6:9], np.s_[10:15, 4:9, 9:12])
    assert centre_of(labels, [1, 2], SPACING_MM) == (12.0, 6.0, 8.5)


@pytest.mark.parametrize("wanted", [[1], [7], []], ids=["too few voxels", "not there", "nothing wanted"])
def test_an_organ_that_is_not_there_has_no_centre(wanted):
    assert centre_of(drawn(np.s_[3:4, 3:5, 3:5]), wanted, SPACING_MM) is None


def test_five_voxels_are_an_organ():
    assert centre_of(drawn(np.s_[3:4, 3:4, 3:8]), [1], SPACING_MM) == (3.0, 3.0, 5.0)


def test_scattered_specks_are_no_organ():
    labels = np.zeros((40, 24, 30), np.uint8)
    labels[::8, 5, 5] = labels[::8, 15, 15] = 1
    assert centre_of(labels, [1], SPACING_MM) is None


def test_a_second_component_within_40_mm_counts_by_its_size():
    labels = drawn(np.s_[5:9, 4:8, 4:8])
    labels[18:20, 4:8, 4:8] = 1  # 12 slices of 3 mm between the centroids: 36 mm
    z, y, x = centre_of(labels, [1], SPACING_MM)
    assert z == pytest.approx((64 * 6.5 + 32 * 18.5) / 96)
    assert (y, x) == (5.5, 5.5)


def test_a_speck_beyond_40_mm_does_not_pull_the_centre():
    labels = drawn(np.s_[5:9, 4:8, 4:8])
    labels[20:22, 4:8, 4:8] = 1  # 14 slices of 3 mm: 42 mm
    assert centre_of(labels, [1], SPACING_MM) == (6.5, 5.5, 5.5)


def test_distance_is_measured_in_mm_and_not_in_voxels():
    labels = drawn(np.s_[5:9, 4:8, 4:8])
    labels[20:22, 4:8, 4:8] = 1
    z, _, _ = centre_of(labels, [1], (1.0, 1.0, 1.0))
    assert z > 6.5


def test_body_is_the_largest_part_and_not_the_couch():
    low, high = body_box(patient())
    assert (low, high) == ((1.0, 4.0, 5.0), (9.0, 14.0, 25.0))


def test_without_a_body_the_whole_image_is_taken():
    low, high = body_box(np.full((4, 5, 6), -1000.0))
    assert (low, high) == ((0.0, 0.0, 0.0), (4.0, 5.0, 6.0))


def test_a_large_image_is_looked_at_in_steps_and_the_box_is_that_coarse():
    image = np.full((4, 300, 256), -1000.0)
    image[:, 101:201, 50:150] = 40.0
    low, high = body_box(image)
    assert np.abs(np.subtract(low, (0, 101, 50))).max() <= 2
    assert np.abs(np.subtract(high, (4, 201, 150))).max() <= 2


def test_what_was_found_has_the_box_of_the_components_that_count():
    labels = drawn(np.s_[10:15, 4:9, 6:9])
    labels[38, 22, 28] = 1  # a speck beyond 40 mm
    found = find(labels, [1], SPACING_MM)
    assert (found.low, found.high) == ((10, 4, 6), (15, 9, 9))


def test_parts_that_lie_apart_are_places_of_their_own_the_largest_first():
    labels = drawn(np.s_[0:4, 2:5, 3:6])
    labels[20:26, 4:9, 4:9] = 1
    labels[39, 22, 28] = 1  # a speck is no place
    places = find_all(labels, [1], SPACING_MM)
    assert [place.low for place in places] == [(20, 4, 4), (0, 2, 3)]
    assert find(labels, [1], SPACING_MM) == places[0]
    assert find_all(labels, [2], SPACING_MM) == []


def test_a_place_has_the_voxels_of_its_components_and_no_others():
    labels = drawn(np.s_[0:4, 2:5, 3:6], np.s_[4:6, 2:5, 3:6])  # two organs that touch
    labels[20:26, 4:9, 4:9] = 1
    labels[22:24, 12:14, 4:9] = 1  # near the largest part
    labels[39, 22, 28] = 1
    far, near = find_all(labels, [1, 2], SPACING_MM)
    expected = np.zeros(labels.shape, bool)
    expected[20:26] = labels[20:26] > 0
    np.testing.assert_array_equal(mask_of(labels, [1, 2], [far], SPACING_MM), expected)
    np.testing.assert_array_equal(mask_of(labels, [1, 2], [far, near], SPACING_MM)[:39], labels[:39] > 0)
    assert not mask_of(labels, [1, 2], [near, far], SPACING_MM)[39].any()
    assert not mask_of(labels, [1, 2], [], SPACING_MM).any()
