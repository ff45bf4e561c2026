from __future__ import annotations

import pytest
import torch
from torch import nn

from nnunet_ext.networks.deep_res_unet import DeepResUNet
from tests.networks.contract import NetworkContract, keywords

PAPER = {
    "input_channels": 3,
    "num_classes": 1,
    "n_stages": 4,
    "features_per_stage": [64, 128, 256, 512],
    "kernel_sizes": 3,
    "strides": [1, 2, 2, 2],
    "norm_op": None,
    "norm_op_kwargs": None,
    "nonlin": None,
    "nonlin_kwargs": None,
    "deep_supervision": False,
}


class TestDeepResUNet(NetworkContract):
    network = DeepResUNet


def test_the_papers_network_has_the_papers_convolutions():
    """Table I of Zhang et al. 2018: 15 convolutions, the shortcuts aside."""
    with torch.device("meta"):
        network = DeepResUNet(**{**keywords(2), **PAPER})
    convolutions = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    threes = [layer for layer in convolutions if layer.kernel_size == (3, 3)]
    assert [layer.out_channels for layer in threes] == [
        *(64, 64, 128, 128, 256, 256, 512, 512),
        *(256, 256, 128, 128, 64, 64),
    ]
    assert [layer.stride[0] for layer in threes] == [1, 1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 1, 1]
    assert [stage.unit.convolutions[2].in_channels for stage in network.decoder.stages] == [768, 384, 192]
    assert network(torch.empty(1, 3, 224, 224, device="meta")).shape == (1, 1, 224, 224)


def test_units_are_pre_activated_and_the_first_begins_with_a_convolution():
    with torch.device("meta"):
        network = DeepResUNet(**{**keywords(2), **PAPER})
    first, second = ([type(layer) for layer in stage.convolutions] for stage in network.encoder.stages[:2])
    assert first == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.Conv2d]
    assert second == [nn.BatchNorm2d, nn.ReLU, nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.Conv2d]


def test_a_shortcut_is_a_convolution_only_where_channels_or_size_change():
    strides = [[1, 1, 1], [1, 1, 1], [1, 2, 2], [2, 2, 2]]
    network = DeepResUNet(**keywords(features_per_stage=(4, 4, 4, 8), strides=strides))
    kinds = [type(stage.shortcut) for stage in network.encoder.stages]
    assert kinds == [nn.Conv3d, nn.Identity, nn.Conv3d, nn.Conv3d]


@pytest.mark.parametrize("nonlin_first", [False, True])
def test_a_unit_leaves_its_input_as_it_was(nonlin_first):
    unit = DeepResUNet(**keywords(features_per_stage=4, strides=1, nonlin_first=nonlin_first)).encoder.stages[1]
    x = torch.randn(1, 4, 5, 6, 7)
    before = x.clone()
    with torch.no_grad():
        unit(x)
    assert torch.equal(x, before)


def test_the_way_up_interpolates_without_weights():
    network = DeepResUNet(**keywords())
    assert not any(isinstance(layer, nn.ConvTranspose3d) for layer in network.modules())
    stage = network.decoder.stages[-1]
    seen = []
    stage.unit.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    below, skip = torch.ones(1, 5, 3, 4, 4), torch.zeros(1, 4, 3, 8, 8)
    with torch.no_grad():
        stage(below, skip)
    joined = seen[0]
    assert joined.shape == (1, 9, 3, 8, 8)
    assert (joined[:, :4] == 0).all()
    torch.testing.assert_close(joined[:, 4:], torch.ones(1, 5, 3, 8, 8))


def test_dropout_of_the_plans_follows_every_convolution_of_a_unit():
    network = DeepResUNet(**keywords(dropout_op=nn.Dropout3d, dropout_op_kwargs={"p": 0.1}))
    assert sum(isinstance(layer, nn.Dropout3d) for layer in network.modules()) == 4 * 2 + 3 * 2
