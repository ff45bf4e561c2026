"""Which organs count in a driver, and for how much."""

from __future__ import annotations

import pytest
import torch

from nnunet_ext.losses.readiness import Readiness

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


def test_an_organ_counts_above_a_dice_of_six_tenths():
    assert after([0.59, 0.61, 0.9], [1, 1, 1]).ready.tolist() == [False, True, True]


def test_the_limit_can_be_lowered():
    readiness = Readiness(2, 0.3)
    readiness.load_state_dict(after([0.35, 0.25], [1, 1]).state_dict())
    assert readiness.ready.tolist() == [True, False]


def test_nothing_counts_before_anything_was_seen():
    assert Readiness(2).driver(column(1.0, 2.0), column(9.0, 9.0)).isnan().all()


def test_displacements_are_relative_to_their_running_mean_so_that_no_organ_drowns_the_others():
    driver = after([0.9, 0.9], [10.0, 1.0]).driver(
        torch.cat([column(10.0, 2.0), column(20.0, 1.0)]), torch.full((2, 2), 9.0)
    )
    assert driver.tolist() == pytest.approx([1.5, 1.5])


def test_organs_that_do_not_count_or_are_absent_are_left_out():
    readiness = after([0.9, 0.9, 0.1], [2.0, 4.0, 1.0])
    displacement = torch.cat([column(4.0, NAN, 9.0), column(NAN, NAN, 9.0)])
    driver = readiness.driver(displacement, torch.cat([column(9.0, 0.0, 0.0), column(0.0, 0.0, 0.0)]))
    assert driver[0].item() == pytest.approx(2)
    assert driver[1].isnan()


def test_a_sample_with_an_organ_that_is_not_known_yet_is_not_judged_by_the_others():
    """Else it could lose its weight by them, and the organ would never be learnt."""
    readiness = after([0.9, 0.1], [2.0, 1.0])
    displacement = torch.cat([column(4.0, 9.0), column(4.0, 9.0)])
    driver = readiness.driver(displacement, torch.cat([column(50.0, 50.0), column(50.0, 0.0)]))
    assert driver[0].isnan()
    assert driver[1].item() == pytest.approx(2)  # falsely predicted there, but nobody drew it


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
    assert after([1.0], [0.0]).driver(column(0.0), column(9.0)).tolist() == [0.0]


def test_continues_from_its_state():
    first, second = after([0.9, 0.5], [2.0, 1.0]), Readiness(2)
    second.load_state_dict(first.state_dict())
    assert torch.equal(
        first.driver(column(3.0, 3.0), column(9.0, 0.0)), second.driver(column(3.0, 3.0), column(9.0, 0.0))
    )
    assert torch.equal(first.dice, second.dice)
