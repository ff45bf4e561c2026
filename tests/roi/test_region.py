from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from nnunet_ext.geometry import Box, Grid
from nnunet_ext.roi.centre import Found
from nnunet_ext.roi.chain import Located
from nnunet_ext.roi.learned import Learned
from nnunet_ext.roi.prior import Prior
from nnunet_ext.roi.region import CENTRE, Region, box_entry, box_from_entry

GRID = Grid((40, 96, 97), (3.0, 1.0, 1.0))
NAN, INF = float("nan"), float("inf")


def region(**how: object) -> Region:
    return Region.model_validate({"organs": ["OpticChiasm"], "from": "2d", **how})


def around(wanted: Region, grid: Grid, centre: tuple[float, float, float] = (20.0, 40.0, 40.0)) -> Box:
    return wanted.box(grid, Located(centre, "located"), None)


def test_millimetres_are_rounded_up_to_voxels():
    assert around(region(size_mm=(40.0, 76.8, 76.0)), GRID).shape == (14, 77, 76)


def test_a_whole_number_of_voxels_is_not_rounded_up_by_floating_point():
    assert around(region(size_mm=(0.9, 2.1, 2.1)), Grid((9, 9, 9), (0.3, 0.7, 0.7))).shape == (3, 3, 3)


def test_voxels_are_taken_as_they_are():
    assert around(region(size_vox=(16, 64, 64)), GRID).shape == (16, 64, 64)


def test_the_central_half_of_an_image_is_cut_at_its_quarters():
    half = region(**{"from": CENTRE}, fraction=(1.0, 0.5, 0.5))
    grid = Grid((105, 512, 512), (3.0, 1.0, 1.0))
    assert around(half, grid, Region.middle(grid)) == Box((0, 128, 128), (105, 384, 384))


@pytest.mark.parametrize("shape", [(40, 96, 97), (1, 2, 3)])
def test_the_whole_fraction_is_the_whole_image_for_even_and_odd_sizes(shape):
    whole, grid = region(**{"from": CENTRE}, fraction=(1.0, 1.0, 1.0)), Grid(shape)
    assert around(whole, grid, Region.middle(grid)) == Box((0, 0, 0), shape)


def test_the_central_voxel_of_a_box_is_the_centre():
    box = around(region(size_vox=(3, 5, 4)), GRID, (0.0, 0.4, 0.6))
    assert box == Box((-1, -2, -1), (2, 3, 3))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({}, "exactly one"),
        ({"size_mm": (1, 1, 1), "size_vox": (1, 1, 1)}, "exactly one"),
        ({"fraction": (1, 1, 1)}, "fraction goes with"),
        ({"from": CENTRE, "size_vox": (1, 1, 1)}, "fraction goes with"),
        ({"size_vox": (1, 0, 1)}, "must be positive"),
        ({"margin_mm": (1, 1, 1), "size_vox": (1, 1, 1)}, "exactly one"),
        ({"margin_mm": (1, -1, 1)}, "not be negative"),
        ({"margin_mm": "auto", "from": "truth"}, "give numbers"),
        ({"size_vox": (1, 1, 1), "flip_right": True}, "come in pairs"),
        ({"organs": ["Eye_L", "Eye_R"], "from": CENTRE, "fraction": (1, 1, 1), "flip_right": True}, "locating model"),
        ({"size_vox": (1, 1, 1), "size": 3}, "Extra inputs"),
        ({"size_vox": (1, 1, 1), "copies": -1}, "greater than or equal to 0"),
        ({"size_vox": (1, 1, 1), "seed": -1}, "greater than or equal to 0"),
        ({"size_vox": (1, 1, 1), "jitter_vox": (-1, 2, 2)}, "jitter_vox must be finite and not be negative"),
        ({"size_vox": (1, 1, 1), "jitter_vox": (1, NAN, 2)}, "jitter_vox must be finite"),
        ({"size_mm": (NAN, 1, 1)}, "positive and finite"),
        ({"size_mm": (INF, 1, 1)}, "positive and finite"),
        ({"margin_mm": (1, NAN, 1)}, "margin_mm must be finite"),
        ({"fraction": (1, INF, 1), "from": CENTRE}, "positive and finite"),
        ({"organs": [], "size_vox": (1, 1, 1)}, r"name every organ of the region once, not \[\]"),
        ({"organs": ["A", ""], "size_vox": (1, 1, 1)}, "name every organ"),
        ({"organs": ["A", "B", "A"], "size_vox": (1, 1, 1)}, r"once, not \[A, B, A\]"),
        ({"from": "body", "fallback": ["3d"], "size_vox": (1, 1, 1)}, 'with from: "body" leave it out'),
        ({"from": "truth", "fallback": ["3d"], "size_vox": (1, 1, 1)}, 'with from: "truth" leave it out'),
        ({"fallback": ["3d", "2d"], "size_vox": (1, 1, 1)}, "name one model twice"),
    ],
)
def test_a_region_that_makes_no_sense_is_refused(how, message):
    with pytest.raises(ValidationError, match=message):
        region(**how)


LEARNED = Learned(Prior((0.5, 0.5, 0.5), 0.0), (6.0, 4.0, 2.0), (30.0, 20.0, 10.0))


def test_a_region_with_margins_follows_the_located_organ():
    located = Located((11.0, 21.0, 31.0), "located", Found((11.0, 21.0, 31.0), (10, 20, 30), (13, 23, 33)))
    assert region(margin_mm=(3.0, 5.0, 5.5)).box(GRID, located, LEARNED) == Box((9, 15, 24), (14, 28, 39))
    assert region(margin_mm="auto").box(GRID, located, LEARNED) == Box((8, 16, 28), (15, 27, 35))


def test_a_place_without_an_outline_gets_the_organs_usual_size():
    box = region(margin_mm="auto").box(GRID, Located((20.0, 40.0, 40.0), "fallback:body"), LEARNED)
    assert box == Box((15, 30, 35), (25, 50, 45))


def test_margins_need_what_was_learned():
    with pytest.raises(ValueError, match="learned"):
        around(region(margin_mm="auto"), GRID)


def test_a_box_survives_a_json_file():
    box = Box((-3, 0, 5), (9, 4, 8))
    assert box_from_entry(json.loads(json.dumps(box_entry(box)))) == box
