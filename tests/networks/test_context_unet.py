from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import nn
from torch.nn.functional import interpolate

from nnunet_ext.networks.context_unet import ContextUNet
from tests.networks.contract import CHANNELS, CLASSES, SHAPES, NetworkContract, keywords


class TestContextUNet(NetworkContract):
    network = ContextUNet


class TestSummedContextUNet(NetworkContract):
    network = ContextUNet
    own: ClassVar[dict[str, Any]] = {"supervision": "sum"}

    def test_every_parameter_gets_a_gradient_without_deep_supervision_too(self):
        network = self.build(deep_supervision=False)
        network(self.image()).square().mean().backward()
        assert [name for name, p in network.named_parameters() if p.grad is None] == []

    def test_the_output_is_the_sum_of_three_upsampled_heads(self):
        network, seen = self.build(n_stages=5, features_per_stage=4, strides=[1, 2, 2, 2, 1], kernel_sizes=3,
                                   n_conv_per_stage=2, n_conv_per_stage_decoder=2).eval(), []  # fmt: skip
        assert len(network.decoder.seg_layers) == 3
        for head in network.decoder.seg_layers:
            head.register_forward_hook(lambda _, __, output: seen.append(output))
        with torch.no_grad():
            outputs = network(self.image(3, 8, 16, 16))
        coarse, middle, fine = seen
        middle = middle + interpolate(coarse, scale_factor=2, mode="nearest")
        fine = fine + interpolate(middle, scale_factor=2, mode="nearest")
        for output, expected in zip(outputs, (fine, middle, coarse), strict=False):
            torch.testing.assert_close(output, expected)
        torch.testing.assert_close(outputs[3], nn.AvgPool3d(2)(coarse))


def stage_convolutions(network: nn.Module) -> list[list[nn.Conv3d]]:
    return [[layer for layer in stage.context if isinstance(layer, nn.Conv3d)] for stage in network.encoder.stages]


def test_the_two_convolutions_of_a_context_block_are_two():
    for first, second in stage_convolutions(ContextUNet(**keywords())):
        assert first.weight.data_ptr() != second.weight.data_ptr()
        assert not torch.equal(first.weight, second.weight)


def test_a_context_block_adds_to_what_enters_it():
    stage = ContextUNet(**keywords()).encoder.stages[1].eval()
    image = torch.randn(1, 4, *SHAPES[3])
    last = stage.context[-1]
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    with torch.no_grad():
        torch.testing.assert_close(stage(image), stage.enter(image), rtol=0, atol=0)


def test_layers_stand_in_the_order_of_the_paper():
    kinds = [type(layer) for layer in ContextUNet(**keywords()).encoder.stages[0].context]
    norm, conv = nn.InstanceNorm3d, nn.Conv3d
    assert kinds == [norm, nn.LeakyReLU, conv, nn.Dropout3d, norm, nn.LeakyReLU, conv]
    kernels = [m.kernel_size for m in ContextUNet(**keywords()).decoder.stages[0].localisation if isinstance(m, conv)]
    assert kernels == [(3, 3, 3), (1, 1, 1)]


def test_dropout_acts_in_training_alone():
    network, image = ContextUNet(**keywords(deep_supervision=False)), torch.randn(1, CHANNELS, *SHAPES[3])
    with torch.no_grad():
        assert not torch.equal(network(image), network(image))
        network.eval()
        assert torch.equal(network(image), network(image))


def test_dropout_takes_whole_channels_with_the_probability_asked_for():
    given = keywords(2, features_per_stage=1000, n_stages=2, strides=1, kernel_sizes=1, n_conv_per_stage=2,
                     n_conv_per_stage_decoder=1)  # fmt: skip
    stage = ContextUNet(context_dropout_p=0.25, **given).encoder.stages[0].train()
    dropout = next(layer for layer in stage.context if isinstance(layer, nn.Dropout2d))
    dropped = (dropout(torch.ones(1, 1000, 4, 4)) == 0).float().mean((0, 2, 3))
    assert set(dropped.tolist()) == {0.0, 1.0}
    assert dropped.mean().item() == pytest.approx(0.25, abs=0.05)


@pytest.mark.parametrize(
    ("changes", "kind", "p"),
    [
        ({}, nn.Dropout3d, 0.3),
        ({"context_dropout_p": 0.1}, nn.Dropout3d, 0.1),
        ({"dropout_op": nn.Dropout, "context_dropout_p": 0.2}, nn.Dropout, 0.2),
        ({"dropout_op": nn.Dropout3d, "dropout_op_kwargs": {"p": 0.4}}, nn.Dropout3d, 0.4),
    ],
)
def test_dropout_follows_the_plans(changes, kind, p):
    network = ContextUNet(**{**keywords(), **changes})
    found = [layer for layer in network.modules() if isinstance(layer, nn.Dropout3d | nn.Dropout)]
    assert {(type(layer), layer.p) for layer in found} == {(kind, p)}


def test_layers_that_the_plans_leave_open_are_instance_norm_and_leaky_relu():
    empty = {"norm_op": None, "norm_op_kwargs": None, "nonlin": None, "nonlin_kwargs": None}
    kinds = {type(layer) for layer in ContextUNet(**{**keywords(2), **empty}).modules()}
    assert {nn.InstanceNorm2d, nn.LeakyReLU, nn.Dropout2d} <= kinds


def test_an_unknown_supervision_is_refused():
    with pytest.raises(ValueError, match=r"'aux', 'sum'.*got 'deep'"):
        ContextUNet(**keywords(), supervision="deep")


@pytest.mark.parametrize("supervision", ["aux", "sum"])
def test_it_learns_one_tiny_case_by_heart(supervision):
    torch.manual_seed(0)
    network = ContextUNet(**keywords(2, deep_supervision=False, features_per_stage=4), supervision=supervision)
    network.apply(network.initialize)
    image = torch.randn(1, CHANNELS, 24, 32)
    labels = torch.zeros(1, 24, 32, dtype=torch.long)
    labels[:, 4:10, 6:12], labels[:, 14:20, 18:26] = 1, 2
    image[:, 0] += 3.0 * labels
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(image), labels).backward()
        optimizer.step()
    with torch.no_grad():
        predicted = network.eval()(image).argmax(1)
    assert (predicted == labels).float().mean().item() > 0.97
    assert {CLASSES} == {network(image).shape[1]}
