"""The mean distance of two boundaries: the same for small and large organs, where the usual losses are not."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from nnunet_ext.losses.displacement import boundary_displacement, gradient_magnitude, overlap_sums
from nnunet_ext.losses.per_sample import binary_cross_entropy_per_sample, dice_loss_per_sample

SIZE = {2: 64, 3: 56}


def ball(radius: int, dim: int = 2) -> NDArray[np.bool_]:
    grid = np.indices((SIZE[dim],) * dim) - SIZE[dim] // 2
    return np.asarray((grid**2).sum(0) <= radius**2)


def moved(mask: NDArray[np.bool_], distance: int) -> NDArray[np.bool_]:
    """The mask dilated by a distance, eroded by a negative one."""
    return np.asarray(
        distance_transform_edt(~mask) <= distance if distance > 0 else distance_transform_edt(mask) > -distance
    )


def as_maps(mask: NDArray[np.bool_]) -> torch.Tensor:
    return torch.from_numpy(mask.astype(np.float32))[None, None]


def displacement(p: NDArray[np.bool_], y: NDArray[np.bool_], spacing_mm: tuple[float, ...] | None = None) -> float:
    spacing_mm = spacing_mm or (1.0,) * p.ndim
    return boundary_displacement(as_maps(p), as_maps(y) > 0, spacing_mm).item()


def eroded_to_dilated(cost, radius: int, n: int, dim: int = 2) -> float:
    organ = ball(radius, dim)
    return float(cost(organ, moved(organ, -n)) / cost(organ, moved(organ, n)))


class TestSizeNeutral:
    @pytest.mark.parametrize("n", [1, 3, 5])
    @pytest.mark.parametrize("radius", [8, 20])
    @pytest.mark.parametrize("dim", [2, 3])
    def test_erosion_costs_what_dilation_costs(self, radius, n, dim):
        assert 0.85 <= eroded_to_dilated(displacement, radius, n, dim) <= 1.2

    @pytest.mark.parametrize("n", [1, 3, 5, -1, -3, -5])
    @pytest.mark.parametrize("radius", [8, 20])
    def test_a_disc_moved_by_n_costs_n(self, radius, n):
        organ = ball(radius)
        assert displacement(organ, moved(organ, n)) == pytest.approx(abs(n), rel=0.2)

    @pytest.mark.parametrize(
        "cost",
        [
            lambda p, y: binary_cross_entropy_per_sample((0.1 + 0.8 * as_maps(p)).logit(), as_maps(y) > 0, None).item(),
            lambda p, y: 1 + dice_loss_per_sample(as_maps(p), as_maps(y) > 0).item(),
        ],
        ids=["BCE", "Dice"],
    )
    def test_cross_entropy_and_dice_fail_the_same_check(self, cost):
        """Why the training loss is no driver."""
        ratios = [eroded_to_dilated(cost, radius, n) for radius in (8, 20) for n in (1, 3, 5)]
        assert not all(0.85 <= ratio <= 1.2 for ratio in ratios)

    def test_an_erased_bar_costs_its_thickness_and_not_its_area(self):
        bar = np.zeros((64, 64), bool)
        bar[26:38, 8:56] = True
        for p, y in ((bar, ~bar & bar), (~bar & bar, bar)):
            assert 5 <= displacement(p, y) <= 12


class TestUnits:
    @pytest.mark.parametrize("spacing_mm", [0.5, 3.0])
    def test_is_in_mm(self, spacing_mm):
        organ = ball(8)
        near = displacement(organ, moved(organ, 3))
        assert displacement(organ, moved(organ, 3), (spacing_mm,) * 2) == pytest.approx(spacing_mm * near, rel=1e-5)

    def test_thick_slices_count_by_their_thickness(self):
        slab = np.zeros((20, 30, 30), bool)
        slab[6:14] = True
        thicker = np.zeros_like(slab)
        thicker[5:15] = True
        assert displacement(slab, thicker, (3.0, 1.0, 1.0)) == pytest.approx(3, rel=0.05)

    @pytest.mark.parametrize("degrees", [0, 45, -45])
    def test_a_boundary_is_as_long_in_every_direction(self, degrees):
        y, x = np.indices((64, 64)) - 31.5
        angle = math.radians(degrees)
        half = np.cos(angle) * y + np.sin(angle) * x > 0
        inner = gradient_magnitude(as_maps(half)[0], (1, 1))[0, 16:48, 16:48].sum().item()
        assert inner == pytest.approx(32 / math.cos(angle), rel=0.07)


class TestWhatCounts:
    def test_an_organ_that_is_in_neither_has_none(self):
        nothing = np.zeros((8, 8), bool)
        assert math.isnan(displacement(nothing, nothing))

    def test_a_faint_probability_is_no_organ(self):
        faint = torch.full((1, 1, 8, 8), 0.3)
        assert boundary_displacement(faint, faint > 1, (1, 1)).isnan().all()

    def test_samples_and_organs_are_apart(self):
        organ, wider = ball(8), moved(ball(8), 3)
        p = torch.cat([torch.cat([as_maps(organ), as_maps(organ)], 1), torch.zeros(1, 2, 64, 64)])
        y = torch.cat([torch.cat([as_maps(wider), as_maps(organ)], 1), torch.zeros(1, 2, 64, 64)]) > 0
        found = boundary_displacement(p, y, (1, 1))
        assert found[0].tolist() == pytest.approx([displacement(organ, wider), 0])
        assert found[1].isnan().all()

    def test_what_is_to_be_ignored_does_not(self):
        organ, wider = ball(8), moved(ball(8), 3)
        valid = torch.ones(1, 1, 64, 64, dtype=torch.bool)
        valid[..., 32:] = False
        spoiled = wider.copy()
        spoiled[:, 40:] = True
        same = [boundary_displacement(as_maps(organ), as_maps(y) > 0, (1, 1), valid).item() for y in (wider, spoiled)]
        assert same[0] == same[1] == pytest.approx(3, rel=0.2)

    def test_a_flat_patch_has_no_boundary_across(self):
        organ = as_maps(ball(8))[:, :, None]
        found = boundary_displacement(organ, as_maps(moved(ball(8), 3))[:, :, None] > 0, (1, 1, 1))
        assert found.item() == pytest.approx(displacement(ball(8), moved(ball(8), 3)), rel=1e-5)

    def test_no_gradient_and_single_precision_from_half(self):
        p = as_maps(ball(8)).half().requires_grad_()
        found = boundary_displacement(p, as_maps(moved(ball(8), 3)) > 0, (1, 1))
        assert found.dtype == torch.float32
        assert not found.requires_grad


def test_sums_make_a_soft_dice():
    p, y = torch.tensor([[[[0.5, 1.0, 0.0]]]]), torch.tensor([[[[True, True, False]]]])
    assert [s.item() for s in overlap_sums(p, y)] == [1.5, 1.5, 2.0]
    valid = torch.tensor([[[[True, False, True]]]])
    assert [s.item() for s in overlap_sums(p, y, valid)] == [0.5, 0.5, 1.0]
