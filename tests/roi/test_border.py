from __future__ import annotations

import numpy as np
import pytest

from nnunet_ext.geometry import Box
from nnunet_ext.roi.border import grown, inner_sides, touched_sides

SHAPE = (20, 30, 40)
BOX = Box((2, 4, 6), (12, 14, 16))


def contour(*where) -> np.ndarray:
    part = np.zeros(BOX.shape, bool)
    for index in where:
        part[index] = True
    return part


@pytest.mark.parametrize(
    ("slab", "side"),
    [(np.s_[0:3, 4:6, 4:7], (0, 0)), (np.s_[7:10, 4:6, 4:7], (0, 1)), (np.s_[4:6, 0:3, 4:7], (1, 0)),
     (np.s_[4:6, 7:10, 4:7], (1, 1)), (np.s_[4:6, 4:7, 0:3], (2, 0)), (np.s_[4:6, 4:7, 7:10], (2, 1))],
)  # fmt: skip
def test_every_side_is_seen_by_the_part_of_an_organ_on_it(slab, side):
    assert touched_sides(contour(slab), BOX, SHAPE) == [side]


@pytest.mark.parametrize("nerve", [np.s_[0:8, 4:5, 4:5], np.s_[0:8, 4:5, 3:7]], ids=["one voxel", "1 × 4 voxels"])
def test_a_thin_organ_that_runs_out_through_a_few_voxels_touches_the_side(nerve):
    assert touched_sides(contour(nerve), BOX, SHAPE) == [(0, 0)]


def test_specks_at_a_border_do_not_count_only_the_organ_itself_does():
    organ = contour(np.s_[3:7, 3:7, 3:7])
    speck = contour(np.s_[0:1, 4:6, 4:8])
    assert touched_sides(organ | contour(np.s_[0:1, 8:10, 1:5]), BOX, SHAPE) == []
    assert touched_sides(speck, BOX, SHAPE) == [(0, 0)]


@pytest.mark.parametrize(
    ("other", "sides"),
    [(np.s_[0:2, 1:3, 2:4], [(0, 0)]), (np.s_[0:6, 3:4, 3:4], [(0, 0)]), (np.s_[0:5, 3:4, 3:4], [])],
    ids=["a third through 2 × 2 voxels", "a fifth through one voxel", "less than a fifth"],
)
def test_the_other_half_of_an_organ_counts_with_one_voxel_and_a_speck_does_not(other, sides):
    half = contour(np.s_[5:8, 5:8, 2:5])  # 27 voxels
    assert touched_sides(half | contour(other), BOX, SHAPE) == sides


def test_a_contour_one_voxel_inside_touches_nothing():
    assert touched_sides(contour(np.s_[1:9, 1:9, 1:9]), BOX, SHAPE) == []


def test_sides_at_the_border_of_the_image_or_beyond_cut_nothing_off():
    box = Box((0, -3, 35), (10, 5, 40))
    assert inner_sides(box, SHAPE) == [(2, 0), (0, 1), (1, 1)]


def test_only_touched_sides_move_by_a_quarter_and_at_least_10_mm():
    assert grown(Box((0, 0, 0), (10, 100, 10)), [(0, 1), (1, 0)], (5.0, 1.0, 1.0)) == Box((0, -25, 0), (13, 100, 10))
    assert grown(Box((0, 0, 0), (4, 4, 4)), [(2, 1)], (5.0, 1.0, 1.0)) == Box((0, 0, 0), (4, 4, 14))
