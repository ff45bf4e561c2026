from __future__ import annotations

import numpy as np
import pytest

from nnunet_ext.evaluation.deviation import deviation, judged_prediction

SPACING_MM = (2.0, 1.0, 1.0)


def ball(radius_mm: float, centre: tuple[float, float, float] = (20, 40, 40)) -> np.ndarray:
    z, y, x = np.indices((40, 80, 80))
    away = [(a - c) * mm for a, c, mm in zip((z, y, x), centre, SPACING_MM, strict=True)]
    return np.sqrt(sum(a**2 for a in away)) <= radius_mm


@pytest.mark.parametrize("radius_mm", [8, 12, 16])
@pytest.mark.parametrize("by_mm", [2, 4])
def test_an_even_difference_is_larger_or_smaller_and_measured_in_mm(radius_mm, by_mm):
    large, small = ball(radius_mm + by_mm), ball(radius_mm)
    outer, inner = deviation(large, small, SPACING_MM), deviation(small, large, SPACING_MM)
    assert (outer.kind, inner.kind) == ("larger", "smaller")
    assert outer.assd_mm == pytest.approx(by_mm, rel=0.25)
    assert outer.signed_mm == pytest.approx(by_mm, rel=0.25)
    assert inner.signed_mm == pytest.approx(-outer.signed_mm)


@pytest.mark.parametrize("shift", [(3, 0, 0), (0, -6, 0), (2, 4, 4)])
def test_a_moved_contour_is_shifted_by_what_it_was_moved(shift):
    moved = ball(12, tuple(c + s for c, s in zip((20, 40, 40), shift, strict=True)))
    found = deviation(moved, ball(12), SPACING_MM)
    assert found.kind == "shifted"
    assert found.shift_mm == pytest.approx(np.multiply(shift, SPACING_MM), abs=0.3)
    assert abs(found.signed_mm) < 0.3


def test_a_part_that_was_not_drawn_is_missing_and_one_too_many_is_extra():
    whole = ball(14)
    cut = whole.copy()
    cut[23:] = False
    missing, extra = deviation(cut, whole, SPACING_MM), deviation(whole, cut, SPACING_MM)
    assert (missing.kind, extra.kind) == ("missing part", "extra part")
    assert missing.signed_mm < 0 < extra.signed_mm


@pytest.mark.parametrize("slices", [2, 4])
def test_a_few_slices_that_nobody_drew_are_a_missing_part(slices):
    block = np.zeros((16, 40, 40), bool)
    block[3:13, 10:30, 10:30] = True
    cut = block.copy()
    cut[13 - slices : 13] = False
    assert deviation(cut, block, (3.0, 1.0, 1.0)).kind == "missing part"
    assert deviation(block, cut, (3.0, 1.0, 1.0)).kind == "extra part"


class TestPartsOfThePrediction:
    def test_specks_far_away_say_nothing_about_the_contour(self):
        wide, specked = ball(14), ball(10)
        specked[2:5, 2:12, 2:12] = True
        assert deviation(wide, specked, SPACING_MM) == deviation(wide, ball(10), SPACING_MM)

    def test_a_contour_in_the_wrong_place_is_shifted_even_where_a_speck_touches_it(self):
        drawn, found = ball(10, (20, 25, 25)), ball(10, (20, 60, 60))
        found[20, 25, 25] = True
        away = deviation(drawn, found, SPACING_MM)
        assert away.assd_mm > 20
        assert np.linalg.norm(away.shift_mm) == pytest.approx(49.5, abs=1)

    def test_what_touches_the_contour_and_fits_is_the_organ_however_large_a_part_elsewhere_is(self):
        """A model that sees a second parotid in the shoulder."""
        drawn, fitting = ball(9, (12, 25, 25)), ball(7, (12, 25, 25))
        found = fitting | ball(12, (26, 55, 55))
        assert 2 * (drawn & fitting).sum() / (drawn.sum() + fitting.sum()) > 0.5
        assert deviation(drawn, found, SPACING_MM) == deviation(drawn, fitting, SPACING_MM)

    def test_what_a_contour_is_judged_by_lies_where_it_was_predicted(self):
        specked = ball(10)
        specked[2:5, 2:12, 2:12] = True
        assert np.array_equal(judged_prediction(ball(14), specked), ball(10))
        assert np.array_equal(judged_prediction(np.zeros_like(specked), specked), ball(10))
        assert not judged_prediction(ball(14), np.zeros_like(specked)).any()

    def test_two_halves_that_both_touch_count_both(self):
        found = ball(12)
        found[20] = False
        assert deviation(ball(12), found, SPACING_MM).dsc == pytest.approx(
            2 * found.sum() / (found.sum() + ball(12).sum())
        )


class TestFlatPictures:
    """One slice, whose thickness is a convention."""

    @staticmethod
    def disc(radius: float, centre: tuple[float, float] = (60, 60)) -> np.ndarray:
        y, x = np.indices((120, 120))
        return (np.hypot(y - centre[0], x - centre[1]) <= radius)[None]

    @pytest.mark.parametrize("radius", [10, 20, 40])
    @pytest.mark.parametrize("thickness_mm", [1.0, 10.0])
    def test_a_wider_outline_is_measured_in_its_plane(self, radius, thickness_mm):
        found = deviation(self.disc(radius + 3), self.disc(radius), (thickness_mm, 0.5, 0.5))
        assert found.kind == "larger"
        assert found.assd_mm == pytest.approx(1.5, rel=0.15)

    def test_half_an_outline_is_a_missing_part(self):
        half = self.disc(20)
        half[:, 62:] = False
        assert deviation(half, self.disc(20), (10.0, 1.0, 1.0)).kind == "missing part"

    def test_a_moved_outline_is_shifted(self):
        found = deviation(self.disc(20, (60, 68)), self.disc(20), (10.0, 0.5, 0.5))
        assert found.kind == "shifted"
        assert found.shift_mm == pytest.approx((0, 0, 4))

    def test_a_lost_outline_costs_its_radius(self):
        lost = deviation(np.zeros((1, 120, 120), bool), self.disc(20), (10.0, 0.5, 0.5))
        assert lost.assd_mm == pytest.approx(10, rel=0.05)


