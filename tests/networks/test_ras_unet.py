from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import nn

from nnunet_ext.networks.ras_unet import RASBlock, RASUNet, separable_convolution
from nnunet_ext.networks.skeleton import UNetPlan
from tests.networks.contract import NetworkContract, keywords

SETTINGS = {
    "input_channels": 1,
    "num_classes": 2,
    "n_stages": 5,
    "features_per_stage": [32, 64, 128, 256, 512],
    "kernel_sizes": 3,
    "strides": [1, 2, 2, 2, 2],
    "n_conv_per_stage": 2,
    "n_conv_per_stage_decoder": 2,
}
"""Under which the counts below hold; strides of 2 on every axis."""


class TestRASUNet(NetworkContract):
    network = RASUNet
    dims = (3,)


class TestRASUNetWithoutAttention(NetworkContract):
    network = RASUNet
    own: ClassVar[dict[str, Any]] = {"attention": False}
    dims = (3,)


class TestRASUNetWithNarrowAttentionThroughX(NetworkContract):
    network = RASUNet
    own: ClassVar[dict[str, Any]] = {"attention_reduction": 4, "through_axis": 2}
    dims = (3,)


def plan(**changes: Any) -> UNetPlan:
    return UNetPlan(**keywords(**changes))


def block(inputs: int, width: int, *, reduction: int | None = 1, through_axis: int = 0, **changes: Any) -> RASBlock:
    torch.manual_seed(0)
    return RASBlock(plan(**changes), inputs, width, through_axis=through_axis, reduction=reduction)


def weights(module: nn.Module) -> int:
    return sum(layer.weight.numel() for layer in module.modules() if isinstance(layer, nn.Conv3d))


def image(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("network", "own", "parameters", "millions", "written"),
    [
        (RASUNet, {}, 21_906_408, 21.906, 425),
        (RASUNet, {"attention": False}, 11_431_144, 11.431, 247),
        (PlainConvUNet, {}, 22_582_152, 22.582, 113),
    ],
)
def test_parameters_and_planned_memory_are_exact(network, own, parameters, millions, written):
    with torch.device("meta"):
        unet = network(**{**keywords(), **SETTINGS, **own})
    found = sum(p.numel() for p in unet.parameters())
    assert found == parameters
    assert round(found / 1e6, 3) == millions
    assert round(unet.compute_conv_feature_map_size([32, 128, 128]) / 1e6) == written


@pytest.mark.parametrize("width", [4, 12])
def test_a_block_has_48_squares_of_its_width_in_weights_and_two_full_convolutions_54(width):
    assert weights(block(width, width)) == 48 * width**2
    assert weights(block(width, width, reduction=None)) == 24 * width**2
    given = plan()
    full = nn.Sequential(given.convolution(width, width, [3, 3, 3]), given.convolution(width, width, [3, 3, 3]))
    assert weights(full) == 54 * width**2


def test_a_narrow_attention_costs_a_third():
    width = 16
    found = weights(block(width, width, reduction=4).attention)
    assert found == (9 / 4 + 3 / 16 + 9 / 4 + 3) * width**2


def test_other_channels_cost_their_formula():
    inputs, width = 6, 10
    assert weights(block(inputs, width)) == 9 * inputs * width + 39 * width**2 + inputs * width


@pytest.mark.parametrize(
    ("through_axis", "kernels"),
    [
        (0, [(1, 3, 3), (3, 1, 1)]),
        (1, [(3, 1, 3), (1, 3, 1)]),
        (2, [(3, 3, 1), (1, 1, 3)]),
    ],
)
def test_every_separable_convolution_is_in_plane_then_through_plane(through_axis, kernels):
    network = RASUNet(through_axis=through_axis, **keywords())
    blocks = [layer for layer in network.modules() if isinstance(layer, RASBlock)]
    for ras in blocks:
        found = [layer.kernel_size for layer in ras.convolutions.modules() if isinstance(layer, nn.Conv3d)]
        gate = [layer.kernel_size for layer in ras.attention.modules() if isinstance(layer, nn.Conv3d)]
        assert found == gate == 2 * kernels


def test_an_impulse_reaches_9_voxels_then_27():
    separable = separable_convolution(plan(conv_bias=False), 1, 1, through_axis=0)
    for layer in separable:
        nn.init.ones_(layer.weight)
    impulse = torch.zeros(1, 1, 7, 7, 7)
    impulse[..., 3, 3, 3] = 1
    with torch.no_grad():
        first = separable[0](impulse)
        assert first.count_nonzero() == 9
        assert first[..., 3, 2:5, 2:5].count_nonzero() == 9
        assert separable[1](impulse).count_nonzero() == 3
        assert separable(impulse)[..., 2:5, 2:5, 2:5].count_nonzero() == separable(impulse).count_nonzero() == 27


