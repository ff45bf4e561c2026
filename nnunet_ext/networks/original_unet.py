"""OriginalUNet: the 3D U-Net of 2016, with max-pooling and batch normalisation."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from dynamic_network_architectures.building_blocks.helper import get_matching_batchnorm
from torch import nn

from nnunet_ext.networks.skeleton import Decoder, Encoder, UNetPlan, UNetSkeleton, cropped


class OriginalUNet(UNetSkeleton):
    """The first 3D U-Net: Conv-BN-ReLU twice per stage, max-pooling down, transposed convolutions up.

    Use it to repeat published work that was built on it, such as a localiser; for new models PlainConvUNet is
    better. ``features_per_stage`` is the width of a stage's first convolutions; its last one doubles it, so the
    paper's network is ``[32, 64, 128, 256]``, which ends at 512.

    Source: Çiçek et al. 2016 (3D U-Net: learning dense volumetric segmentation from sparse annotation, MICCAI),
    section 2 and figure 2: channels are doubled before max-pooling, transposed convolutions keep them. In 2D it is the
    same scheme after Ronneberger et al. 2015 (U-Net, MICCAI). With the paper's four stages, three inputs and three
    classes its kernels, with one offset per channel, are the paper's 19 069 955 parameters. Differs: padded
    convolutions, so that output and input have one size; number of stages, strides and kernels come from the plans;
    heads for nnU-Net's deep supervision on every stage of the way up; logits instead of the softmax.

    Args:
        keywords: As UNetPlan. Defaults are BatchNorm and ReLU. The default BatchNorm takes the statistics of the batch
            at hand also at prediction, which the paper found best with its batch of one. A dropout layer,
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
        plan.default(norm_op=(norm, dict(BATCH_STATISTICS)), nonlin=(nn.ReLU, {"inplace": True}))
        outputs = [2 * width for width in plan.features_per_stage]
        inputs = [plan.input_channels, *outputs]
        encoder = Encoder([_PooledStage(plan, inputs[i], i) for i in range(plan.n_stages)])
        upward = range(plan.n_stages - 2, -1, -1)
        stages = [_TransposedStage(plan, outputs[i + 1], outputs[i], i) for i in upward]
        heads = [plan.head(outputs[i]) for i in upward]
        decoder = Decoder(stages, heads, plan.deep_supervision)
        super().__init__(plan.strides, encoder, decoder, first_convolution="convolutions.0")


BATCH_STATISTICS: dict[str, Any] = {"eps": 1e-5, "affine": True, "track_running_stats": False}
"""Arguments of a BatchNorm that normalises by the batch at hand, in training and at prediction."""


def _convolutions(plan: UNetPlan, widths: list[int], kernel: list[int]) -> nn.Sequential:
    """Conv-(dropout)-norm-activation from each width to the next."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [plan.convolution(inputs, outputs, kernel), *plan.dropout(), *plan.activation(outputs)]
    return nn.Sequential(*layers)


class _PooledStage(nn.Module):
    """Max-pooling where the stage is coarser, then convolutions, the last of which doubles the channels."""

    def __init__(self, plan: UNetPlan, inputs: int, stage: int) -> None:
        super().__init__()
        width = plan.features_per_stage[stage]
        self.pool = plan.pooling(stage)
        widths = [inputs, *[width] * (plan.n_conv_per_stage[stage] - 1), 2 * width]
        self.convolutions = _convolutions(plan, widths, plan.kernel_sizes[stage])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, …) to (B, 2·width, … / stride)."""
        return self.convolutions(self.pool(x))


class _TransposedStage(nn.Module):
    """Transposed convolution that keeps the channels, join the skip, then convolutions."""

    def __init__(self, plan: UNetPlan, below: int, width: int, stage: int) -> None:
        super().__init__()
        self.upward = plan.transposed(below, below, stage)
        count = plan.n_conv_per_stage_decoder[plan.n_stages - 2 - stage]
        self.convolutions = _convolutions(plan, [below + width, *[width] * count], plan.kernel_sizes[stage])

    def forward(self, below: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        """(B, C, coarse) and (B, width, fine) to (B, width, fine)."""
        return self.convolutions(torch.cat([skip, cropped(self.upward(below), skip)], 1))
