"""The losses against sums made by hand, at their limits, and against nnU-Net's own."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from torch import nn

from nnunet_ext.training.base import nnUNetTrainerExt
from nnunet_ext.training.losses import ExclusiveBCELoss, PassWeightedLoss, one_against_rest

REGIONS = {"labels": {"background": 0, "both": [1, 2], "jaw": 3}, "regions_class_order": [1, 3]}
IGNORE = {"labels": {"background": 0, "a": 1, "b": 2, "ignore": 3}}
ONE = {"labels": {"background": 0, "CTV": 1}}


def random_case(classes: int = 4, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (2, classes, 3, 3) and labels (2, 3, 3)."""
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(2, classes, 3, 3, generator=generator), torch.randint(
        classes, (2, 3, 3), generator=generator
    )


# --- one against the rest --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_sigmoid_of_one_against_rest_is_softmax(classes):
    logits, _ = random_case(classes)
    torch.testing.assert_close(one_against_rest(logits).sigmoid(), logits.softmax(1))


def test_of_two_classes_it_is_their_difference_however_large():
    logits = torch.tensor([[[0.0, 500.0, -500.0, 30.0]], [[0.0, -500.0, 500.0, -30.0]]]).transpose(0, 1)
    expected = logits - logits.flip(1)
    torch.testing.assert_close(one_against_rest(logits), expected)


def test_equal_logits_have_a_finite_gradient():
    logits = torch.zeros(1, 3, 2, requires_grad=True)
    one_against_rest(logits)[:, 1].sum().backward()
    torch.testing.assert_close(logits.grad[0, :, 0], torch.tensor([-0.5, 1.0, -0.5]))


