"""Which organs count in a driver, and for how much."""

from __future__ import annotations

import pytest
import torch

from nnunet_ext.losses.readiness import Readiness, excess_of

NAN = float("nan")


def column(*values: float) -> torch.Tensor:
    """One sample, an entry per organ."""
    return torch.tensor([values], dtype=torch.float64)


def after(dices: list[float], displacements: list[float], batches: int = 1) -> Readiness:
    """Readiness after batches in which the organs have these soft Dices and displacements."""
    readiness = Readiness(len(dices))
    size = torch.full((1, len(dices)), 100.0, dtype=torch.float64)
    for _ in range(batches):
        readiness.update(column(*displacements), size * torch.tensor(dices), size, size)
    return readiness


def drive(readiness: Readiness, displacement: torch.Tensor, labelled: torch.Tensor) -> torch.Tensor:
    """The driver of contours whose predictions are as large, where anybody drew them."""
    return readiness.driver(displacement, labelled / 2, labelled, labelled)


def test_an_organ_counts_above_a_dice_of_six_tenths():
    assert after([0.59, 0.61, 0.9], [1, 1, 1]).ready.tolist() == [False, True, True]


def test_the_limit_can_be_lowered():
    readiness = Readiness(2, 0.3)
    readiness.load_state_dict(after([0.35, 0.25], [1, 1]).state_dict())
    assert readiness.ready.tolist() == [True, False]


def test_nothing_counts_before_anything_was_seen():
    assert drive(Readiness(2), column(1.0, 2.0), column(9.0, 9.0)).isnan().all()


def test_displacements_are_relative_to_their_running_mean_so_that_no_organ_drowns_the_others():
    displacement = torch.cat([column(10.0, 2.0), column(20.0, 1.0)])
    driver = drive(after([0.9, 0.9], [10.0, 1.0]), displacement, torch.full((2, 2), 9.0))
    assert driver.tolist() == pytest.approx([1.5, 1.5])


def test_organs_that_do_not_count_or_are_absent_are_left_out():
    readiness = after([0.9, 0.9, 0.1], [2.0, 4.0, 1.0])
    displacement = torch.cat([column(4.0, NAN, 9.0), column(NAN, NAN, 9.0)])
    driver = drive(readiness, displacement, torch.cat([column(9.0, 0.0, 0.0), column(0.0, 0.0, 0.0)]))
    assert driver[0].item() == pytest.approx(2)
    assert driver[1].isnan()


def test_a_sample_with_an_organ_that_is_not_known_yet_is_told_apart():
    readiness = after([0.9, 0.1], [2.0, 1.0])
    labelled = torch.cat([column(50.0, 50.0), column(50.0, 0.0)])
    assert readiness.shows_unknown(labelled).tolist() == [True, False]
    driver = drive(readiness, torch.cat([column(4.0, 9.0), column(4.0, 9.0)]), labelled)
    assert driver.tolist() == pytest.approx([2, 2])  # falsely predicted in the second one, but nobody drew it


def test_the_running_displacement_keeps_ninety_five_hundredths_of_the_old():
    readiness = after([1.0], [1.0])
    size = torch.full((1, 1), 100.0, dtype=torch.float64)
    readiness.update(column(3.0), size * 0, size, size)
    assert readiness.displacement.item() == pytest.approx(0.95 + 0.05 * 3)


def test_wrong_contours_do_not_make_a_known_organ_unknown():
    right, wrong = torch.tensor([[80.0]], dtype=torch.float64), torch.tensor([[20.0]], dtype=torch.float64)
    size = torch.full((1, 1), 100.0, dtype=torch.float64)
    known, unknown = Readiness(1), Readiness(1)
    for turn in range(100):
        known.update(column(1.0), wrong if turn % 2 else right, size, size)
        unknown.update(column(1.0), wrong if turn % 8 else right, size, size)
    assert known.ready.tolist() == [True]  # half of the contours fit
    assert unknown.ready.tolist() == [False]  # an eighth does, perhaps by chance


def test_what_was_long_ago_is_forgotten_organ_by_organ():
    readiness = Readiness(2)
    size = torch.tensor([[100.0, 0.0]], dtype=torch.float64)
    readiness.update(column(1.0, 1.0), column(90.0, 90.0), column(100.0, 100.0), column(100.0, 100.0))
    for _ in range(64):
        readiness.update(column(1.0, NAN), 0.1 * size, size, size)
    assert readiness.dice.tolist() == pytest.approx([0.1, 0.9])
    assert readiness.recent.shape == (64, 2)


