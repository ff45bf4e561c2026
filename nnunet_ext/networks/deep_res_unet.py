"""DeepResUNet: pre-activation residual units and upsampling without weights."""

from __future__ import annotations

from typing import Any

import torch
from dynamic_network_architectures.building_blocks.helper import get_matching_batchnorm
from torch import nn
from torch.nn.functional import interpolate

from nnunet_ext.networks.skeleton import Decoder, Encoder, UNetPlan, UNetSkeleton


class DeepResUNet(UNetSkeleton):
    """The deep residual U-Net: one unit per stage and direction, strided convolutions down, interpolation up.

    Use it to repeat published work that was built on it, in 2D mostly; it has three quarters of a U-Net's
    convolutions. ``n_conv_per_stage`` and ``n_conv_per_stage_decoder`` count the convolutions of a unit, two in the
    paper, whose network is ``features_per_stage=[64, 128, 256, 512]`` with ``strides=[1, 2, 2, 2]``.

    Source: Zhang et al. 2018 (Road extraction by deep residual U-Net, IEEE Geoscience and Remote Sensing Letters),
    table I and figure 2: norm-activation-convolution twice, the first with the stride; the first unit begins with a
    convolution. As in the paper nothing normalises after the last unit. Differs: a 1×1 convolution beside a unit that
    changes channels or size (the paper says identity mapping, which cannot); linear interpolation; number of stages,
    widths, strides and kernels come from the plans; a head on every stage of the way up; 3D too; logits instead of the
    sigmoid.

    Args:
        keywords: As UNetPlan. Defaults are BatchNorm and ReLU; our planner asks for InstanceNorm. A dropout layer,
            where the plans name one, follows every convolution.

    Shape:
        image: (B, C, [Z,] Y, X).
        returns: logits (B, K, [Z,] Y, X); with deep supervision a list of ``n_stages - 1``, finest first.

    Raises:
        ValueError: keywords that do not fit together.
    """

    def __init__(self, **keywords: Any) -> None:
        plan = UNetPlan(**keywords)
        norm = get_matching_batchnorm(dimension=plan.dim)
        plan.default(norm_op=(norm, {"eps": 1e-5, "affine": True}), nonlin=(nn.ReLU, {"inplace": True}))
        widths = [plan.input_channels, *plan.features_per_stage]
        down = [
            ResidualUnit(plan, widths[i], i, plan.strides[i], plan.n_conv_per_stage[i], at_image=i == 0)
            for i in range(plan.n_stages)
        ]
        upward = range(plan.n_stages - 2, -1, -1)
        up = [_InterpolatedStage(plan, i) for i in upward]
        decoder = Decoder(up, [plan.head(widths[i + 1]) for i in upward], plan.deep_supervision)
        super().__init__(plan.strides, Encoder(down), decoder, first_convolution="convolutions.0")


class ResidualUnit(nn.Module):
    """``shortcut(x) + convolutions(x)``, normalised and activated before each convolution.

    Args:
        plan: Of the network, with normalisation and activation.
        inputs: Channels of the input.
        stage: Whose width and kernel it has.
        stride: Of the first convolution and the shortcut.
        count: Number of convolutions.
        at_image: Begin with a convolution.
    """

    def __init__(
        self, plan: UNetPlan, inputs: int, stage: int, stride: list[int], count: int, *, at_image: bool = False
    ) -> None:
        super().__init__()
        width, kernel = plan.features_per_stage[stage], plan.kernel_sizes[stage]
        layers: list[nn.Module] = []
        for i in range(count):
            channels = width if i else inputs
            if i > 0 or not at_image:
                layers += plan.activation(channels, keep_input=i == 0)
            layers += [plan.convolution(channels, width, kernel, 1 if i else stride), *plan.dropout()]
        self.convolutions = nn.Sequential(*layers)
        self.shortcut = plan.projection(inputs, width, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, …) to (B, width, … / stride)."""
        return self.shortcut(x) + self.convolutions(x)


class _InterpolatedStage(nn.Module):
    """Interpolate, join the skip, then a unit."""

    def __init__(self, plan: UNetPlan, stage: int) -> None:
        super().__init__()
        self.mode = {2: "bilinear", 3: "trilinear"}[plan.dim]
        joined = plan.features_per_stage[stage] + plan.features_per_stage[stage + 1]
        count = plan.n_conv_per_stage_decoder[plan.n_stages - 2 - stage]
        self.unit = ResidualUnit(plan, joined, stage, [1] * plan.dim, count)

    def forward(self, below: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        """(B, C, coarse) and (B, width, fine) to (B, width, fine)."""
        return self.unit(torch.cat([skip, interpolate(below, size=skip.shape[2:], mode=self.mode)], 1))
