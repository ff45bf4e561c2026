from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from nnunet_ext.evaluation.metrics import OrganScore, inner_labels, score_case

SPACING = (3.0, 1.0, 1.0)


def cube(shape: tuple[int, int, int], start: tuple[int, int, int], size: tuple[int, int, int]) -> NDArray[np.uint8]:
    labels = np.zeros(shape, dtype=np.uint8)
    labels[tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))] = 1
    return labels


def sphere(shape: tuple[int, int, int], centre_mm: tuple[float, float, float], radius_mm: float) -> NDArray[np.bool_]:
    z, y, x = np.ogrid[tuple(slice(n) for n in shape)]
    cz, cy, cx = centre_mm
    return (3 * z - cz) ** 2 + (y - cy) ** 2 + (x - cx) ** 2 <= radius_mm**2


def score(prediction: NDArray[np.integer], reference: NDArray[np.integer], **options: object) -> OrganScore:
    return score_case(prediction, reference, {"organ": 1}, SPACING, **options)[0]


def brute_force(prediction: NDArray[np.bool_], reference: NDArray[np.bool_]) -> tuple[float, float, float, float]:
    """DSC, HD95, ASSD, RVE by scipy's erosion and distance transform over the whole volume."""
    surfaces, maps = [], []
    for mask in (prediction, reference):
        surface = mask & ~ndimage.binary_erosion(mask)
        surfaces.append(surface)
        maps.append(ndimage.distance_transform_edt(~surface, sampling=SPACING))
    there, back = maps[1][surfaces[0]], maps[0][surfaces[1]]
    return (
        2 * np.sum(prediction & reference) / (prediction.sum() + reference.sum()),
        max(np.percentile(there, 95), np.percentile(back, 95)),
        float(np.concatenate([there, back]).mean()),
        (prediction.sum() - reference.sum()) / reference.sum(),
    )


