"""A region network that knows the truth: what comes back is what the machinery let it see."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nnunet_ext.geometry import Grid
from nnunet_ext.recipe.region_prediction import LocatorMap, RegionalPrediction, region_warnings
from nnunet_ext.roi.learned import Learned
from nnunet_ext.roi.prior import Landmark, Prior
from nnunet_ext.roi.region import Region

SHAPE = (30, 60, 70)
GRID = Grid(SHAPE, (3.0, 1.0, 1.0))
ORGAN = np.s_[13:17, 25:35, 28:40]
"""Of Pituitary; its centre is (14.5, 29.5, 33.5)."""
STEM = np.s_[18:24, 40:50, 30:40]
PRIOR = Prior((0.5, 0.5, 0.5), 2.0, {"Brainstem": Landmark((-18.0, -15.0, -1.0), 1.0)}, 2.0)
LEARNED = {"both": Learned(PRIOR, (10.0, 10.0, 10.0), (24.0, 20.0, 22.0))}


def truth() -> np.ndarray:
    labels = np.zeros(SHAPE, np.uint8)
    labels[ORGAN] = 1
    return labels


def found(labels: np.ndarray, stem: bool = True, name: str = "2d", whole_image: bool = True) -> LocatorMap:
    """What a whole-image model says: Pituitary 3, and mostly the brain stem 5."""
    seen = labels * np.uint8(3)
    if stem:
        seen[STEM] = 5
    return LocatorMap(name, seen, {"Pituitary": 3, "Brainstem": 5}, whole_image)


def region(**how: Any) -> Region:
    size = {} if "margin_mm" in how else {"size_mm": (24.0, 20.0, 22.0)}
    return Region.model_validate({"organs": ["Pituitary"], "from": "2d", **size, **how})


def predict(wanted: Region, *seen: LocatorMap, image: np.ndarray | None = None, learned=LEARNED, network=None):
    """The map and the report; the network reads the truth out of the image."""
    image = truth().astype(np.float32) if image is None else image
    task = RegionalPrediction(
        region=wanted,
        learned=learned,
        images={"CT": image},
        anatomy=np.zeros(SHAPE, np.float32),
        grid=GRID,
        locators=seen,
        predict=network or (lambda parts: np.maximum(parts[0], 0).astype(np.uint8)),
    )
    return task.run(), task.report


def shifted(z: int = 0, y: int = 0, x: int = 0) -> np.ndarray:
    return np.roll(truth(), (z, y, x), axis=(0, 1, 2))


def test_a_well_located_region_gives_the_organ_bit_by_bit():
    labels, report = predict(region(), found(truth()))
    np.testing.assert_array_equal(labels, truth())
    assert report == {
        "both": {"rung": "located", "start": [11, 20, 23], "stop": [19, 40, 45], "refused": {}, "grown": 0,
                 "touches_border": [], "organs": {"Pituitary": "region"}, "left_out_voxels": {},
                 "disagreements": {}, "models_apart_mm": 0.0}
    }  # fmt: skip
    assert region_warnings("small", report["both"]) == []


# --- a localiser sabotaged three ways --------------------------------------------------------------------------------


def test_an_empty_localiser_is_replaced_by_landmarks_and_named():
    labels, report = predict(region(), found(np.zeros(SHAPE, np.uint8)))
    np.testing.assert_array_equal(labels, truth())
    assert report["both"]["rung"] == "fallback:landmark"
    assert "located: found nothing" in region_warnings("small", report["both"])[0]


def test_without_landmarks_the_usual_place_in_the_body_is_taken():
    labels, report = predict(region(), found(np.zeros(SHAPE, np.uint8), stem=False))
    np.testing.assert_array_equal(labels, truth())
    assert report["both"]["rung"] == "fallback:body"


def test_a_localiser_60_mm_off_is_refused_as_implausible():
    labels, report = predict(region(plausible_mm=40.0), found(shifted(x=-28, y=24, z=10)))
    np.testing.assert_array_equal(labels, truth())
    assert report["both"]["rung"] == "fallback:landmark"
    assert "mm from the usual place" in report["both"]["refused"]["located"]


def test_a_larger_false_part_far_away_does_not_hide_the_organ():
    labels = truth()
    labels[0:6, 45:60, 0:20] = 1  # larger than the organ, 60 mm off
    result, report = predict(region(plausible_mm=40.0), found(labels))
    np.testing.assert_array_equal(result, truth())
    assert report["both"]["rung"] == "located"
    assert "its largest part lies" in report["both"]["refused"]["located"]
    (warning,) = region_warnings("small", report["both"])
    assert warning.startswith("region of small: located, with doubts (located: its largest part lies 49 mm")


def test_a_false_part_that_was_refused_is_not_pasted_with_the_true_one():
    blind = lambda parts: np.zeros(parts.shape[1:], np.uint8)  # noqa: E731
    labels = truth()
    labels[0:6, 45:60, 0:20] = 1  # larger than the organ, far off
    result, report = predict(region(plausible_mm=40.0), found(labels), network=blind)
    np.testing.assert_array_equal(result, truth())
    assert report["both"]["organs"] == {"Pituitary": "2d"}
    assert report["both"]["left_out_voxels"] == {"Pituitary": 1800}
    warnings = region_warnings("small", report["both"])
    assert "region of small: 1800 voxels far from the usual place were not taken for Pituitary" in warnings


def test_a_smaller_false_part_that_is_left_out_is_told_too():
    blind = lambda parts: np.zeros(parts.shape[1:], np.uint8)  # noqa: E731
    labels = truth()
    labels[0:2, 55:60, 0:10] = 1
    result, report = predict(region(plausible_mm=40.0), found(labels), network=blind)
    np.testing.assert_array_equal(result, truth())
    assert report["both"]["left_out_voxels"] == {"Pituitary": 100}


def test_both_plausible_pieces_of_an_organ_are_taken_from_the_whole_image():
    blind = lambda parts: np.zeros(parts.shape[1:], np.uint8)  # noqa: E731
    labels = truth()
    labels[13:17, 25:31, 0:8] = 1  # 30 mm aside, in one place with the organ
    labels[25:29, 5:10, 28:40] = 1  # a place of its own, 43 mm off
    result, report = predict(region(), found(labels), network=blind)
    np.testing.assert_array_equal(result, labels)
    assert report["both"]["left_out_voxels"] == {}


def test_a_plausible_but_wrong_centre_is_left_when_the_region_shows_nothing():
    labels, report = predict(region(plausible_mm=100.0), found(shifted(x=-28, y=25)))
    np.testing.assert_array_equal(labels, truth())
    assert report["both"]["rung"] == "fallback:landmark"
    assert report["both"]["refused"]["located"] == "the region network found nothing there"


@pytest.mark.parametrize("off", [{"y": 12}, {"x": -12}, {"z": 4}, {"z": -3, "y": -9, "x": 9}])
def test_half_an_organ_outside_makes_the_region_grow_until_it_is_whole(off):
    labels, report = predict(region(), found(shifted(**off)))
    np.testing.assert_array_equal(labels, truth())
    assert report["both"]["rung"] == "located"
    assert report["both"]["grown"] in (1, 2)
    assert not report["both"]["touches_border"]
    assert any("enlarged" in line for line in region_warnings("small", report["both"]))


def test_two_believed_models_that_disagree_about_the_place_are_reported():
    wanted = region(fallback=["3d"], plausible_mm=100.0)
    _, report = predict(wanted, found(truth()), found(shifted(x=28, y=25), name="3d"))
    assert report["both"]["models_apart_mm"] == pytest.approx(np.hypot(28, 25), abs=0.1)
    assert "region of small: models see it 38 mm apart" in region_warnings("small", report["both"])


# --- what growing cannot repair --------------------------------------------------------------------------------------


def long_organ() -> np.ndarray:
    labels = np.zeros(SHAPE, np.uint8)
    labels[13:17, 1:59, 30:36] = 1
    return labels


def test_an_organ_that_stays_cut_off_comes_from_the_whole_image_model():
    labels, report = predict(region(grow_at_most=1), found(long_organ()), image=long_organ().astype(np.float32))
    np.testing.assert_array_equal(labels, long_organ())
    assert report["both"]["grown"] == 1
    assert report["both"]["touches_border"] == ["Pituitary"]
    assert report["both"]["organs"] == {"Pituitary": "2d"}
    assert "its contour is that of the whole-image model 2d" in region_warnings("small", report["both"])[0]


def test_of_two_whole_image_models_the_one_that_agrees_with_the_region_counts():
    half = long_organ()
    half[:, 30:] = 0
    wanted = region(grow_at_most=1, fallback=["3d"], plausible_mm=100.0)
    seen = found(half), found(long_organ(), name="3d")
    labels, report = predict(wanted, *seen, image=long_organ().astype(np.float32))
    np.testing.assert_array_equal(labels, long_organ())
    assert report["both"]["rung"] == "located"
    assert report["both"]["organs"] == {"Pituitary": "3d"}


def test_without_a_whole_image_model_the_cut_contour_is_kept_and_said_to_be_cut():
    seen = found(long_organ(), whole_image=False)
    labels, report = predict(region(grow_at_most=1), seen, image=long_organ().astype(np.float32))
    assert 0 < labels.sum() < long_organ().sum()
    assert report["both"]["organs"] == {"Pituitary": "region"}
    assert "may be cut off" in region_warnings("small", report["both"])[0]


FIXED = Region.model_validate(
    {"organs": ["Pituitary"], "from": "2d", "fallback": ["3d"], "size_mm": (24.0, 20.0, 22.0), "grow_at_most": 0}
)
"""Shows 20 rows of the long organ, which are 480 voxels."""


def rows_of(start: int, stop: int) -> np.ndarray:
    rows = np.zeros(SHAPE, np.uint8)
    rows[13:17, start:stop, 30:36] = 1
    return rows


def predict_long_organ(seen: np.ndarray, wanted: Region = FIXED):
    """The region lies well; 3d sees something else on the whole image."""
    place = found(rows_of(20, 40), whole_image=False)
    labels, report = predict(wanted, place, found(seen, name="3d"), image=long_organ().astype(np.float32))
    return labels, report["both"]


@pytest.mark.parametrize("rows", [1, 5, 6])
def test_a_whole_image_model_that_lost_the_organ_takes_nothing_away_from_the_region(rows):
    labels, report = predict_long_organ(rows_of(29, 29 + rows))
    np.testing.assert_array_equal(labels, rows_of(20, 40))
    assert report["organs"] == {"Pituitary": "region+3d"}
    seen = {"model": "3d", "region_voxels": 480, "model_voxels": 24 * rows}
    assert report["disagreements"] == {"Pituitary": seen}
    assert region_warnings("small", report) == [
        "region of small: Pituitary touches its border and the whole-image model 3d sees something else "
        f"(480 voxels here, {24 * rows} there); the contour is both together"
    ]


def test_a_region_that_shows_a_rest_of_the_organ_hides_nothing_that_the_whole_image_model_sees():
    """Its network must not win with a few voxels at a side over a whole organ."""
    rest = np.zeros(SHAPE, np.uint8)
    rest[13:17, 39:40, 30:36] = 1
    place = found(rows_of(20, 40), whole_image=False)
    labels, report = predict(FIXED, place, found(rows_of(21, 39), name="3d"), image=rest.astype(np.float32))
    np.testing.assert_array_equal(labels, np.maximum(rest, rows_of(21, 39)))
    assert report["both"]["organs"] == {"Pituitary": "region+3d"}


def test_a_whole_image_model_whose_dice_inside_the_region_is_just_enough_replaces_the_organ():
    labels, report = predict_long_organ(rows_of(33, 55))  # 7 rows inside: 14 / 27
    np.testing.assert_array_equal(labels, rows_of(33, 55))
    assert (report["organs"], report["disagreements"]) == ({"Pituitary": "3d"}, {})


def test_a_whole_image_model_that_disagrees_adds_what_it_sees():
    labels, report = predict_long_organ(np.maximum(rows_of(1, 22), rows_of(38, 59)))
    np.testing.assert_array_equal(labels, long_organ())
    assert report["organs"] == {"Pituitary": "region+3d"}
    seen = {"model": "3d", "region_voxels": 480, "model_voxels": 24 * 42}
    assert report["disagreements"] == {"Pituitary": seen}


PAIR = Region.model_validate({**FIXED.model_dump(by_alias=True), "organs": ["Pituitary", "Lens"], "fallback": []})


def predict_pair(seen: np.ndarray, image: np.ndarray, whole_image: bool = True):
    """Lens 7 in what the model sees, 2 in the image."""
    model = LocatorMap("2d", seen, {"Pituitary": 3, "Lens": 7}, whole_image)
    labels, report = predict(PAIR, model, image=image.astype(np.float32))
    return labels, report["both"], region_warnings("small", report["both"])


def long_organ_and_lens() -> np.ndarray:
    image = long_organ()
    image[13:15, 27:30, 25:28] = 2
    return image


@pytest.mark.parametrize("whole_image", [True, False])
def test_an_organ_is_not_called_cut_off_because_another_one_is(whole_image: bool):
    _, report, warnings = predict_pair(truth() * np.uint8(3), long_organ_and_lens(), whole_image)
    assert report["touches_border"] == ["Pituitary"]
    assert report["organs"]["Lens"] == "region"
    assert sum("touches its border" in line for line in warnings) == 1
    assert not any("Lens" in line for line in warnings)


def test_an_organ_that_is_missing_beside_one_that_is_cut_off_is_said_not_to_be_there():
    seen = truth() * np.uint8(3)
    seen[14, 40:43, 30:36] = 7
    labels, report, warnings = predict_pair(seen, long_organ())
    assert report["organs"]["Lens"] == "2d"
    assert np.count_nonzero(labels == 2) == 18
    assert "region of small: Lens is not in it; its contour is that of the whole-image model 2d" in warnings


def test_what_a_whole_image_model_adds_takes_nothing_from_another_organ():
    image = long_organ()
    image[13:17, 20:40, 24:30] = 2  # the lens beside the pituitary
    seen = np.zeros(SHAPE, np.uint8)
    seen[13:17, 20:40, 24:35] = 3
    labels, report, _ = predict_pair(seen, image)
    np.testing.assert_array_equal(labels[:, 20:40] == 2, image[:, 20:40] == 2)
    assert report["organs"]["Pituitary"] == "2d"
    assert np.count_nonzero(labels == 1) == 4 * 20 * 5


def test_an_organ_that_no_region_shows_comes_from_the_whole_image_model():
    labels, report = predict(region(), found(truth()), network=lambda parts: np.zeros(parts.shape[1:], np.uint8))
    np.testing.assert_array_equal(labels, truth())
    assert report["both"]["organs"] == {"Pituitary": "2d"}


def test_a_refused_localiser_gives_no_contour_either():
    seen = found(shifted(x=-28, y=24, z=10))
    nothing = lambda parts: np.zeros(parts.shape[1:], np.uint8)  # noqa: E731
    labels, report = predict(region(plausible_mm=40.0), seen, network=nothing)
    assert not labels.any()
    assert report["both"]["organs"] == {"Pituitary": "missing"}
    assert "neither there nor at a plausible place elsewhere" in " ".join(region_warnings("small", report["both"]))


@pytest.mark.parametrize("wide", [1, 4])
def test_a_thin_nerve_that_runs_out_of_its_region_makes_it_grow(wide):
    nerve = np.zeros(SHAPE, np.uint8)
    nerve[14:15, 15:45, 33 : 33 + wide] = 1
    labels, report = predict(region(), found(shifted()), image=nerve.astype(np.float32))
    np.testing.assert_array_equal(labels, nerve)
    assert report["both"]["grown"] >= 1


def test_growing_can_be_switched_off():
    _, report = predict(region(grow_at_most=0), found(shifted(y=12)))
    assert report["both"]["grown"] == 0
    assert report["both"]["touches_border"]


# --- an organ outside the field of view ------------------------------------------------------------------------------

ABOVE = Landmark((150.0, 0.0, 0.0), 1.0)
"""The organ lies 15 cm above the brain stem, which the drawn image (9 cm) does not reach."""


def test_a_landmark_place_outside_the_image_is_passed_over():
    learned = {"both": Learned(Prior((0.5, 0.5, 0.5), 2.0, {"Brainstem": ABOVE}, 2.0), (10.0,) * 3, (24.0,) * 3)}
    labels, report = predict(region(), found(np.zeros(SHAPE, np.uint8)), learned=learned)
    np.testing.assert_array_equal(labels, truth())
    assert report["both"]["rung"] == "fallback:body"
    assert report["both"]["refused"]["fallback:landmark"] == "the region there lies outside the image"


def test_an_organ_of_which_no_place_lies_in_the_image_is_missing_and_said_why():
    learned = {"both": Learned(Prior((4.0, 0.5, 0.5), 2.0, {"Brainstem": ABOVE}, 2.0), (10.0,) * 3, (24.0,) * 3)}
    labels, report = predict(region(), found(np.zeros(SHAPE, np.uint8)), learned=learned)
    assert not labels.any()
    assert report["both"]["organs"] == {"Pituitary": "missing"}
    (warning,) = region_warnings("small", report["both"])
    assert warning.startswith("region of small: Pituitary was not looked for, located: found nothing")
    assert "fallback:body: the region there lies outside the image" in warning


# --- forms of a region -----------------------------------------------------------------------------------------------


def test_a_region_with_margins_is_as_large_as_the_organ():
    labels, report = predict(region(margin_mm="auto"), found(truth()))
    np.testing.assert_array_equal(labels, truth())
    assert (report["both"]["start"], report["both"]["stop"]) == ([9, 15, 18], [21, 45, 50])


def test_one_network_for_both_sides_sees_the_right_one_mirrored():
    image = np.zeros(SHAPE, np.float32)
    left, right = np.s_[10:14, 20:28, 50:58], np.s_[10:14, 20:28, 10:18]
    image[left] = image[right] = np.linspace(1.0, 1.4, 8)  # rounds to 1 and tells left from right
    seen = np.zeros(SHAPE, np.uint8)
    seen[left], seen[right] = 1, 2
    views = []

    def network(parts):
        views.append(parts[0].copy())
        return np.rint(np.maximum(parts[0], 0)).astype(np.uint8)

    pair = Region.model_validate(
        {"organs": ["Lens_L", "Lens_R"], "from": "3d", "size_mm": [24, 20, 22], "flip_right": True}
    )
    far = Prior((0.5, 0.5, 0.5), 200.0)
    learned = {side: Learned(far, (0.0, 0.0, 0.0), (24.0, 20.0, 22.0)) for side in ("left", "right")}
    labels, report = predict(
        pair, LocatorMap("3d", seen, {"Lens_L": 1, "Lens_R": 2}, True), image=image, learned=learned, network=network
    )
    np.testing.assert_array_equal(labels, seen)
    assert sorted(report) == ["left", "right"]
    rows = [view[view > 0.5].reshape(-1, 8)[0] for view in views]
    np.testing.assert_allclose(rows[0], np.linspace(1.0, 1.4, 8), rtol=1e-6)
    np.testing.assert_allclose(rows[1], np.linspace(1.4, 1.0, 8), rtol=1e-6)


def test_a_centre_at_the_first_voxel_is_padded_and_not_shifted():
    image = np.zeros(SHAPE, np.float32)
    image[0:2, 0:4, 0:4] = 1
    seen = np.zeros(SHAPE, np.uint8)
    seen[0:2, 0:4, 0:4] = 1
    views = []

    def network(parts):
        views.append(parts[0])
        return np.maximum(parts[0], 0).astype(np.uint8)

    far = {"both": Learned(Prior((0.5, 0.5, 0.5), 200.0), (0.0, 0.0, 0.0), (24.0, 20.0, 22.0))}
    labels, report = predict(region(), found(seen), image=image, learned=far, network=network)
    np.testing.assert_array_equal(labels, seen)
    assert report["both"]["start"] == [-3, -8, -9]
    assert views[0].shape == (8, 20, 22)
    assert (views[0][:3] == -1024).all()
    assert not report["both"]["touches_border"]  # the image ends there: nothing is cut off
