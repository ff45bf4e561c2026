"""SEUNet3D: the 3D U-Net with squeeze-and-excitation, a baseline."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from typing import Any

from dynamic_network_architectures.building_blocks.helper import get_matching_instancenorm
from torch import nn

from nnunet_ext.networks.skeleton import Decoder, Encoder, TransposedStage, UNetPlan, UNetSkeleton
from nnunet_ext.networks.squeeze_excitation import GatedConvolutions


class SEUNet3D(UNetSkeleton):
    """Two convolutions per stage, gated channel by channel; max-pooling down, transposed convolutions up.

    Use it as the rival that RASUNet was compared with; SEResUNet is the one to train otherwise.

    Source: the "SE U-Net" in the table of the RAS U-Net paper, which describes no layer of it; so the blocks are Çiçek
    et al. 2016 (3D U-Net, MICCAI) with the gate of Hu et al. 2018 (Squeeze-and-excitation networks, CVPR), reduction
    16, at the end of every stage. Differs: squeezed before the norm; InstanceNorm; a stage has one width, as nnU-Net's;
    number of stages, widths, strides and kernels come from the plans. The same scheme in 2D.

    Args:
        se_reduction: By what the gate is narrower inside than its stage, never below 4 channels.
        keywords: As UNetPlan. Defaults are InstanceNorm and LeakyReLU. A dropout layer, where the plans name one,
            follows every convolution.

    Shape:
        image: (B, C, [Z,] Y, X).
        returns: logits (B, K, [Z,] Y, X); with deep supervision a list of ``n_stages - 1``, finest first.

    Raises:
        ValueError: a reduction below 1, or keywords that do not fit together.
    """

    def __init__(self, *, se_reduction: int = 16, **keywords: Any) -> None:
        plan = UNetPlan(**keywords)
        norm = get_matching_instancenorm(dimension=plan.dim)
        plan.default(norm_op=(norm, {"eps": 1e-5, "affine": True}), nonlin=(nn.LeakyReLU, {"inplace": True}))
        block = partial(GatedConvolutions, plan, stride=1, reduction=se_reduction)
        widths, kernels = [plan.input_channels, *plan.features_per_stage], plan.kernel_sizes
        down = [
            nn.Sequential(
                OrderedDict(
                    pool=plan.pooling(i),
                    block=block(widths[i], widths[i + 1], kernels[i], count=plan.n_conv_per_stage[i]),
                )
            )
            for i in range(plan.n_stages)
        ]
        upward, counts = range(plan.n_stages - 2, -1, -1), plan.n_conv_per_stage_decoder
        up = [
            TransposedStage(plan, i, block(2 * widths[i + 1], widths[i + 1], kernels[i], count=count))
            for i, count in zip(upward, counts, strict=True)
        ]
        decoder = Decoder(up, [plan.head(widths[i + 1]) for i in upward], plan.deep_supervision)
        super().__init__(plan.strides, Encoder(down), decoder, first_convolution="block.convolutions.0")