def test_equal_cubes_score_perfectly() -> None:
    labels = cube((10, 12, 14), (2, 3, 4), (4, 5, 6))
    assert score(labels, labels) == OrganScore(1, "organ", "scored", 1.0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize(("shift", "distance_mm"), [((1, 0, 0), 3.0), ((0, 2, 0), 2.0), ((0, 0, 3), 3.0)])
def test_shifted_plates_are_as_far_apart_as_their_shift_in_mm(shift: tuple[int, int, int], distance_mm: float) -> None:
    # plates one voxel thick across the shift and over the whole image along the others: all are surface
    axis = int(np.argmax(shift))
    size = tuple(1 if a == axis else 12 for a in range(3))
    start = tuple(3 if a == axis else 0 for a in range(3))
    moved = tuple(s + d for s, d in zip(start, shift, strict=True))
    result = score(cube((12, 12, 12), start, size), cube((12, 12, 12), moved, size))
    assert (result.dsc, result.hd95_mm, result.assd_mm, result.rve) == (0.0, distance_mm, distance_mm, 0.0)
    assert result.status == "scored"


def test_overlap_of_cubes_is_analytic() -> None:
    result = score(cube((8, 20, 20), (1, 2, 2), (4, 10, 10)), cube((8, 20, 20), (1, 2, 7), (4, 10, 10)))
    assert result.dsc == 2 * 200 / 800


def test_concentric_spheres_differ_by_their_radii() -> None:
    shape, centre = (40, 100, 100), (60.0, 50.0, 50.0)
    result = score(sphere(shape, centre, 40).astype(np.uint8), sphere(shape, centre, 30).astype(np.uint8))
    assert result.dsc == pytest.approx(2 * 30**3 / (40**3 + 30**3), abs=0.01)
    assert result.rve == pytest.approx((40**3 - 30**3) / 30**3, abs=0.03)
    assert result.assd_mm == pytest.approx(10, abs=1)
    assert result.hd95_mm == pytest.approx(10, abs=1.5)


def test_hd95_and_assd_do_not_depend_on_which_map_is_the_reference() -> None:
    rng = np.random.default_rng(0)
    a, b = (ndimage.gaussian_filter(rng.normal(size=(12, 30, 30)), 2) > 0.05 for _ in range(2))
    there, back = score(a.astype(np.uint8), b.astype(np.uint8)), score(b.astype(np.uint8), a.astype(np.uint8))
    assert there.hd95_mm == back.hd95_mm
    assert there.assd_mm == pytest.approx(back.assd_mm, rel=1e-12)
    assert there.dsc == back.dsc


def test_rve_is_signed() -> None:
    large, small = cube((6, 12, 12), (1, 1, 1), (4, 8, 8)), cube((6, 12, 12), (1, 1, 1), (2, 8, 8))
    assert score(small, large).rve == -0.5
    assert score(large, small).rve == 1.0


def test_every_empty_case_is_decided_for_every_metric() -> None:
    full, empty = cube((6, 8, 8), (1, 1, 1), (2, 3, 3)), np.zeros((6, 8, 8), dtype=np.uint8)
    missed, spurious, both = score(empty, full), score(full, empty), score(empty, empty)
    absent = score(full, empty, contoured=[2])
    assert [s.status for s in (missed, spurious, both, absent)] == [
        "missed",
        "spurious",
        "both_empty",
        "not_contoured",
    ]
    assert (missed.dsc, spurious.dsc) == (0.0, 0.0)
    assert (missed.rve, math.isnan(spurious.rve)) == (-1.0, True)
    for result in (missed, spurious, both, absent):
        assert math.isnan(result.hd95_mm)
        assert math.isnan(result.assd_mm)
    for result in (both, absent):
        assert math.isnan(result.dsc)
        assert math.isnan(result.rve)


def test_disjoint_organs_are_scored_with_dsc_zero_and_a_distance() -> None:
    result = score(cube((6, 20, 20), (1, 1, 1), (1, 1, 1)), cube((6, 20, 20), (1, 1, 11), (1, 1, 1)))
    assert (result.status, result.dsc, result.hd95_mm, result.assd_mm) == ("scored", 0.0, 10.0, 10.0)


def test_all_metrics_agree_with_a_brute_force_computation_for_many_touching_organs() -> None:
    rng = np.random.default_rng(1)
    fields = [[ndimage.gaussian_filter(rng.normal(size=(14, 40, 40)), 3) for _ in range(5)] for _ in range(2)]
    fields[0] = [0.5 * a + b for a, b in zip(fields[0], fields[1], strict=True)]
    prediction, reference = (np.argmax(field, axis=0).astype(np.uint8) for field in fields)
    for result in score_case(prediction, reference, {str(label): label for label in range(1, 5)}, SPACING):
        expected = brute_force(prediction == result.label, reference == result.label)
        assert (result.dsc, result.hd95_mm, result.assd_mm, result.rve) == pytest.approx(expected, abs=1e-9)


def test_an_organ_touching_the_border_has_surface_there() -> None:
    prediction, reference = (
        cube((6, 12, 12), (0, 0, 0), (6, 12, 6)),
        cube((6, 12, 12), (0, 0, 0), (6, 12, 12)),
    )
    result = score(prediction, reference)
    expected = brute_force(prediction == 1, reference == 1)
    assert (result.dsc, result.hd95_mm, result.assd_mm, result.rve) == pytest.approx(expected)


def test_a_far_outlier_of_72_voxels_moves_hd95_by_the_documented_maximum_of_directions() -> None:
    reference = np.zeros((40, 120, 120), dtype=np.uint8)
    reference[10:18, 20:32, 20:32] = 1
    prediction = reference.copy()
    prediction[30:32, 100:106, 100:106] = 1
    assert np.count_nonzero(prediction != reference) == 72
    result = score(prediction, reference)
    expected = brute_force(prediction == 1, reference == 1)
    assert (result.hd95_mm, result.assd_mm) == pytest.approx(expected[1:3])
    assert result.hd95_mm > 80  # the union of both directions would hide it


def test_without_distances_only_overlaps_are_computed() -> None:
    result = score(cube((6, 8, 8), (1, 1, 1), (2, 3, 3)), cube((6, 8, 8), (1, 1, 2), (2, 3, 3)), distances=False)
    assert result.dsc == pytest.approx(2 / 3)
    assert math.isnan(result.hd95_mm)


def test_a_region_is_judged_as_the_union_of_its_labels() -> None:
    reference = cube((6, 12, 12), (1, 1, 1), (4, 4, 8))
    reference[:, :, 5:][reference[:, :, 5:] == 1] = 2
    prediction = np.where(reference > 0, 3 - reference, 0).astype(np.uint8)
    whole, part = score_case(prediction, reference, {"whole": (1, 2), "part": 2}, SPACING)
    assert (whole.dsc, whole.hd95_mm, whole.status) == (1.0, 0.0, "scored")
    assert part.dsc == 0.0
    assert score_case(prediction, reference, {"whole": (1, 2)}, SPACING, contoured=[1])[0].status == "not_contoured"


def test_ignored_reference_voxels_do_not_count() -> None:
    reference = cube((6, 12, 12), (1, 1, 1), (2, 4, 4))
    prediction = reference.copy()
    prediction[1:3, 1:5, 5:9] = 1
    reference[:, :, 5:] = 9
    assert score(prediction, reference, ignore=9).dsc == 1.0


def test_labels_beyond_255_are_judged() -> None:
    reference = cube((6, 12, 12), (1, 1, 1), (2, 4, 4)).astype(np.uint16) * 1000
    assert score_case(reference, reference, {"organ": 1000}, SPACING)[0].dsc == 1.0


def test_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(6, 8, 8\) and reference \(6, 8, 9\)"):
        score(np.zeros((6, 8, 8), dtype=np.uint8), np.zeros((6, 8, 9), dtype=np.uint8))


def test_negative_labels_are_refused() -> None:
    labels = np.zeros((6, 8, 8), dtype=np.int16)
    labels[1, 1, 1], labels[2, 2, 2] = -1, 1
    with pytest.raises(ValueError, match="from -1 to 1"):
        score(labels, labels)


EYE_AND_LENS = {"Eye_L": 1, "Lens_L": 3}


def eye_with_lens(lens_x: int | None) -> NDArray[np.uint8]:
    """A row of six eye voxels, x 2 to 7, with the one at ``lens_x`` drawn as lens."""
    labels = np.zeros((3, 3, 12), dtype=np.uint8)
    labels[1, 1, 2:8] = 1
    if lens_x is not None:
        labels[1, 1, lens_x] = 3
    return labels


def test_an_eye_is_judged_together_with_the_lens_inside_it() -> None:
    inside = inner_labels({"Eye_L": ["Lens_L"]}, EYE_AND_LENS)
    prediction, reference = eye_with_lens(2), eye_with_lens(7)
    # alone: 5 voxels each, x 3-7 and 2-6, 4 in common; surfaces 1 mm apart at both ends
    alone = score_case(prediction, reference, EYE_AND_LENS, SPACING)
    assert (alone[0].dsc, alone[0].assd_mm) == (0.8, 0.2)
    eye, lens = score_case(prediction, reference, EYE_AND_LENS, SPACING, inside=inside)
    assert eye == OrganScore(1, "Eye_L", "scored", 1.0, 0.0, 0.0, 0.0)
    assert lens == OrganScore(3, "Lens_L", "scored", 0.0, 5.0, 5.0, 0.0)  # x 2 against x 7


def test_a_lens_that_was_not_predicted_is_missing_in_the_eye_as_well() -> None:
    inside = inner_labels({"Eye_L": ["Lens_L"]}, EYE_AND_LENS)
    prediction = eye_with_lens(7)
    prediction[prediction == 3] = 0
    eye, lens = score_case(prediction, eye_with_lens(7), EYE_AND_LENS, SPACING, inside=inside)
    assert (eye.dsc, eye.rve) == (2 * 5 / 11, -1 / 6)
    assert eye.assd_mm == pytest.approx(1 / 11)  # one of 6 + 5 surface voxels is 1 mm from the other surface
    assert lens.status == "missed"


def test_an_eye_counts_as_drawn_where_nobody_drew_its_lens_and_not_the_other_way_round() -> None:
    inside = inner_labels({"Eye_L": ["Lens_L"]}, EYE_AND_LENS)
    drawn = eye_with_lens(None)  # nobody cut the lens out of this eye
    only_eye = score_case(eye_with_lens(4), drawn, EYE_AND_LENS, SPACING, contoured=[1], inside=inside)
    assert (only_eye[0].status, only_eye[0].dsc) == ("scored", 1.0)
    assert only_eye[1].status == "not_contoured"
    only_lens = score_case(eye_with_lens(4), eye_with_lens(4), EYE_AND_LENS, SPACING, contoured=[3], inside=inside)
    assert [row.status for row in only_lens] == ["not_contoured", "scored"]


def test_a_lens_counts_inside_its_eye_even_where_only_eyes_are_asked_for() -> None:
    inside = inner_labels({"Eye_L": ["Lens_L"]}, EYE_AND_LENS)
    (eye,) = score_case(eye_with_lens(2), eye_with_lens(7), {"Eye_L": 1}, SPACING, inside=inside)
    assert (eye.dsc, eye.hd95_mm) == (1.0, 0.0)


def test_inner_organs_without_a_label_are_left_out_and_regions_give_all_their_labels() -> None:
    contains = {"Head": ["Eyes", "Nose"]}
    assert inner_labels(contains, {"Head": 1, "Eyes": (2, 3)}) == {"Head": (2, 3)}
