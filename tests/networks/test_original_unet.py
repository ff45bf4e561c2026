from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from nnunet_ext.networks.original_unet import BATCH_STATISTICS, OriginalUNet
from tests.networks.contract import NetworkContract, keywords

PAPER_PARAMETERS = 19_069_955
"""Çiçek et al. 2016, section 2."""

PAPER = {
    "input_channels": 3,
    "num_classes": 3,
    "n_stages": 4,
    "features_per_stage": [32, 64, 128, 256],
    "kernel_sizes": 3,
    "strides": [1, 2, 2, 2],
    "n_conv_per_stage": 2,
    "n_conv_per_stage_decoder": 2,
}


class TestOriginalUNet(NetworkContract):
    network = OriginalUNet


class TestOriginalUNetWithBatchNorm(NetworkContract):
    network = OriginalUNet

    def given(self, dim: int = 3) -> dict[str, Any]:
        norm = nn.BatchNorm3d if dim == 3 else nn.BatchNorm2d
        return keywords(dim, norm_op=norm, norm_op_kwargs=BATCH_STATISTICS, nonlin=nn.ReLU)


def test_the_papers_network_has_the_papers_size_and_widths():
    with torch.device("meta"):
        network = OriginalUNet(**{**keywords(), **PAPER})
    convolutions = [m for m in network.modules() if isinstance(m, _ConvNd) and m.kernel_size != (1, 1, 1)]
    offsets = sum(m.out_channels for m in convolutions if not isinstance(m, _ConvTransposeNd))
    head = sum(p.numel() for p in network.decoder.seg_layers[-1].parameters())
    assert sum(m.weight.numel() for m in convolutions) + offsets + head == PAPER_PARAMETERS
    down = [m.out_channels for m in network.encoder.modules() if isinstance(m, _ConvNd)]
    assert down == [32, 64, 64, 128, 128, 256, 256, 512]
    assert [stage.upward.out_channels for stage in network.decoder.stages] == [512, 256, 128]


def test_pooling_takes_the_maximum_and_the_finest_stage_has_none():
    pools = [stage.pool for stage in OriginalUNet(**keywords()).encoder.stages]
    assert isinstance(pools[0], nn.Identity)
    assert [pool.kernel_size for pool in pools[1:]] == keywords()["strides"][1:]
    assert all(type(pool) is nn.MaxPool3d for pool in pools[1:])


def test_layers_that_the_plans_leave_open_are_the_papers():
    empty = {"norm_op": None, "norm_op_kwargs": None, "nonlin": None, "nonlin_kwargs": None}
    network = OriginalUNet(**{**keywords(), **empty})
    assert [type(layer) for layer in network.encoder.stages[0].convolutions] == 2 * [
        nn.Conv3d,
        nn.BatchNorm3d,
        nn.ReLU,
    ]


def test_batch_statistics_are_used_at_prediction_too():
    empty = {"norm_op": None, "norm_op_kwargs": None}
    network, image = OriginalUNet(**{**keywords(deep_supervision=False), **empty}), torch.randn(1, 2, 6, 16, 24)
    with torch.no_grad():
        assert torch.equal(network.train()(image), network.eval()(image))


def test_dropout_of_the_plans_follows_every_convolution():
    network = OriginalUNet(**keywords(dropout_op=nn.Dropout3d, dropout_op_kwargs={"p": 0.1}))
    assert sum(isinstance(layer, nn.Dropout3d) for layer in network.modules()) == 4 * 2 + 3 * 2