def test_the_gradient_is_that_of_the_formula():
    logits = torch.randn(1, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    assert torch.autograd.gradcheck(one_against_rest, logits)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(dtype):
    logits = torch.tensor([[[60000.0], [-60000.0]]]).to(dtype).requires_grad_()
    result = one_against_rest(logits)
    assert result.dtype == torch.float32
    assert result.isfinite().all()
    result.sum().backward()
    assert logits.grad.isfinite().all()


# --- binary cross-entropy --------------------------------------------------------------------------------------------


def test_bce_is_the_formula_summed_by_hand():
    logits, labels = random_case()
    p, g = logits.softmax(1).numpy().astype(float), labels.numpy()
    terms = []
    for organ in (1, 2, 3):
        terms.append(np.where(g == organ, np.log(p[:, organ]), np.log(1 - p[:, organ])))
    assert ExclusiveBCELoss()(logits, labels.float()).item() == pytest.approx(-np.mean(terms), rel=1e-5)


def test_bce_of_one_organ_is_cross_entropy():
    logits, labels = random_case(2)
    torch.testing.assert_close(ExclusiveBCELoss()(logits, labels), nn.functional.cross_entropy(logits, labels))


def test_bce_of_a_sure_and_right_answer_is_nothing_and_of_a_wrong_one_is_finite():
    labels = torch.ones(1, 3, 3)
    logits = torch.full((1, 3, 3, 3), -100.0)
    logits[:, 1] = 100.0
    assert ExclusiveBCELoss()(logits, labels).item() == pytest.approx(0)
    wrong = ExclusiveBCELoss()(logits, torch.full((1, 3, 3), 2.0)).item()
    assert wrong == pytest.approx((200 + 200) / 2, rel=0.01)  # organ 1 is claimed, organ 2 denied


def test_what_is_to_be_ignored_counts_nowhere():
    logits, labels = random_case(3)
    seen = ExclusiveBCELoss()(logits[..., :2], labels[..., :2])
    labels[..., 2] = 9
    logits.requires_grad_()
    loss = ExclusiveBCELoss(ignore_label=9)(logits, labels)
    torch.testing.assert_close(loss, seen)
    loss.backward()
    assert not logits.grad[..., 2].any()


def test_a_patch_of_which_all_is_ignored_costs_nothing():
    logits = random_case()[0].requires_grad_()
    loss = ExclusiveBCELoss(ignore_label=9)(logits, torch.full((2, 3, 3), 9))
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


# --- the setting -----------------------------------------------------------------------------------------------------


def built(in_world: Any, dataset: dict[str, Any] | None = None, **settings: Any) -> Any:
    trainer = in_world(nnUNetTrainerExt, "2d", dataset=dataset, nnunet_ext={"deep_supervision": False, **settings})
    return trainer._build_loss()


@pytest.mark.slow
class TestSetting:
    @pytest.mark.parametrize("batch_dice", [True, False])
    def test_bce_dice_is_the_sum_of_both_with_dice_per_batch_or_per_patch(self, in_world, batch_dice):
        trainer = in_world(
            nnUNetTrainerExt, "2d", batch_dice=batch_dice, nnunet_ext={"loss": "bce_dice", "deep_supervision": False}
        )
        logits, labels = random_case()
        p, axes = logits.softmax(1).numpy(), (0, 2, 3) if batch_dice else (2, 3)
        g = np.stack([labels.numpy() == c for c in range(4)], 1)
        dice = (2 * (p * g).sum(axes) + 1e-5) / (p.sum(axes) + g.sum(axes) + 1e-5)  # plain sums
        expected = ExclusiveBCELoss()(logits, labels).item() - dice[..., 1:].mean()
        assert trainer._build_loss()(logits, labels[:, None].float()).item() == pytest.approx(expected, rel=1e-5)

    def test_dice_has_plain_sums_in_the_denominator(self, in_world):
        logits = torch.zeros(1, 2, 3, 3)  # p = 1/2 in all nine voxels
        labels = torch.zeros(1, 1, 3, 3)
        labels[..., 0] = 1
        loss = built(in_world, ONE, loss="dice")(logits, labels).item()
        assert loss == pytest.approx(-2 * 1.5 / (4.5 + 3), rel=1e-5)
        assert loss != pytest.approx(-2 * 1.5 / (2.25 + 3), rel=1e-2)  # squares

    def test_of_one_organ_it_is_nnunets_default(self, in_world):
        logits, labels = random_case(2)
        target = labels[:, None].float()
        values = [built(in_world, ONE, loss=loss)(logits, target) for loss in ("bce_dice", "dice_ce")]
        torch.testing.assert_close(*values)

    def test_of_regions_it_is_nnunets_default(self, in_world):
        logits, labels = random_case(2)
        target = torch.stack([labels > 0, labels > 1], 1)
        values = [built(in_world, REGIONS, loss=loss)(logits, target) for loss in ("bce_dice", "dice_ce")]
        torch.testing.assert_close(*values)

    def test_the_ignore_label_changes_nothing(self, in_world):
        logits, labels = random_case(3)
        labels[..., 2] = 3
        logits.requires_grad_()
        built(in_world, IGNORE, loss="bce_dice")(logits, labels[:, None].float()).backward()
        assert not logits.grad[..., 2].any()
        assert logits.grad[..., :2].any()

    def test_every_resolution_has_it(self, in_world):
        trainer = in_world(nnUNetTrainerExt, "2d", nnunet_ext={"loss": "bce_dice", "deep_supervision": True})
        wrapper = trainer._build_loss()
        assert isinstance(wrapper, DeepSupervisionWrapper)
        assert isinstance(wrapper.loss.ce, ExclusiveBCELoss)


# --- passes ----------------------------------------------------------------------------------------------------------


class Constant(nn.Module):
    """The answer's mean, so that every answer has a loss that one knows."""

    def forward(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return output.mean() + 0 * target.sum()


def answer(value: float) -> torch.Tensor:
    return torch.full((1, 2, 3, 3), value)


TARGET = torch.zeros(1, 1, 3, 3)
DEEP = DeepSupervisionWrapper(Constant(), (0.75, 0.25))


def test_passes_are_weighted_by_their_number():
    loss = PassWeightedLoss(Constant(), [1, 2, 3])
    assert loss([answer(6.0), answer(12.0), answer(18.0)], TARGET).item() == pytest.approx(1 + 4 + 9)


def test_equal_losses_of_all_passes_are_the_loss():
    for weights in ([1, 2, 3], [5, 0, 1], [1 / 3]):
        loss = PassWeightedLoss(Constant(), weights)
        assert sum(loss.weights) == pytest.approx(1)
        assert loss([answer(2.5)] * len(weights), TARGET).item() == pytest.approx(2.5)


def test_passes_of_several_resolutions():
    loss = PassWeightedLoss(DEEP, [1, 3])
    output = [[answer(4.0), answer(8.0)], [answer(12.0), answer(16.0)]]
    assert loss(output, [TARGET, TARGET]).item() == pytest.approx((5 + 3 * 13) / 4)


def test_a_single_answer_has_its_own_loss():
    assert PassWeightedLoss(Constant(), [1, 2, 3])(answer(2.0), TARGET).item() == 2
    assert PassWeightedLoss(DEEP, [1, 2])([answer(4.0), answer(8.0)], [TARGET, TARGET]).item() == 5


def test_a_pass_of_weight_zero_is_not_computed():
    assert math.isfinite(PassWeightedLoss(Constant(), [0, 1])([answer(math.nan), answer(1.0)], TARGET).item())


@pytest.mark.parametrize("weights", [[], [0, 0], [1, -1], [1, math.inf]])
def test_weights_without_sense_are_refused(weights):
    with pytest.raises(ValueError, match="weights of passes"):
        PassWeightedLoss(Constant(), weights)


def test_another_number_of_passes_is_refused():
    with pytest.raises(ValueError, match="expected 3 passes, one per weight, got 2"):
        PassWeightedLoss(Constant(), [1, 2, 3])([answer(1.0)] * 2, TARGET)