def test_attention_is_between_0_and_1_for_every_channel_and_voxel():
    ras = block(4, 4)
    with torch.no_grad():
        gate = ras.attention(10 * image(2, 4, 5, 6, 7).clamp(-1, 1))
    assert gate.shape == (2, 4, 5, 6, 7)
    assert gate.dtype == torch.float32
    assert 0 < gate.min() < gate.max() < 1


def test_the_gradient_reaches_the_attention_and_both_convolutions():
    ras = block(4, 4)
    ras(image(1, 4, 5, 6, 7)).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in ras.parameters())
    for layer in ras.modules():
        if isinstance(layer, nn.Conv3d):
            assert layer.weight.grad.any()


def test_a_block_whose_convolutions_write_nothing_returns_its_input():
    ras, x = block(4, 4, norm_op=nn.Identity), image(1, 4, 5, 6, 7)
    for layer in ras.convolutions.modules():
        if isinstance(layer, nn.Conv3d):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
    nn.init.constant_(ras.attention[2][1].bias, 100.0)  # gate 1
    with torch.no_grad():
        assert torch.equal(ras(x), x)


def test_a_block_is_its_gated_maps_plus_its_projected_input():
    ras, x = block(3, 4), image(1, 3, 5, 6, 7)
    with torch.no_grad():
        maps = ras.convolutions(x)
        torch.testing.assert_close(ras(x), maps * ras.attention(maps) + ras.project(x), rtol=0, atol=0)
    assert isinstance(block(4, 4).project, nn.Identity)


@pytest.mark.parametrize("stages", [3, 5])
def test_blocks_and_dropout_layers_have_the_papers_number(stages):
    given = {**keywords(), "n_stages": stages, "strides": 1, "kernel_sizes": 3, "features_per_stage": 4}
    network = RASUNet(**{**given, "n_conv_per_stage": 2, "n_conv_per_stage_decoder": 2})
    kinds = [type(layer) for layer in network.modules()]
    assert kinds.count(RASBlock) == 2 * stages - 1
    assert kinds.count(nn.Dropout3d) == stages
    assert [type(layer) for layer in network.encoder.stages[1]][1:] == [RASBlock, nn.Dropout3d]
    assert {layer.p for layer in network.modules() if isinstance(layer, nn.Dropout3d)} == {0.5}


@pytest.mark.parametrize(
    ("changes", "kind", "p"),
    [
        ({"encoder_dropout_p": 0.0}, nn.Dropout3d, 0.0),
        ({"dropout_op": nn.Dropout, "encoder_dropout_p": 0.2}, nn.Dropout, 0.2),
        ({"dropout_op": nn.Dropout3d, "dropout_op_kwargs": {"p": 0.4}}, nn.Dropout3d, 0.4),
    ],
)
def test_dropout_follows_the_plans(changes, kind, p):
    network = RASUNet(**{**keywords(), **changes})
    found = [layer for layer in network.modules() if isinstance(layer, nn.Dropout3d | nn.Dropout)]
    assert {(type(layer), layer.p) for layer in found} == {(kind, p)}


def test_dropout_acts_in_training_alone():
    network, x = RASUNet(**keywords(deep_supervision=False)), image(1, 2, 6, 16, 24)
    with torch.no_grad():
        assert not torch.equal(network(x), network(x))
        network.eval()
        assert torch.equal(network(x), network(x))


def test_pooling_takes_the_maximum():
    pools = [stage.pool for stage in RASUNet(**keywords()).encoder.stages]
    assert isinstance(pools[0], nn.Identity)
    assert [(type(pool), pool.kernel_size) for pool in pools[1:]] == [
        (nn.MaxPool3d, stride) for stride in keywords()["strides"][1:]
    ]


def test_a_slab_of_20_slices_trains_with_anisotropic_strides():
    strides = [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2]]
    network = RASUNet(**{**keywords(), "strides": strides, "features_per_stage": 4})
    outputs = network(image(1, 2, 20, 80, 64))
    assert [tuple(y.shape[2:]) for y in outputs] == [(20, 80, 64), (20, 40, 32), (10, 20, 16)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"conv_op": nn.Conv2d, "kernel_sizes": 3, "strides": 1}, "Conv3d, got Conv2d; use PlainConvUNet in 2D"),
        ({"through_axis": 3}, "0, 1 or 2.*got 3"),
        ({"attention_reduction": 0}, "1 or more, got 0"),
    ],
)
def test_what_it_cannot_do_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        RASUNet(**{**keywords(), **changes})


def test_layers_that_the_plans_leave_open_are_instance_norm_and_leaky_relu():
    empty = {"norm_op": None, "norm_op_kwargs": None, "nonlin": None, "nonlin_kwargs": None}
    kinds = {type(layer) for layer in RASUNet(**{**keywords(), **empty}).modules()}
    assert {nn.InstanceNorm3d, nn.LeakyReLU, nn.Dropout3d} <= kinds
