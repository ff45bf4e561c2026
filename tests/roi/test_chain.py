from __future__ import annotations

from nnunet_ext.roi.centre import Found
from nnunet_ext.roi.chain import BODY, LANDMARK, chain_of, rung_name
from nnunet_ext.roi.prior import Landmark, Prior

SPACING_MM = (3.0, 1.0, 1.0)
BOX = ((0.0, 0.0, 0.0), (40.0, 100.0, 100.0))
PLAIN = Prior((0.5, 0.5, 0.5), body_error_mm=10.0)
KNOWING = Prior((0.5, 0.5, 0.5), 10.0, {"Brainstem": Landmark((0.0, 20.0, 0.0), 2.0)}, landmark_error_mm=3.0)


def at(z: float, y: float, x: float) -> Found:
    return Found((z, y, x), (int(z), int(y), int(x)), (int(z) + 1, int(y) + 1, int(x) + 1))


def chain(found, prior=PLAIN, landmarks=None, plausible_mm=60.0, is_in_image=lambda located: True):
    places = {rung: [] if one is None else one if isinstance(one, list) else [one] for rung, one in found.items()}
    return chain_of(places, prior, landmarks or {}, BOX, SPACING_MM, plausible_mm, is_in_image)


def rungs(result) -> list[str]:
    return [located.rung for located in result.rungs]


def test_models_come_first_in_their_order_then_landmarks_then_the_body():
    found = {"located": at(20, 50, 50), "fallback:3d": at(21, 50, 50)}
    result = chain(found, KNOWING, {"Brainstem": (20.0, 30.0, 50.0)})
    assert rungs(result) == ["located", "fallback:3d", LANDMARK, BODY]
    assert result.rungs[2].centre == (20.0, 50.0, 50.0)
    assert result.rungs[3].centre == (20.0, 50.0, 50.0)
    assert result.refused == {}


def test_a_model_that_found_nothing_is_passed_over_and_named():
    result = chain({"located": None, "fallback:3d": at(20, 50, 50)})
    assert rungs(result) == ["fallback:3d", BODY]
    assert "fewer than 5 voxels" in result.refused["located"]


def test_a_centre_too_far_from_the_usual_place_is_refused_with_both_numbers():
    result = chain({"located": at(20, 50, 50 + 61)})
    assert rungs(result) == [BODY]
    assert result.refused["located"] == "61 mm from the usual place, at most 60 mm are plausible"


def test_distance_from_the_usual_place_is_measured_in_mm():
    assert rungs(chain({"located": at(20 + 19, 50, 50)}))[0] == "located"  # 57 mm
    assert rungs(chain({"located": at(20 - 21, 50, 50)}))[0] == BODY  # 63 mm


def test_where_training_patients_vary_more_a_new_one_may_too():
    wide = Prior((0.5, 0.5, 0.5), body_error_mm=60.0)
    assert rungs(chain({"located": at(20, 50, 50 + 74)}, wide))[0] == "located"
    assert rungs(chain({"located": at(20, 50, 50 + 76)}, wide))[0] == BODY


def test_landmarks_say_what_is_plausible_where_there_are_any():
    far_from_body = {"located": at(20, 50, 40)}
    assert rungs(chain(far_from_body, KNOWING, {"Brainstem": (20.0, 30.0, 130.0)}))[0] == LANDMARK
    assert rungs(chain(far_from_body, KNOWING))[0] == "located"


def test_the_first_rung_is_called_located_and_the_others_by_their_model():
    assert [rung_name(i, name) for i, name in enumerate(["2d", "3d"])] == ["located", "fallback:3d"]


def test_a_smaller_part_in_a_plausible_place_wins_over_a_larger_one_elsewhere():
    result = chain({"located": [at(20, 50, 50 + 80), at(21, 52, 50)]})
    assert rungs(result) == ["located", BODY]
    assert result.rungs[0].centre == (21, 52, 50)
    assert result.refused["located"].startswith("its largest part lies 80 mm from the usual place")


def test_every_other_plausible_part_of_a_model_stays_known_and_no_implausible_one():
    near, next_piece, far = at(20, 50, 50), at(20, 50, 95), at(20, 50, 130)
    (located, _) = chain({"located": [near, far, next_piece]}).rungs
    assert (located.found, list(located.others)) == (near, [next_piece])


def test_a_place_whose_region_lies_outside_the_image_is_refused():
    shown = lambda located: located.rung != LANDMARK  # noqa: E731
    result = chain({"located": None}, KNOWING, {"Brainstem": (20.0, 90.0, 50.0)}, is_in_image=shown)
    assert rungs(result) == [BODY]
    assert result.refused[LANDMARK] == "the region there lies outside the image"


def test_where_the_image_shows_no_place_at_all_nothing_is_left_to_try():
    result = chain({"located": None}, is_in_image=lambda located: False)
    assert result.rungs == []
    assert set(result.refused) == {"located", BODY}


def test_where_no_model_was_to_locate_the_body_is_no_fallback():
    assert rungs(chain({})) == ["body"]
