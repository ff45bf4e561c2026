"""One loss per sample: its mean is nnU-Net's own value."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss

from nnunet_ext.losses.per_sample import PerSampleLoss, label_loss, one_hot, region_loss

IGNORE = 3
SHAPES = [(4, 3, 6, 7), (4, 3, 3, 6, 7)]


def logits_and_labels(shape: tuple[int, ...], *, ignored: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and label maps; the first columns of every sample are to be ignored if asked."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, shape[1], (shape[0], 1, *shape[2:]), generator=generator).short()
    if ignored is not None:
        labels[..., :ignored] = IGNORE
    return torch.randn(shape, generator=generator).requires_grad_(), labels


def logits_and_regions(shape: tuple[int, ...], ignored: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    regions = torch.rand(shape, generator=generator) > 0.5
    ignore = torch.zeros(shape[0], 1, *shape[2:], dtype=torch.bool)
    ignore[..., :ignored] = True
    return torch.randn(shape, generator=generator).requires_grad_(), torch.cat([regions, ignore], 1)


def stock_labels(ignore_label: int | None, **weights: float) -> DC_and_CE_loss:
    dice = {"batch_dice": False, "smooth": 1e-5, "do_bg": False, "ddp": False}
    return DC_and_CE_loss(dice, {}, ignore_label=ignore_label, dice_class=MemoryEfficientSoftDiceLoss, **weights)


def stock_regions(*, has_ignore: bool) -> DC_and_BCE_loss:
    dice = {"batch_dice": False, "smooth": 1e-5, "do_bg": True, "ddp": False}
    return DC_and_BCE_loss({}, dice, use_ignore_label=has_ignore, dice_class=MemoryEfficientSoftDiceLoss)


def same_value_and_gradient(ours: torch.Tensor, stocks: torch.Tensor, logits: torch.Tensor) -> None:
    torch.testing.assert_close(ours.mean(), stocks, rtol=0, atol=1e-6)
    a, b = (torch.autograd.grad(loss, logits, retain_graph=True)[0] for loss in (ours.mean(), stocks))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES, ids=["2D", "3D"])
class TestMeanIsNnunets:
    def test_for_labels(self, shape):
        logits, labels = logits_and_labels(shape)
        same_value_and_gradient(label_loss(logits, labels), stock_labels(None)(logits, labels), logits)

    def test_for_labels_with_as_much_to_ignore_in_every_sample(self, shape):
        logits, labels = logits_and_labels(shape, ignored=2)
        ours = label_loss(logits, labels, ignore_label=IGNORE)
        same_value_and_gradient(ours, stock_labels(IGNORE)(logits, labels), logits)

    def test_for_dice_alone(self, shape):
        logits, labels = logits_and_labels(shape)
        same_value_and_gradient(
            label_loss(logits, labels, entropy=None), stock_labels(None, weight_ce=0)(logits, labels), logits
        )

    def test_for_cross_entropy_alone(self, shape):
        logits, labels = logits_and_labels(shape)
        same_value_and_gradient(
            label_loss(logits, labels, dice=False), stock_labels(None, weight_dice=0)(logits, labels), logits
        )

    def test_for_regions(self, shape):
        logits, regions = logits_and_regions(shape, 0)
        regions = regions[:, :-1]
        same_value_and_gradient(region_loss(logits, regions), stock_regions(has_ignore=False)(logits, regions), logits)

    def test_for_regions_with_as_much_to_ignore_in_every_sample(self, shape):
        logits, regions = logits_and_regions(shape, 2)
        ours = region_loss(logits, regions, has_ignore=True)
        same_value_and_gradient(ours, stock_regions(has_ignore=True)(logits, regions), logits)

    def test_for_all_levels_of_deep_supervision(self, shape):
        logits, labels = logits_and_labels(shape)
        step = (slice(None), slice(None), *[slice(None, None, 2)] * (len(shape) - 2))
        outputs, targets, weights = [logits, logits[step], logits[step]], [labels, labels[step], labels[step]], (
            0.7, 0.3, 0.0,
        )  # fmt: skip
        ours = PerSampleLoss(label_loss, weights)(outputs, targets)
        stock = DeepSupervisionWrapper(stock_labels(None), weights)(outputs, targets)
        same_value_and_gradient(ours, stock, logits)


class TestSamplesAreApart:
    def test_every_sample_has_the_loss_that_it_has_alone(self):
        logits, labels = logits_and_labels((4, 3, 6, 7), ignored=1)
        labels[0, ..., :4] = IGNORE  # unequal shares: here nnU-Net's mean over the batch is another number
        alone = [stock_labels(IGNORE)(logits[i : i + 1], labels[i : i + 1]) for i in range(4)]
        torch.testing.assert_close(label_loss(logits, labels, ignore_label=IGNORE), torch.stack(alone))

    def test_the_gradient_of_one_reaches_no_other(self):
        logits, labels = logits_and_labels((3, 3, 6, 7))
        label_loss(logits, labels)[1].backward()
        assert logits.grad[1].any()
        assert not logits.grad[[0, 2]].any()

    @pytest.mark.parametrize("regions", [False, True])
    def test_a_sample_that_is_to_be_ignored_whole_has_no_gradient(self, regions):
        if regions:
            logits, target = logits_and_regions((2, 3, 4, 4), 4)
            loss = region_loss(logits, target, has_ignore=True)
        else:
            logits, target = logits_and_labels((2, 3, 4, 4), ignored=4)
            loss = label_loss(logits, target, ignore_label=IGNORE)
        loss.sum().backward()
        assert loss.isfinite().all()
        assert not logits.grad.any()

    def test_regions_may_go_without_one_term(self):
        logits, target = logits_and_regions((2, 3, 4, 4), 0)
        both = region_loss(logits, target, has_ignore=True)
        parts = [region_loss(logits, target, has_ignore=True, **{name: False}) for name in ("entropy", "dice")]
        torch.testing.assert_close(parts[0] + parts[1], both)


class TestPrecisionAndLevels:
    def test_half_precision_is_summed_in_single(self):
        logits, labels = logits_and_labels((2, 3, 40, 40))
        half = label_loss(logits.detach().half(), labels)
        assert half.dtype == torch.float32
        torch.testing.assert_close(half, label_loss(logits.detach(), labels), rtol=0, atol=1e-3)

    def test_passes_are_weighted(self):
        logits, labels = logits_and_labels((2, 3, 4, 4))
        term: Any = partial(label_loss)
        loss = PerSampleLoss(term, pass_weights=(0.0, 0.25, 0.75))([logits * 9, logits, 2 * logits], labels)
        torch.testing.assert_close(loss, 0.25 * term(logits, labels) + 0.75 * term(2 * logits, labels))

    def test_passes_may_have_levels(self):
        logits, labels = logits_and_labels((2, 3, 4, 4))
        loss = PerSampleLoss(label_loss, (0.5, 0.5), (0.5, 0.5))([[logits, logits]] * 2, [labels, labels])
        torch.testing.assert_close(loss, label_loss(logits, labels))

    def test_a_missing_level_is_refused(self):
        logits, labels = logits_and_labels((2, 3, 4, 4))
        with pytest.raises(ValueError, match="zip"):
            PerSampleLoss(label_loss, (0.5, 0.5))([logits], [labels])


def test_one_hot_leaves_out_what_is_beyond():
    labels = torch.tensor([[[0, 1, 3]]])
    assert one_hot(labels, 3).int().tolist() == [[[1, 0, 0], [0, 1, 0], [0, 0, 0]]]
