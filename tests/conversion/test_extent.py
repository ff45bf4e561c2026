from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nnunet_ext.conversion.extent import box_around, crop_case, with_slices
from nnunet_ext.conversion.loaded_case import LoadedCase
from nnunet_ext.conversion.source import Crop, Source, Treatment
from nnunet_ext.errors import InputError
from nnunet_ext.geometry import Box, Grid

GRID = Grid((8, 30, 30), (3.0, 1.0, 1.0), (5.0, -7.0, 9.0))


def _source(crop: Crop | None) -> Source:
    texts = {"name": "drawn", "description": "", "licence": "", "reference": ""}
    return Source(folder=Path(), organs={"GTV": 1}, cases=(), treatment=Treatment(crop=crop), **texts)


def _case(**fields) -> LoadedCase:
    image = np.full(GRID.shape, -1000.0, np.float32)
    image[:, 10:24, 8:22] = 40.0
    labels = np.zeros(GRID.shape, np.uint16)
    labels[3:5, 14:18, 12:16] = 1
    return LoadedCase(
        **{"images": (image,), "grid": GRID, "labels": labels, "contoured": (1,), "orientation": "LPS"} | fields
    )


def test_margin_is_whole_voxels_and_ends_at_the_image():
    mask = np.zeros(GRID.shape, bool)
    mask[3, 10:12, 29] = True
    assert box_around(mask, GRID, 0) == Box((3, 10, 29), (4, 12, 30))
    assert box_around(mask, GRID, 3) == Box((2, 7, 26), (5, 15, 30))
    assert box_around(mask, GRID, 4) == Box((1, 6, 25), (6, 16, 30))
    assert box_around(mask, GRID, 1000) == Box((0, 0, 0), GRID.shape)


def test_crop_moves_the_origin_and_copies_the_voxels():
    done = crop_case(_case(), _source(Crop("body", 2.0)))
    assert done.crop == {"start": [0, 8, 6], "stop": [8, 26, 24], "of": [8, 30, 30]}
    assert done.grid == Grid((8, 18, 18), GRID.spacing_mm, (11.0, 1.0, 9.0))
    np.testing.assert_array_equal(done.images[0], _case().images[0][:, 8:26, 6:24])
    np.testing.assert_array_equal(done.labels, _case().labels[:, 8:26, 6:24])


def test_the_contour_does_not_decide_where_to_cut():
    moved = np.zeros(GRID.shape, np.uint16)
    moved[6, 11, 9] = 1
    source = _source(Crop("body", 2.0))
    assert crop_case(_case(), source).crop == crop_case(_case(labels=moved), source).crop
    assert crop_case(_case(), source).crop == crop_case(_case(labels=None), source).crop


def test_without_a_body_the_case_stays_whole_and_says_so():
    tissue = np.random.default_rng(0).normal(40, 10, GRID.shape).astype(np.float32)
    done = crop_case(_case(images=(tissue,)), _source(Crop("body", 2.0)))
    assert done.grid == GRID
    assert done.crop == {}
    assert done.notes[0].startswith("not cropped: ")


def test_a_contour_outside_the_guide_or_a_missing_guide_is_refused():
    guide = np.zeros(GRID.shape, bool)
    guide[2:6, 15:17, 11:17] = True
    with pytest.raises(InputError, match=r"crop to the liver and 0 mm would cut GTV \(16 voxels\)"):
        crop_case(_case(guide=guide), _source(Crop("guide", 0.0, "liver")))
    assert crop_case(_case(guide=guide), _source(Crop("guide", 1.0, "liver"))).labels.sum() == 32
    with pytest.raises(InputError, match="no liver mask"):
        crop_case(_case(), _source(Crop("guide", 1.0, "liver")))


def test_no_crop_and_no_slices_change_nothing():
    case = _case()
    assert crop_case(case, _source(None)) is case
    assert with_slices(case, 0) is case
    assert with_slices(case, 8) is case


@pytest.mark.parametrize("count", [4, 11, 72])
def test_slices_keep_the_outer_edges_of_the_scan(count):
    done = with_slices(_case(guide=_case().labels > 0), count)
    assert done.images[0].shape == done.labels.shape == done.guide.shape == (count, 30, 30)
    for grid in (GRID, done.grid):
        low, high = grid.points_mm([(-0.5, 0, 0), (grid.shape[0] - 0.5, 0, 0)])[:, 2]
        np.testing.assert_allclose((low, high), (7.5, 31.5))
    np.testing.assert_allclose(done.images[0], np.broadcast_to(_case().images[0][0], done.images[0].shape), atol=0.1)
    assert done.labels.dtype == np.uint16
