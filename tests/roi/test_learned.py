from __future__ import annotations

import json

import pytest

from nnunet_ext.roi.centre import Found
from nnunet_ext.roi.learned import MIN_MARGIN_MM, Learned, Outline, learned_from
from nnunet_ext.roi.prior import Prior

PRIOR = Prior((0.5, 0.5, 0.5), 0.0)
SPACING_MM = (3.0, 1.0, 1.0)


def box(low, high) -> Found:
    return Found(tuple((a + b) / 2 for a, b in zip(low, high, strict=True)), low, high)


TRUTH = box((10, 10, 10), (20, 40, 40))


def test_margins_hold_what_the_model_missed_on_the_worse_side_in_mm():
    located = box((14, 10, 0), (20, 25, 80))  # 4 slices too few below, 15 voxels too few behind, x too large
    learned = learned_from(PRIOR, [Outline(TRUTH, located, SPACING_MM)])
    assert learned.margin_mm == (12.0, 15.0, MIN_MARGIN_MM)
    assert learned.usual_mm == (30 + 24.0, 30 + 30.0, 30 + 20.0)


def test_one_bad_case_in_many_does_not_decide_the_margins():
    good, bad = Outline(TRUTH, TRUTH, SPACING_MM), Outline(TRUTH, box((19, 39, 39), (20, 40, 40)), SPACING_MM)
    assert learned_from(PRIOR, [good] * 39 + [bad]).margin_mm == (MIN_MARGIN_MM,) * 3


def test_cases_in_which_the_model_found_nothing_teach_the_size_only():
    learned = learned_from(PRIOR, [Outline(TRUTH, None, SPACING_MM)])
    assert (learned.margin_mm, learned.usual_mm) == ((10.0, 10.0, 10.0), (50.0, 50.0, 50.0))


def test_fixed_margins_are_kept():
    learned = learned_from(PRIOR, [Outline(TRUTH, box((14, 10, 0), (20, 25, 80)), SPACING_MM)], (1.0, 2.0, 3.0))
    assert learned.margin_mm == (1.0, 2.0, 3.0)
    assert learned.usual_mm == pytest.approx((32.0, 34.0, 36.0))


def test_what_was_learned_survives_a_json_file():
    learned = learned_from(PRIOR, [Outline(TRUTH, TRUTH, SPACING_MM)])
    assert Learned.from_dict(json.loads(json.dumps(learned.as_dict()))) == learned