class TestMissingSlices:
    """Masks by the voxels of each slice; a full one has 16."""

    @staticmethod
    def stack(*sizes: int) -> np.ndarray:
        """Slices with so many voxels each."""
        mask = np.zeros((len(sizes), 4, 4), bool)
        for z, size in enumerate(sizes):
            mask[z].flat[:size] = True
        return mask

    def share(self, contour: tuple[int, ...], prediction: tuple[int, ...]) -> float:
        return deviation(self.stack(*contour), self.stack(*prediction), (3.0, 1.0, 1.0)).missing_slices

    @pytest.mark.parametrize("contour", [(0, 16, 16, 16), (16, 16, 16, 0), (16, 0, 16, 16)])
    def test_a_slice_that_nobody_drew_counts_as_its_share_of_the_organ(self, contour):
        assert self.share(contour, (16, 16, 16, 16)) == 0.25

    def test_beyond_a_contour_that_tapers_off_it_counts_less(self):
        agreement = 2 * (16 + 16 + 4) / (16 + 16 + 4 + 48)
        assert self.share((16, 16, 4, 0), (16, 16, 16, 16)) == pytest.approx(agreement * 0.25 * 4 / 16)

    def test_it_counts_less_where_the_model_is_wrong_in_the_slices_that_were_drawn(self):
        assert self.share((8, 8, 8, 0), (16, 16, 16, 16)) == pytest.approx(2 * 24 / (24 + 48) * 0.25)

    def test_a_contour_that_reaches_as_far_as_the_prediction_misses_nothing(self):
        assert self.share((16, 16, 16, 16), (0, 8, 8, 0)) == 0
        assert self.share((4, 4, 4, 4), (16, 16, 16, 16)) == 0

    def test_nothing_is_missing_where_one_of_the_two_is_empty_or_flat(self):
        assert self.share((0, 0, 0), (16, 16, 16)) == self.share((16, 16), (0, 0)) == 0
        half = np.ones((1, 8, 8), bool)
        half[:, 4:] = False
        for head_foot in (0, 1):
            assert deviation(half, np.ones((1, 8, 8), bool), (1.0, 1.0, 1.0), head_foot).missing_slices == 0

    @pytest.mark.parametrize("order", [(1, 0, 2), (1, 2, 0), (2, 1, 0)])
    def test_the_order_in_which_voxels_are_stored_changes_nothing(self, order):
        whole = np.zeros((16, 40, 40), bool)
        whole[3:13, 10:30, 8:30] = True
        cut = whole.copy()
        cut[11:] = False
        before = deviation(cut, whole, SPACING_MM)
        assert (before.kind, before.missing_slices) == ("missing part", pytest.approx(0.2))
        stored = (mask.transpose(order) for mask in (cut, whole))
        after = deviation(*stored, [SPACING_MM[axis] for axis in order], order.index(0))
        assert after.shift_mm == pytest.approx([before.shift_mm[axis] for axis in order])
        assert (after.kind, after.dsc, after.missing_slices) == (before.kind, before.dsc, before.missing_slices)
        assert (after.assd_mm, after.signed_mm) == pytest.approx((before.assd_mm, before.signed_mm))


def test_an_empty_mask_costs_as_much_as_the_organ_is_large():
    none = np.zeros((40, 80, 80), bool)
    lost, invented = deviation(none, ball(10), SPACING_MM), deviation(ball(10), none, SPACING_MM)
    assert (lost.kind, invented.kind) == ("no contour", "no prediction")
    assert lost.assd_mm == pytest.approx(10, rel=0.05)
    assert lost.signed_mm == -lost.assd_mm
    assert invented.signed_mm == invented.assd_mm
    assert lost.dsc == 0
    assert deviation(none, none, SPACING_MM) is None


def test_equal_masks_do_not_deviate():
    found = deviation(ball(9), ball(9), SPACING_MM)
    assert (found.kind, found.assd_mm, found.dsc) == ("other", 0.0, 1.0)


def test_ragged_edges_on_both_sides_are_nothing_of_the_kind():
    rng = np.random.default_rng(0)
    rim = ball(13) & ~ball(11)
    ragged = ball(11) | (rim & (rng.random(rim.shape) < 0.5))
    assert deviation(ragged, ball(12), SPACING_MM).kind == "other"
    assert deviation(ragged, ball(12), SPACING_MM).assd_mm < 1.5


def test_an_organ_at_the_border_of_the_image_is_no_fault():
    at_edge = ball(12, (2, 3, 40))
    assert deviation(at_edge, at_edge, SPACING_MM).assd_mm == 0
    assert deviation(np.roll(at_edge, 6, axis=2), at_edge, SPACING_MM).kind == "shifted"


def test_masks_of_different_shape_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        deviation(np.ones((2, 2, 2), bool), np.ones((2, 2, 3), bool), SPACING_MM)
