from __future__ import annotations

import json

import numpy as np
import pytest

from nnunet_ext.roi.prior import Prior, Seen, fit_prior

SPACING_MM = (3.0, 1.0, 1.0)
BODY = ((0.0, 10.0, 10.0), (40.0, 90.0, 110.0))
OFFSET_MM = (-6.0, 12.0, 5.0)
"""From the brain stem to the chiasm in every drawn case."""


def seen(shift: float = 0.0, chiasm: bool = True, off_mm: float = 0.0) -> Seen:
    stem = (20.0, 40.0 + shift, 50.0)
    target = tuple(c + o / s for c, o, s in zip(stem, OFFSET_MM, SPACING_MM, strict=True))
    target = (target[0], target[1], target[2] + off_mm)
    return Seen(target if chiasm else None, {"Brainstem": stem}, BODY, SPACING_MM)


def test_a_landmark_gives_the_place_in_mm_whatever_the_voxel_size():
    prior = fit_prior([seen(s) for s in (-4, 0, 4)], ["Brainstem"])
    assert prior.landmarks["Brainstem"].offset_mm == pytest.approx(OFFSET_MM)
    assert prior.landmarks["Brainstem"].spread_mm == pytest.approx(0.0)
    place = prior.from_landmarks({"Brainstem": (10.0, 20.0, 20.0)}, (1.0, 2.0, 2.0))
    assert place == pytest.approx((4.0, 26.0, 22.5))


def test_the_place_in_the_body_is_relative_to_its_box():
    prior = fit_prior([seen()])
    assert prior.in_body == pytest.approx((18 / 40, (52 - 10) / 80, (55 - 10) / 100))
    assert prior.from_body(((0, 0, 0), (80, 80, 100))) == pytest.approx((36.0, 42.0, 45.0))


def test_the_farthest_training_case_is_remembered_for_both_places():
    prior = fit_prior([seen(s, off_mm=o) for s, o in ((-6, 0), (0, 3), (6, 0))], ["Brainstem"])
    assert prior.body_error_mm == pytest.approx(np.hypot(6, 1))
    assert prior.landmark_error_mm == pytest.approx(2.0)


def test_steady_landmarks_count_more_than_moving_ones():
    cases = []
    for shift in (-20.0, 0.0, 20.0):
        case = seen()
        cases.append(Seen(case.target, {**case.others, "Larynx": (0.0, 40.0 + shift, 50.0)}, BODY, SPACING_MM))
    prior = fit_prior(cases, ["Brainstem", "Larynx"])
    place = prior.from_landmarks({"Brainstem": (20.0, 40.0, 50.0), "Larynx": (0.0, 80.0, 50.0)}, SPACING_MM)
    assert place == pytest.approx((18.0, 52.0, 55.0), abs=0.5)


def test_an_offset_of_two_cases_is_no_rule_and_no_landmark_gives_no_place():
    prior = fit_prior([seen(), seen(1.0)], ["Brainstem"])
    assert prior.landmarks == {}
    assert prior.landmark_error_mm is None
    assert prior.from_landmarks({"Brainstem": (0.0, 0.0, 0.0)}, SPACING_MM) is None


def test_cases_without_the_organ_teach_nothing():
    assert fit_prior([seen(chiasm=False)], ["Brainstem"]) is None
    assert fit_prior([seen(), seen(chiasm=False)]).in_body == fit_prior([seen()]).in_body


@pytest.mark.parametrize("landmarks", [[], ["Brainstem"]])
def test_a_prior_survives_a_json_file(landmarks):
    prior = fit_prior([seen(s) for s in (-4, 0, 4)], landmarks)
    assert Prior.from_dict(json.loads(json.dumps(prior.as_dict()))) == prior
