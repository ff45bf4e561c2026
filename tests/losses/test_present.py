from __future__ import annotations

import pytest
import torch
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from torch import nn

from nnunet_ext.losses.present import PresentOnly, erase_absent, without_absent

SOFTMAX = {"batch_dice": True, "smooth": 1e-5, "do_bg": False, "ddp": False}


def stock_loss(*, batch_dice: bool = True) -> nn.Module:
    return DC_and_CE_loss({**SOFTMAX, "batch_dice": batch_dice}, {}, dice_class=MemoryEfficientSoftDiceLoss)


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(3, 4, 5, 6, 7, generator=torch.Generator().manual_seed(0), requires_grad=True)


@pytest.fixture
def absent() -> torch.Tensor:
    """The second sample lacks organ 2, the third organs 1 and 3."""
    return torch.tensor([[0, 0, 0, 0], [0, 0, 1, 0], [0, 1, 0, 1]], dtype=torch.bool)


@pytest.fixture
def target(absent: torch.Tensor) -> torch.Tensor:
    labels = torch.randint(0, 4, (3, 1, 5, 6, 7), generator=torch.Generator().manual_seed(1))
    return erase_absent(labels, absent, regions=False)


def test_probabilities_of_absent_organs_go_to_the_background(logits, absent):
    before, after = logits.softmax(1), without_absent(logits, absent, regions=False).softmax(1)
    assert torch.equal(after[0], before[0])
    torch.testing.assert_close(after[1, 0], before[1, 0] + before[1, 2])
    torch.testing.assert_close(after[2, 0], before[2, 0] + before[2, 1] + before[2, 3])
    assert not after[1, 2].any()
    torch.testing.assert_close(after[1, [1, 3]], before[1, [1, 3]])


def test_the_loss_is_that_of_the_union_written_out(logits, absent, target):
    found = nn.functional.cross_entropy(without_absent(logits, absent, regions=False), target[:, 0])
    p = logits.softmax(1)
    union = [p[0, 0], p[1, 0] + p[1, 2], p[2, 0] + p[2, 1] + p[2, 3]]
    chosen = torch.stack([torch.where(t == 0, u, q.gather(0, t[None])[0])
                          for q, u, t in zip(p, union, target[:, 0], strict=True)])  # fmt: skip
    torch.testing.assert_close(found, -chosen.log().mean())


@pytest.mark.parametrize("batch_dice", [True, False])
def test_an_absent_organ_may_take_background_for_nothing(logits, absent, target, batch_dice):
    """Whether the network says background or the absent organ there must not matter to the loss, nor push it."""
    loss = stock_loss(batch_dice=batch_dice)
    value = loss(without_absent(logits, absent, regions=False), target)
    (gradient,) = torch.autograd.grad(value, logits)
    p = logits.softmax(1)
    share = p[1, 2] / (p[1, 0] + p[1, 2])
    torch.testing.assert_close(gradient[1, 2], (gradient[1, 0] + gradient[1, 2]) * share)
    moved = logits.detach().clone()
    moved[1, 0], moved[1, 2] = logits[1, 2].detach(), logits[1, 0].detach()
    torch.testing.assert_close(loss(without_absent(moved, absent, regions=False), target), value.detach())
    assert not torch.isclose(stock_loss()(moved, target), stock_loss()(logits, target))  # stock does mind


def test_nothing_absent_changes_no_bit(logits):
    none = torch.zeros(3, 4, dtype=torch.bool)
    for regions in (False, True):
        assert torch.equal(without_absent(logits, none, regions=regions), logits)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_stays_finite(logits, absent, target, kind):
    low = (logits.detach() * 50).to(kind).requires_grad_()
    value = stock_loss()(without_absent(low, absent, regions=False), target)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(low.grad).all()


def test_a_masked_region_has_no_loss_and_no_gradient(logits):
    absent = torch.tensor([[0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]], dtype=torch.bool)
    target = torch.randint(0, 2, (3, 4, 5, 6, 7), generator=torch.Generator().manual_seed(2))
    loss = DC_and_BCE_loss({}, {"batch_dice": True, "do_bg": True, "smooth": 1e-5, "ddp": False})
    value = loss(without_absent(logits, absent, regions=True), erase_absent(target, absent, regions=True))
    (gradient,) = torch.autograd.grad(value, logits)
    assert not gradient[1, 1].any()
    assert not gradient[2, 3].any()
    assert gradient[0].abs().amin(dim=(1, 2, 3)).all()


def test_erasing_spares_other_samples_and_the_ignore_channel():
    labels = torch.tensor([[[1, 2, 3]], [[1, 2, 3]]])
    absent = torch.tensor([[0, 0, 1, 0], [0, 0, 0, 0]], dtype=torch.bool)
    assert erase_absent(labels, absent, regions=False).tolist() == [[[1, 0, 3]], [[1, 2, 3]]]
    channels = torch.ones(2, 3, 4)  # two regions and the ignore label
    off = torch.tensor([[1, 0], [0, 0]], dtype=torch.bool)
    assert erase_absent(channels, off, regions=True).sum(dim=2).tolist() == [[0, 4, 4], [4, 4, 4]]


def test_padding_of_minus_one_and_the_ignore_label_stay():
    labels = torch.tensor([[[-1, 4, 2]]])
    absent = torch.tensor([[0, 0, 1, 0]], dtype=torch.bool)
    assert erase_absent(labels, absent, regions=False).tolist() == [[[-1, 4, 0]]]


def test_a_wrapped_network_keeps_the_structure_of_its_answer(absent, logits):
    class Passes(nn.Module):
        def forward(self, image):
            return [[image, image[..., ::2]], [image, image[..., ::2]]]

    wrapped = PresentOnly(Passes(), absent, regions=False)(logits)
    assert [[tuple(t.shape) for t in part] for part in wrapped] == [[(3, 4, 5, 6, 7), (3, 4, 5, 6, 4)]] * 2
    assert torch.equal(wrapped[0][0], without_absent(logits, absent, regions=False))


def test_faults_are_named(logits, absent):
    with pytest.raises(ValueError, match="does not fit"):
        without_absent(logits, absent[:, :3], regions=False)
    with pytest.raises(ValueError, match="background cannot be absent"):
        without_absent(logits, torch.ones(3, 4, dtype=torch.bool), regions=False)
