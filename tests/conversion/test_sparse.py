from __future__ import annotations

import numpy as np
import pytest

from nnunet_ext.conversion.sparse import SIDE, leak_free_box, read_mask, read_spacing, read_values
from nnunet_ext.errors import InputError


def _file(tmp_path, text: str):
    path = tmp_path / "x.csv"
    path.write_text(text)
    return path


def test_values_lie_at_their_flat_c_order_index(tmp_path):
    cube = read_values(_file(tmp_path, f",data\n0,7.0\n{SIDE**2 + 2 * SIDE + 3},9.0\n"))
    assert cube[0, 0, 0] == 7
    assert cube[1, 2, 3] == 9
    assert np.count_nonzero(cube) == 2


def test_mask_needs_no_value(tmp_path):
    assert np.argwhere(read_mask(_file(tmp_path, ",data\n5,\n6,\n"))).tolist() == [[0, 0, 5], [0, 0, 6]]


def test_mask_without_a_row_is_empty(tmp_path):
    assert not read_mask(_file(tmp_path, ",data\n")).any()


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (",data\n1,2.0\n2,3", "middle of a line"),
        (",data\n1,2.0\n1,3.0\n", "twice"),
        (f",data\n{SIDE**3},2.0\n", "lists voxel"),
        (",data\n-1,2.0\n", "lists voxel"),
        (",data\n1.5,2.0\n", "lists voxel"),
        (",data\n1\n", "no list of index,value"),
        (",data\n1,two\n", "no list of index,value"),
        ("", "middle of a line"),
    ],
)
def test_damaged_file_is_refused(tmp_path, text, word):
    with pytest.raises(InputError, match=word):
        read_values(_file(tmp_path, text))


def test_spacing_is_given_in_array_order(tmp_path):
    assert read_spacing(_file(tmp_path, "3.9\n3.8\n2.5\n")) == (2.5, 3.9, 3.8)


@pytest.mark.parametrize("text", ["3.9\n3.9\n", "a\nb\nc\n", ""])
def test_spacing_that_is_no_triple_is_refused(tmp_path, text):
    with pytest.raises(InputError, match="three voxel sizes"):
        read_spacing(_file(tmp_path, text))


def _slab(shape=(30, 10, 10), slab=slice(10, 20)):
    """Body in a slab only; a cord that runs through all slices and is drawn in the image outside the slab."""
    body, cord = np.zeros(shape, bool), np.zeros(shape, bool)
    cord[:, 5:7, 5:7] = True
    body[slab, 2:9, 1:9] = True
    return body | cord, cord


def test_slices_that_only_show_contours_are_cut_off():
    box = leak_free_box(*_slab(), "ct")
    assert (box.start, box.stop) == ((10, 2, 1), (20, 9, 9))


def test_blurred_rim_of_the_contours_does_not_pull_the_median_down():
    body, cord = _slab(shape=(60, 20, 20), slab=slice(10, 20))
    body[:, 4, 5:7] = True  # a rim of 2 voxels on every slice; those without body are the majority
    body[20:24, 2, 1:5] = True  # 6 voxels: more than 40 % of that wrong median, far from a body
    assert leak_free_box(body, cord, "ct").stop[0] == 20


def test_longest_run_wins():
    body, cord = _slab(slab=slice(3, 5))
    body[10:20, 2:9, 1:9] = True
    assert leak_free_box(body, cord, "ct").start[0] == 10


def test_image_that_is_all_contours_is_refused():
    _, cord = _slab()
    with pytest.raises(InputError, match="no CT voxel beyond the contours"):
        leak_free_box(cord, cord, "ct")
