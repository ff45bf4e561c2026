"""One signed number per image and contours, for patches of any size."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import nn

from nnunet_ext.networks.quality_net import QualityNet

SIZES = {2: (24, 32), 3: (6, 16, 24)}


def built(dim: int, **keywords) -> QualityNet:
    torch.manual_seed(0)
    return QualityNet(3, dim, **keywords)


def drawn(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dim", [2, 3])
class TestAnswer:
    def test_is_one_number_per_sample(self, dim):
        assert built(dim)(drawn(5, 3, *SIZES[dim])).shape == (5,)

    def test_has_both_signs_over_random_networks_and_inputs(self, dim):
        answers = torch.cat([QualityNet(3, dim)(drawn(4, 3, *SIZES[dim], seed=seed)) for seed in range(6)])
        assert answers.min() < 0 < answers.max()

    def test_of_a_sample_does_not_depend_on_the_others(self, dim):
        network, inputs = built(dim), drawn(4, 3, *SIZES[dim])
        torch.testing.assert_close(network(inputs)[:1], network(inputs[:1]))

    def test_every_parameter_gets_a_gradient(self, dim):
        network = built(dim)
        network(drawn(2, 3, *SIZES[dim])).square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())

    def test_is_single_precision_under_autocast(self, dim):
        with torch.autocast("cpu", torch.bfloat16):
            answers = built(dim)(drawn(2, 3, *SIZES[dim]))
        assert answers.dtype == torch.float32

    def test_sees_one_voxel_of_a_label(self, dim):
        network, inputs = built(dim), drawn(1, 3, *SIZES[dim])
        changed = inputs.clone()
        changed[(0, 1, *(n // 2 for n in SIZES[dim]))] += 1
        assert network(inputs) != network(changed)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (5, 17), (3, 3, 3), (1, 16, 16), (2, 31, 7), (1, 1, 1)])
def test_any_patch_gives_a_finite_answer(size):
    network = built(len(size))
    answers = network(drawn(2, 3, *size))
    answers.sum().backward()
    assert answers.isfinite().all()
    assert answers.shape == (2,)


def test_widths_are_those_of_the_blocks_and_the_head_has_one_channel():
    layers = [layer for layer in built(2).modules() if isinstance(layer, nn.Conv2d)]
    assert [layer.out_channels for layer in layers] == [16, 16, 32, 32, 64, 64, 128, 128, 1]
    assert layers[-1].kernel_size == (1, 1)
    norms = [layer for layer in built(2).modules() if isinstance(layer, nn.GroupNorm)]
    assert {norm.num_groups for norm in norms} == {8}


@pytest.mark.parametrize(
    ("strides", "sizes"),
    [
        (None, [(9, 30, 31), (5, 15, 16), (3, 8, 8), (2, 4, 4)]),
        ([[1, 2, 2], [1, 2, 2], [2, 2, 2], [2, 2, 2]], [(9, 30, 31), (9, 15, 16), (9, 8, 8), (5, 4, 4)]),
    ],
)
def test_convolutions_see_full_resolution_first_and_then_what_the_strides_leave(strides, sizes):
    network, seen = built(3, strides=strides), []
    for block in network.blocks:
        block.register_forward_hook(lambda _, inputs, __: seen.append(tuple(inputs[0].shape[2:])))
    network(drawn(1, 3, 9, 30, 31))
    assert seen == sizes


@pytest.mark.parametrize("widths", [(), (12, 16)])
def test_widths_that_the_groups_do_not_divide_are_refused(widths):
    with pytest.raises(ValueError, match="multiples of 8"):
        QualityNet(3, 2, widths)


@pytest.mark.parametrize("strides", [[[2, 2]], [[2, 2, 2]] * 4])
def test_strides_that_do_not_fit_are_refused(strides):
    with pytest.raises(ValueError, match="expected 4 strides of 2 numbers"):
        QualityNet(3, 2, strides=strides)


def test_is_traced_whole_by_the_compiler_front_end():
    torch._dynamo.reset()
    assert torch._dynamo.explain(built(2))(drawn(2, 3, 9, 17)).graph_break_count == 0


def test_pickles():
    network = built(2)
    again = pickle.loads(pickle.dumps(network))
    assert torch.equal(network(drawn(1, 3, 8, 8)), again(drawn(1, 3, 8, 8)))
