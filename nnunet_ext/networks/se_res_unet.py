"""SEResUNet: residual blocks with squeeze-and-excitation and ELU."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from dynamic_network_architectures.building_blocks.helper import get_matching_instancenorm
from torch import nn

from nnunet_ext.networks.skeleton import Decoder, Encoder, TransposedStage, UNetPlan, UNetSkeleton
from nnunet_ext.networks.squeeze_excitation import GatedConvolutions


class SEResUNet(UNetSkeleton):
    """A U-Net whose stages are residual blocks, each gated channel by channel.

    Use it alone, or inside RefinementUNet as the CTV paper does. The paper's gains per step (residual, gate,
    refinement, Dice) are 0.002 to 0.006 of Dice on 340 cases: do not expect to see them on a small set.
    ``n_conv_per_stage`` and ``n_conv_per_stage_decoder`` count the convolutions of a block, two in the paper.

    Source: clinical target volume of cervical cancer on CT (340 series, three folds): 3D U-Net whose modules are
    convolution, ELU and norm, with residual blocks (He et al. 2016) and squeeze-and-excitation (Hu et al. 2018).
    Differs: the gate is squeezed before the norm, because after it it is constant; it is narrower by 8 inside, at least
    4 channels, because the paper gives no number; InstanceNorm instead of BatchNorm of one case; strided convolutions
    down; the projection has no norm; number of stages, widths, strides and kernels come from the plans; logits instead
    of the softmax.

    Args:
        se_reduction: By what the gate is narrower inside than its block.
        nonlin_first: Activation before normalisation, as the paper.
        keywords: As UNetPlan. Defaults are InstanceNorm and ELU. A dropout layer, where the plans name one, follows
            every convolution.

    Shape:
        image: (B, C, [Z,] Y, X).
        returns: logits (B, K, [Z,] Y, X); with deep supervision a list of ``n_stages - 1``, finest first.

    Raises:
        ValueError: a reduction below 1, or keywords that do not fit together.
    """

    def __init__(self, *, se_reduction: int = 8, nonlin_first: bool = True, **keywords: Any) -> None:
        plan = UNetPlan(nonlin_first=nonlin_first, **keywords)
        norm = get_matching_instancenorm(dimension=plan.dim)
        plan.default(norm_op=(norm, {"eps": 1e-5, "affine": True}), nonlin=(nn.ELU, {"inplace": True}))
        block = partial(SEResBlock, plan, reduction=se_reduction)
        widths = [plan.input_channels, *plan.features_per_stage]
        down = [
            block(widths[i], i, stride=plan.strides[i], count=plan.n_conv_per_stage[i]) for i in range(plan.n_stages)
        ]
        upward, counts = range(plan.n_stages - 2, -1, -1), plan.n_conv_per_stage_decoder
        up = [
            TransposedStage(plan, i, block(2 * widths[i + 1], i, stride=[1] * plan.dim, count=count))
            for i, count in zip(upward, counts, strict=True)
        ]
        decoder = Decoder(up, [plan.head(widths[i + 1]) for i in upward], plan.deep_supervision)
        super().__init__(plan.strides, Encoder(down), decoder, first_convolution="gated.convolutions.0")


class SEResBlock(nn.Module):
    """``projection(x) + gated convolutions(x)``; the projection is there only where channels or size change."""

    def __init__(
        self, plan: UNetPlan, inputs: int, stage: int, *, stride: list[int], count: int, reduction: int
    ) -> None:
        super().__init__()
        width, kernel = plan.features_per_stage[stage], plan.kernel_sizes[stage]
        self.gated = GatedConvolutions(plan, inputs, width, kernel, stride, count, reduction)
        self.project = plan.projection(inputs, width, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, …) to (B, width, … / stride)."""
        return self.project(x) + self.gated(x)
