import itertools

import pytest

from nnunet_ext.labels import SYNONYMS, colours, partner, swap_pairs, tg263_name
from nnunet_ext.phantom import ORGANS


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("LeftParotid", "Parotid_L"),
        ("RightParotid", "Parotid_R"),
        ("spinal cord", "SpinalCord"),
        ("Rind", "Rind"),
        ("Cochlea R", "Cochlea_R"),
    ],
)
def test_known_spellings_become_tg263_names_and_unknown_ones_stay(spelling, name):
    assert tg263_name(spelling) == name


@pytest.mark.parametrize("write", [str.lower, str.capitalize, str.upper])
def test_both_sides_of_every_organ_are_found_however_they_are_written(write):
    left, right = ([write(s) for s, name in SYNONYMS.items() if name[-2:] == side] for side in ("_L", "_R"))
    assert len(right) == len(left) > 10
    pairs = zip(left, right, strict=True)
    assert all(partner(tg263_name(a)) == tg263_name(b) != tg263_name(a) for a, b in pairs)


def test_partner_is_an_involution_on_paired_names():
    for name in ("Eye_L", "Parotid_R"):
        assert partner(partner(name)) == name
    assert partner("Brainstem") is None


def test_pairs_are_left_then_right_whatever_the_order_of_the_table():
    assert swap_pairs({"Eye_R": 1, "Eye_L": 2, "Cord": 3, "Lens_L": 4}) == [(2, 1)]


def test_colours_of_organs_can_be_told_apart():
    for a, b in itertools.combinations(colours(ORGANS).values(), 2):
        assert max(abs(x - y) for x, y in zip(a, b, strict=True)) > 0.15
