from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from nnunet_ext.networks.se_res_unet import SEResBlock, SEResUNet
from nnunet_ext.networks.se_unet import SEUNet3D
from nnunet_ext.networks.squeeze_excitation import GatedConvolutions, SqueezeExcitation
from tests.networks.contract import CHANNELS, SHAPES, NetworkContract, keywords


class TestSEResUNet(NetworkContract):
    network = SEResUNet


class TestSEResUNetWithActivationLast(NetworkContract):
    network = SEResUNet
    own: ClassVar[dict[str, Any]] = {"nonlin_first": False}


class TestSEUNet3D(NetworkContract):
    network = SEUNet3D


def image(dim: int, channels: int = CHANNELS, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, channels, *SHAPES[dim], generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dim", [2, 3])
def test_the_gate_has_one_value_per_case_and_channel(dim):
    gate = SqueezeExcitation(4, 2)(image(dim, 4))
    assert gate.shape == (2, 4, *[1] * dim)
    assert 0 < gate.min() < gate.max() < 1


def test_the_gate_sees_every_axis_and_nothing_but_means():
    gate, maps = SqueezeExcitation(4, 4), image(3, 4)
    shuffled = maps.flatten(2)[:, :, torch.randperm(6 * 16 * 24)].reshape(maps.shape)
    with torch.no_grad():
        torch.testing.assert_close(gate(maps), gate(shuffled))
        for axis in (2, 3, 4):
            other = maps.clone()
            other.select(axis, 0).add_(1)
            assert not torch.allclose(gate(maps), gate(other))


@pytest.mark.parametrize("network", [SEResUNet, SEUNet3D])
@pytest.mark.parametrize("nonlin_first", [False, True])
@pytest.mark.parametrize("dim", [2, 3])
def test_gates_differ_between_two_images(network, nonlin_first, dim):
    """Squeezed after the norm all would be equal."""
    torch.manual_seed(0)
    unet, gates = network(nonlin_first=nonlin_first, **keywords(dim)).eval(), []
    for layer in unet.modules():
        if isinstance(layer, SqueezeExcitation):
            nn.init.ones_(layer.layers[0].bias)  # no hidden unit is dead
            layer.register_forward_hook(lambda _, __, output: gates.append(output))
    images = image(dim)
    images[1] = 3 * images[1].abs()
    with torch.no_grad():
        unet(images)
    assert len(gates) == 7
    assert all((gate[0] - gate[1]).abs().max() > 1e-5 for gate in gates)


def test_after_an_instance_norm_the_means_are_equal_for_all_images():
    """Why the gate stands before it."""
    norm = nn.InstanceNorm3d(4, affine=True)
    nn.init.normal_(norm.bias)
    with torch.no_grad():
        means = norm(image(3, 4)).mean((2, 3, 4))
    torch.testing.assert_close(means, norm.bias.expand(2, 4), rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("nonlin_first", "before", "after"),
    [
        (True, [nn.Conv3d, nn.ELU, nn.InstanceNorm3d, nn.Conv3d, nn.ELU], [nn.InstanceNorm3d]),
        (False, [nn.Conv3d, nn.InstanceNorm3d, nn.ELU, nn.Conv3d], [nn.InstanceNorm3d, nn.ELU]),
    ],
)
def test_layers_stand_in_the_order_of_the_paper_and_the_squeeze_before_the_norm(nonlin_first, before, after):
    unet = SEResUNet(nonlin_first=nonlin_first, **keywords(nonlin=nn.ELU))
    for layer in unet.modules():
        if isinstance(layer, GatedConvolutions):
            assert [type(part) for part in layer.convolutions] == before
            assert [type(part) for part in layer.normalisation] == after


def test_a_block_is_its_formula():
    block, x = SEResUNet(**keywords()).encoder.stages[1].eval(), image(3, 4)
    with torch.no_grad():
        maps = block.gated.convolutions(x)
        hidden = block.gated.gate.layers[0](maps.mean((2, 3, 4))).relu()
        gate = block.gated.gate.layers[2](hidden).sigmoid()[:, :, None, None, None]
        expected = block.project(x) + gate * block.gated.normalisation(maps)
        torch.testing.assert_close(block(x), expected)


def test_the_input_is_projected_only_where_channels_or_size_change():
    strides = [[1, 1, 1], [1, 1, 1], [1, 2, 2], [2, 2, 2]]
    unet = SEResUNet(**keywords(features_per_stage=(4, 4, 4, 8), strides=strides))
    projections = [stage.project for stage in unet.encoder.stages]
    assert [type(layer) for layer in projections] == [nn.Conv3d, nn.Identity, nn.Conv3d, nn.Conv3d]
    assert {layer.kernel_size for layer in projections if isinstance(layer, nn.Conv3d)} == {(1, 1, 1)}
    assert [layer.stride for layer in projections if isinstance(layer, nn.Conv3d)][1:] == [(1, 2, 2), (2, 2, 2)]
    blocks = [layer for layer in unet.decoder.modules() if isinstance(layer, SEResBlock)]
    assert all(isinstance(block.project, nn.Conv3d) for block in blocks)


@pytest.mark.parametrize(("network", "widths"), [(SEResUNet, [4, 4, 8, 16]), (SEUNet3D, [4, 4, 4, 8])])
def test_gates_are_narrow_but_never_below_four(network, widths):
    with torch.device("meta"):
        unet = network(**keywords(features_per_stage=(16, 32, 64, 128)))
    gates = [layer for layer in unet.encoder.modules() if isinstance(layer, SqueezeExcitation)]
    assert [gate.layers[0].out_features for gate in gates] == widths


def test_layers_that_the_plans_leave_open_are_the_papers():
    empty = {"norm_op": None, "norm_op_kwargs": None, "nonlin": None, "nonlin_kwargs": None}
    kinds = {type(layer) for layer in SEResUNet(**{**keywords(2), **empty}).modules()}
    assert {nn.InstanceNorm2d, nn.ELU} <= kinds
    kinds = {type(layer) for layer in SEUNet3D(**{**keywords(3), **empty}).modules()}
    assert {nn.InstanceNorm3d, nn.LeakyReLU, nn.MaxPool3d} <= kinds


@pytest.mark.parametrize("network", [SEResUNet, SEUNet3D])
def test_dropout_of_the_plans_follows_every_convolution(network):
    unet = network(**keywords(dropout_op=nn.Dropout3d, dropout_op_kwargs={"p": 0.1}))
    assert sum(isinstance(layer, nn.Dropout3d) for layer in unet.modules()) == 4 * 2 + 3 * 2


@pytest.mark.parametrize("network", [SEResUNet, SEUNet3D])
def test_a_reduction_below_one_is_refused(network):
    with pytest.raises(ValueError, match="se_reduction must be 1 or more, got 0"):
        network(se_reduction=0, **keywords())


def test_it_learns_one_tiny_case_by_heart():
    torch.manual_seed(0)
    network = SEResUNet(**keywords(2, deep_supervision=False, nonlin=nn.ELU))
    network.apply(network.initialize)
    x = torch.randn(1, CHANNELS, 24, 32)
    labels = torch.zeros(1, 24, 32, dtype=torch.long)
    labels[:, 4:14, 6:20] = 1
    x[:, 0] += 3.0 * labels
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), labels).backward()
        optimizer.step()
    with torch.no_grad():
        found = network.eval()(x).argmax(1) == 1
    assert 2 * (found & (labels == 1)).sum() / (found.sum() + labels.sum()) > 0.95
