from __future__ import annotations

import numpy as np

from nnunet_ext.geometry import Box
from nnunet_ext.roi.boxes import crop
from nnunet_ext.roi.pasting import pasted
from nnunet_ext.roi.region import Region
from nnunet_ext.roi.sides import frame_labels, network_labels, parts_of

PAIR = Region.model_validate(
    {"organs": ["Lens_L", "Eye_L", "Lens_R", "Eye_R"], "from": "3d", "size_vox": [4, 6, 8], "flip_right": True}
)
PLAIN = PAIR.model_copy(update={"flip_right": False})


def test_one_box_for_all_organs_unless_sides_share_a_network():
    (part,) = parts_of(PLAIN)
    expected = {"Lens_L": 1, "Eye_L": 2, "Lens_R": 3, "Eye_R": 4}
    assert part.organs == network_labels(PLAIN) == frame_labels(PLAIN) == expected
    assert part.suffix == ""


def test_both_sides_have_the_same_numbers_in_the_shared_network():
    left, right = parts_of(PAIR)
    assert network_labels(PAIR) == {"Lens": 1, "Eye": 2}
    assert (left.organs, left.suffix) == ({"Lens_L": 1, "Eye_L": 2}, "_L")
    assert (right.organs, right.suffix) == ({"Lens_R": 1, "Eye_R": 2}, "_R")


def test_only_the_right_side_is_mirrored_and_only_along_left_right():
    image = np.arange(2 * 3 * 4).reshape(1, 2, 3, 4)
    left, right = parts_of(PAIR)
    np.testing.assert_array_equal(left.seen(image), image)
    np.testing.assert_array_equal(right.seen(image), image[..., ::-1])
    np.testing.assert_array_equal(right.seen(right.seen(image)), image)


def test_pasting_turns_the_right_side_back_and_numbers_it_by_organ():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 5, (9, 12, 20)).astype(np.uint8)
    box = Box((-1, 2, 3), (3, 8, 11))
    whole = np.zeros(truth.shape, np.uint8)
    for part in parts_of(PAIR):
        numbers = frame_labels(PAIR)
        network = np.zeros(box.shape, np.uint8)
        for organ, number in part.organs.items():
            network[crop(truth, box) == numbers[organ]] = number
        whole = pasted(whole, part.seen(network), box, part, PAIR)
    inside = np.zeros(truth.shape, bool)
    inside[0:3, 2:8, 3:11] = True
    np.testing.assert_array_equal(whole, np.where(inside, truth, 0))


def test_background_of_one_side_does_not_erase_the_other():
    left, _ = parts_of(PAIR)
    whole = np.full((4, 6, 8), 3, np.uint8)
    box = Box((0, 0, 0), (4, 6, 8))
    labels = np.zeros(box.shape, np.uint8)
    labels[0, 0, 0] = 1
    result = pasted(whole, labels, box, left, PAIR)
    assert (result == 3).sum() == whole.size - 1
    assert result[0, 0, 0] == 1
