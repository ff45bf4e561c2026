from __future__ import annotations

import numpy as np
import pytest

from nnunet_ext.errors import InputError
from nnunet_ext.preprocessing.head_mask import head_mask, overlap, overlap_of_masks


def test_the_head_is_found_with_its_dark_and_bright_parts(head):
    mr = head.draw_mr() + np.abs(np.random.default_rng(0).normal(0, 8, head.grid.shape))
    truth = head.ellipsoid((40, 50, 60))
    found = head_mask(mr, head.grid.spacing_mm)
    assert np.count_nonzero(found != truth) < 0.02 * truth.sum()


def test_same_head_in_ct_and_mr_overlaps_and_a_moved_one_less(head):
    ct, mr = head.draw().ct, head.draw_mr()
    assert overlap(ct, mr, head.grid) > 0.97
    assert overlap(ct, np.roll(mr, 25, axis=2), head.grid) < 0.8


def test_an_mr_of_the_upper_head_is_not_blamed_for_the_rest(head):
    ct, mr = head.draw().ct, head.draw_mr()
    mr[:15] = 0
    assert overlap(ct, mr, head.grid) > 0.97


def test_empty_masks_do_not_overlap():
    empty, full = np.zeros((2, 2, 2), bool), np.ones((2, 2, 2), bool)
    assert overlap_of_masks(empty, full, full) == 0
    assert overlap_of_masks(empty, empty, full) == 0
    assert overlap_of_masks(full, full, empty) == 0


@pytest.mark.parametrize("value", [0.0, 7.0, -3.0])
def test_a_constant_mr_has_no_head(value):
    with pytest.raises(InputError, match="no head"):
        head_mask(np.full((3, 4, 4), value), (3.0, 1.0, 1.0))
