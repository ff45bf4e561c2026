from __future__ import annotations

import numpy as np
import pytest

from nnunet_ext.errors import InputError
from nnunet_ext.geometry import Grid
from nnunet_ext.preprocessing.body_mask import (
    OUTSIDE_HU,
    body_mask,
    cut_as_text,
    find_body,
    labels_outside,
    remove_couch,
    threshold_hu,
)

DIRECTION_SAGITTAL = (0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
"""Index x runs to the back, y to the head, z to the left."""


def test_couch_and_mask_shell_go_and_the_head_stays_bit_for_bit(head):
    case = head.draw()
    result, keep, notes = remove_couch(case.ct, case.grid)
    assert result.shape == case.ct.shape
    assert (result[case.couch] == OUTSIDE_HU).all()
    assert np.array_equal(result[case.head], case.ct[case.head])
    assert np.array_equal(result[keep], case.ct[keep])
    assert "ml denser than -4" in notes[0] or "ml denser than -5" in notes[0]


def test_shell_stays_only_around_its_contact_with_the_skin(head):
    case = head.draw()
    result, _, _ = remove_couch(case.ct, case.grid)
    left = case.shell & (result > OUTSIDE_HU)
    x, y, _ = head.points()
    assert left.sum() < 0.05 * case.shell.sum()
    assert (np.abs(x[left]) < 10).all()
    assert (y[left] < -55).all()


def test_air_in_sinuses_keeps_its_values(head):
    case = head.draw()
    result, keep, _ = remove_couch(case.ct, case.grid)
    assert keep[case.sinus].all()
    assert np.array_equal(result[case.sinus], case.ct[case.sinus])


def test_a_head_without_a_couch_is_no_error(head):
    case = head.draw(shell=False, couch=False)
    body = find_body(case.ct, case.grid.spacing_mm)
    assert body.kept > 0.99
    assert np.count_nonzero(body.mask != case.head) < 0.002 * case.head.sum()


def test_a_neck_cut_by_the_image_keeps_its_last_slice(head):
    case = head.draw(couch=False)
    assert case.head[0].any()
    assert (body_mask(case.ct, case.grid.spacing_mm) & case.head)[0].sum() > 0.99 * case.head[0].sum()


def test_holes_are_filled_in_axial_slices_whatever_the_array_axis(head):
    case = head.draw()
    turned = np.ascontiguousarray(case.ct.transpose(2, 0, 1))  # X, Z, Y: sagittal slices
    z, y, x = case.grid.shape
    grid = Grid((x, z, y), (1.0, 3.0, 1.0), case.grid.origin_mm, DIRECTION_SAGITTAL)
    result, keep, _ = remove_couch(turned, grid)
    expected, expected_keep, _ = remove_couch(case.ct, case.grid)
    assert np.array_equal(keep.transpose(1, 2, 0), expected_keep)
    assert np.array_equal(result.transpose(1, 2, 0), expected)


def test_threshold_lies_between_air_and_tissue_though_the_histogram_is_empty_there():
    image = np.array([-1000.0] * 60 + [40.0] * 40)
    assert threshold_hu(image) == pytest.approx(-480, abs=5)


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ([40.0] * 10, "no body"),
        ([0.0] * 50 + [300.0] * 50, "almost no air"),
        ([-1000.0] * 9 + [-900.0], "expected -700"),
    ],
)
def test_an_image_without_air_and_tissue_is_refused(values, word):
    with pytest.raises(InputError, match=word):
        threshold_hu(np.array(values))


def test_scattered_pieces_are_no_patient():
    image = np.full((12, 60, 60), -1000.0)
    for y, x in ((5, 5), (5, 35), (35, 5), (35, 35)):
        image[:, y : y + 20, x : x + 20] = 40.0
    with pytest.raises(InputError, match=r"25% .* at least 30%"):
        find_body(image, (3.0, 1.0, 1.0))


def test_a_slab_from_side_to_side_is_mentioned(head):
    case = head.draw(shell=False)
    case.ct[:, 90:134] = 40.0
    _, _, notes = remove_couch(case.ct, case.grid)
    assert any("whole width" in note for note in notes)


def test_labels_outside_are_counted_by_organ():
    labels = np.array([[[1, 1, 2, 0]]])
    cut = labels_outside(labels, np.array([[[True, False, False, False]]]))
    assert cut == {1: 1, 2: 1}
    assert cut_as_text(cut, {"Eye_L": 1, "Eye_R": 2, "Lens_L": 3}) == "Eye_L (1 voxels), Eye_R (1 voxels)"
