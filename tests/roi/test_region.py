from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from nnunet_ext.geometry import Box, Grid
from nnunet_ext.roi.region import CENTRE, Region, box_entry, box_from_entry

GRID = Grid((40, 96, 97), (3.0, 1.0, 1.0))


def region(**how: object) -> Region:
    return Region.model_validate({"organs": ["OpticChiasm"], "from": "2d", **how})


def test_millimetres_are_rounded_up_to_voxels():
    assert region(size_mm=(40.0, 76.8, 76.0)).shape_in(GRID) == (14, 77, 76)


def test_a_whole_number_of_voxels_is_not_rounded_up_by_floating_point():
    assert region(size_mm=(0.9, 2.1, 2.1)).shape_in(Grid((9, 9, 9), (0.3, 0.7, 0.7))) == (3, 3, 3)


def test_voxels_are_taken_as_they_are():
    assert region(size_vox=(16, 64, 64)).shape_in(GRID) == (16, 64, 64)


def test_the_central_half_of_an_image_is_cut_at_its_quarters():
    half = region(**{"from": CENTRE}, fraction=(1.0, 0.5, 0.5))
    grid = Grid((105, 512, 512), (3.0, 1.0, 1.0))
    assert half.box(grid, Region.middle(grid)) == Box((0, 128, 128), (105, 384, 384))


@pytest.mark.parametrize("shape", [(40, 96, 97), (1, 2, 3)])
def test_the_whole_fraction_is_the_whole_image_for_even_and_odd_sizes(shape):
    whole, grid = region(**{"from": CENTRE}, fraction=(1.0, 1.0, 1.0)), Grid(shape)
    assert whole.box(grid, Region.middle(grid)) == Box((0, 0, 0), shape)


def test_the_central_voxel_of_a_box_is_the_centre():
    box = region(size_vox=(3, 5, 4)).box(GRID, (0.0, 0.4, 0.6))
    assert box == Box((-1, -2, -1), (2, 3, 3))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({}, "exactly one"),
        ({"size_mm": (1, 1, 1), "size_vox": (1, 1, 1)}, "exactly one"),
        ({"fraction": (1, 1, 1)}, "fraction goes with"),
        ({"from": CENTRE, "size_vox": (1, 1, 1)}, "fraction goes with"),
        ({"size_vox": (1, 0, 1)}, "must be positive"),
        ({"size_vox": (1, 1, 1), "size": 3}, "Extra inputs"),
        ({"size_vox": (1, 1, 1), "copies": -1}, "greater than or equal to 0"),
    ],
)
def test_a_region_that_makes_no_sense_is_refused(how, message):
    with pytest.raises(ValidationError, match=message):
        region(**how)


def test_a_box_survives_a_json_file():
    box = Box((-3, 0, 5), (9, 4, 8))
    assert box_from_entry(json.loads(json.dumps(box_entry(box)))) == box
