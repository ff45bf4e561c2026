from __future__ import annotations

import numpy as np
import pytest

from nnunet_ext.geometry import Box, Grid
from nnunet_ext.roi import crop, paste
from nnunet_ext.roi.boxes import kept_fraction

SHAPE = (6, 9, 7)
RNG = np.random.default_rng(0)
BOXES = [
    Box((int(z), int(y), int(x)), (int(z + a), int(y + b), int(x + c)))
    for z, y, x, a, b, c in np.concatenate([RNG.integers(-3, SHAPE, (20, 3)), RNG.integers(4, 12, (20, 3))], axis=1)
]
"""Boxes inside, across and around the volume; every one overlaps it."""


def oblique_mirrored_grid() -> Grid:
    """Anisotropic, 12° and 7° oblique, with its x axis mirrored."""
    a, b = np.radians([12.0, 7.0])
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    tilt = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    direction = turn @ tilt @ np.diag([-1.0, 1.0, 1.0])
    return Grid(SHAPE, (3.0, 1.0, 0.7), (11.0, -27.0, 340.0), tuple(direction.ravel()))


def numbered(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """Every voxel another number, none of them zero."""
    return np.arange(1, np.prod(shape) + 1, dtype=np.int16).reshape(shape)


def is_inside(box: Box) -> np.ndarray:
    """Voxels of the volume that a box covers."""
    mask = np.zeros(SHAPE, bool)
    mask[tuple(slice(max(0, a), b) for a, b in zip(box.start, box.stop, strict=True))] = True
    return mask


def test_a_region_at_the_corner_is_padded_and_not_shifted():
    part = crop(numbered(), Box.around((0, 0, 0), (3, 5, 4)), pad_value=-1024)
    assert part.shape == (3, 5, 4)
    assert part[1, 2, 2] == numbered()[0, 0, 0]
    np.testing.assert_array_equal(part[1:, 2:, 2:], numbered()[:2, :3, :2])
    assert (part[:1] == -1024).all()
    assert (part[:, :2] == -1024).all()
    assert (part[:, :, :2] == -1024).all()


def test_a_region_at_the_far_corner_is_padded_and_not_shifted():
    part = crop(numbered(), Box.around((5, 8, 6), (3, 5, 4)), pad_value=-1024)
    assert part[1, 2, 2] == numbered()[5, 8, 6]
    assert np.count_nonzero(part == -1024) == part.size - 2 * 3 * 3


@pytest.mark.parametrize("box", BOXES, ids=str)
def test_what_was_cut_out_and_pasted_back_changes_nothing(box):
    np.testing.assert_array_equal(paste(numbered(), crop(numbered(), box), box), numbered())


@pytest.mark.parametrize("box", BOXES, ids=str)
def test_what_was_pasted_is_cut_out_again(box):
    part = np.random.default_rng(1).integers(1, 99, box.shape).astype(np.int16)
    again = crop(paste(numbered(), part, box), box)
    inside = crop(np.ones(SHAPE, bool), box)
    np.testing.assert_array_equal(again[inside], part[inside])
    assert not again[~inside].any()


@pytest.mark.parametrize("box", BOXES, ids=str)
def test_voxels_outside_the_box_stay(box):
    pasted = paste(numbered(), np.zeros(box.shape, np.int16), box)
    inside = is_inside(box)
    np.testing.assert_array_equal(pasted[~inside], numbered()[~inside])
    assert not pasted[inside].any()


def test_neither_cutting_nor_pasting_touches_the_original():
    image, box = numbered(), Box((1, 1, 1), (3, 3, 3))
    crop(image, box)[:] = 0
    paste(image, np.zeros(box.shape, np.int16), box)
    np.testing.assert_array_equal(image, numbered())


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.float32, bool])
def test_the_number_type_stays(kind):
    image, box = np.ones(SHAPE, kind), Box((-1, 0, 0), (2, 2, 2))
    assert crop(image, box).dtype == kind
    assert paste(image, crop(image, box), box).dtype == kind


@pytest.mark.parametrize("start", [(6, 0, 0), (0, -3, 0), (0, 0, 7)])
def test_a_box_beside_the_volume_is_an_error_and_no_padding(start):
    box = Box(start, (start[0] + 3, start[1] + 3, start[2] + 3))
    with pytest.raises(ValueError, match="outside the volume"):
        crop(numbered(), box)
    with pytest.raises(ValueError, match="outside the volume"):
        paste(numbered(), np.zeros(box.shape, np.int16), box)


def test_a_part_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"\(2, 2, 2\), its box \(3, 3, 3\)"):
        paste(numbered(), np.zeros((2, 2, 2), np.int16), Box((0, 0, 0), (3, 3, 3)))


@pytest.mark.parametrize("box", BOXES, ids=str)
def test_every_voxel_of_a_region_lies_where_it_lay_in_the_image(box):
    grid = oblique_mirrored_grid()
    inner = np.argwhere(np.ones(box.shape, bool))
    source_mm = grid.points_mm(inner + np.asarray(box.start))
    assert np.abs(grid.cropped(box).points_mm(inner) - source_mm).max() < 1e-4


def test_the_origin_of_a_region_moves_by_direction_times_spacing_times_start():
    grid, box = oblique_mirrored_grid(), Box((2, -1, 4), (5, 4, 6))
    moved_mm = np.reshape(grid.direction, (3, 3)) @ (np.array([0.7, 1.0, 3.0]) * np.array([4, -1, 2]))
    region = grid.cropped(box)
    np.testing.assert_allclose(region.origin_mm, np.asarray(grid.origin_mm) + moved_mm, atol=1e-9)
    assert (region.shape, region.spacing_mm, region.direction) == (box.shape, grid.spacing_mm, grid.direction)


def test_kept_fraction_counts_the_voxels_of_the_union():
    labels = np.zeros(SHAPE, np.uint8)
    labels[2, 2, 1:5] = 1
    labels[3, 2, 1:5] = 2
    half = Box((0, 0, 0), (6, 9, 3))
    assert kept_fraction(labels, half, [1]) == 0.5
    assert kept_fraction(labels, half, [1, 2]) == 0.5
    assert kept_fraction(labels, Box((2, 0, 0), (3, 9, 7)), [1, 2]) == 0.5
    assert np.isnan(kept_fraction(labels, half, [3]))