def test_absent_organs_change_nothing():
    readiness = after([0.9, 0.8], [2.0, 3.0])
    size = torch.tensor([[100.0, 0.0]], dtype=torch.float64)
    readiness.update(column(2.0, NAN), 0.9 * size, size, size)
    assert readiness.dice.tolist() == pytest.approx([0.9, 0.8])
    assert readiness.displacement.tolist() == pytest.approx([2.0, 3.0])


def test_a_patch_without_the_organ_says_nothing_about_it():
    readiness = Readiness(1)
    both, predicted, labelled = (
        torch.tensor(v, dtype=torch.float64) for v in ([[90.0], [0.0]], [[90.0], [10.0]], [[90.0], [0.0]])
    )
    readiness.update(torch.tensor([[1.0], [3.0]], dtype=torch.float64), both, predicted, labelled)
    assert readiness.dice.item() == pytest.approx(1.0)
    assert readiness.displacement.item() == pytest.approx(2)


def test_a_perfect_segmentation_drives_nothing_and_breaks_nothing():
    assert drive(after([1.0], [0.0]), column(0.0), column(9.0)).tolist() == [0.0]


def test_continues_from_its_state():
    first, second = after([0.9, 0.5], [2.0, 1.0]), Readiness(2)
    second.load_state_dict(first.state_dict())
    assert torch.equal(*(drive(one, column(3.0, 3.0), column(9.0, 0.0)) for one in (first, second)))
    assert torch.equal(first.middle, second.middle)
    assert torch.equal(first.dice, second.dice)


def test_continues_from_a_state_of_before_there_was_a_middle():
    state = after([0.9], [2.0]).state_dict()
    del state["excess"]
    readiness = Readiness(1)
    readiness.load_state_dict(state)
    assert readiness.middle.isnan().all()
    readiness.update(column(1.0), column(80.0), column(90.0), column(80.0))
    assert readiness.middle.item() == pytest.approx(1)


# --- the middle contour ----------------------------------------------------------------------------------------------


def contours(*larger_by: float) -> tuple[torch.Tensor, ...]:
    """Displacement, both, predicted and labelled of contours of 100 voxels whose predictions are larger by so many mm
    (negative is smaller), 10 voxels a mm, and hold them or are held by them."""
    excess = torch.tensor([larger_by], dtype=torch.float64).T
    labelled = torch.full_like(excess, 100)
    return excess.abs(), labelled + 10 * excess.clamp(max=0), labelled + 10 * excess, labelled


def test_where_the_network_leans_to_large_contours_the_middle_ones_are_right_and_not_those_that_lean_with_it():
    readiness = Readiness(1, 0.5)
    dilated, clean, eroded = 0.0, 2.0, 4.0  # the prediction agrees with the dilated ones
    given = contours(dilated, dilated, dilated, clean, clean, eroded, eroded, eroded)
    readiness.update(*given)
    assert readiness.middle.item() == pytest.approx(2)
    driver = readiness.driver(*contours(dilated, clean, eroded)).tolist()
    assert driver[1] == pytest.approx(0)
    assert driver[0] == pytest.approx(driver[2])
    assert driver[0] > 0


def test_a_displacement_that_is_no_matter_of_size_stays():
    readiness = Readiness(1, 0.5)
    readiness.update(*contours(0.0, 0.0, 0.0, 3.0))
    shifted = (column(3.0), column(70.0), column(100.0), column(100.0))
    usual = readiness.displacement.item()
    assert readiness.driver(*shifted).item() == pytest.approx(3 / usual)


def test_without_a_lean_the_middle_changes_nothing():
    readiness = Readiness(1, 0.5)
    given = contours(-3.0, -1.0, 0.0, 1.0, 3.0)
    readiness.update(*given)
    assert readiness.driver(*given).tolist() == pytest.approx((given[0][:, 0] / readiness.displacement).tolist())


def test_an_organ_predicted_where_nobody_drew_it_moves_no_middle():
    readiness = Readiness(1, 0.5)
    readiness.update(*contours(1.0, 1.0))
    readiness.update(column(50.0), column(0.0), column(500.0), column(0.0))
    assert readiness.middle.item() == pytest.approx(1)


@pytest.mark.parametrize(("predicted", "excess"), [(10.5, 3.0), (9.5, -3.0)])
def test_rounded_sums_make_no_displacement_larger_than_it_is(predicted, excess):
    both = predicted / 2 + 5 - 0.05  # what is apart is 0.1, rounded; what is more is 0.5
    assert excess_of(column(3.0), column(both), column(predicted), column(10.0)).item() == pytest.approx(excess)
