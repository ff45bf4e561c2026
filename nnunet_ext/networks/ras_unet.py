"""RASUNet: separable convolutions weighted voxel by voxel, for slices that are thicker than their pixels."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from typing import Any

import torch
from dynamic_network_architectures.building_blocks.helper import get_matching_dropout, get_matching_instancenorm
from torch import nn

from nnunet_ext.networks.skeleton import Decoder, Encoder, TransposedStage, UNetPlan, UNetSkeleton


class RASUNet(UNetSkeleton):
    """A 3D U-Net of residual attention-aware separable (RAS) convolutions, one per stage and direction.

    Use it on CT whose slices lie further apart than its pixels. A block has 48 C² weights, two full 3×3×3 convolutions
    have 54 C², but a training step keeps more than twice the memory: compare at equal memory, not only at equal
    weights. ``n_conv_per_stage``, ``n_conv_per_stage_decoder`` and ``kernel_sizes`` are checked and not used, because
    a RAS convolution fixes both. Train it with Adam: with nnU-Net's SGD the first steps are rough.

    Source: residual attention-aware separable U-Net for liver tumour targets on CT (50 patients, slices 3 mm apart):
    in-plane then through-plane convolution; two of them, each normalised and rectified, times their spatial attention
    (separable convolution, ReLU, separable convolution, sigmoid), plus the input; nine blocks, max-pooling, dropout 0.5
    after every block of the encoder. Differs: InstanceNorm, where the paper names none; a 1×1×1 convolution beside the
    block where the channels change, which the paper leaves out; transposed convolutions up; number of stages, widths
    and strides come from the plans; logits instead of the softmax.

    Args:
        attention: False leaves out the attention, half of the weights.
        attention_reduction: By what the attention is narrower than its block inside; 4 costs 7.7 C² instead of 24 C².
        encoder_dropout_p: Share of channels dropped after every block of the encoder, before the skip branches off;
            the ``p`` of ``dropout_op_kwargs`` overrules it, and ``dropout_op`` replaces the layer.
        through_axis: Spatial axis of the image (Z, Y, X) that runs through the slices.
        keywords: As UNetPlan, with ``conv_op`` Conv3d. Defaults are InstanceNorm, LeakyReLU and spatial dropout.

    Shape:
        image: (B, C, Z, Y, X).
        returns: logits (B, K, Z, Y, X); with deep supervision a list of ``n_stages - 1``, finest first.

    Raises:
        ValueError: two dimensions, no such axis, a reduction below 1, or keywords that do not fit together.
    """

    def __init__(
        self,
        *,
        attention: bool = True,
        attention_reduction: int = 1,
        encoder_dropout_p: float = 0.5,
        through_axis: int = 0,
        **keywords: Any,
    ) -> None:
        plan = UNetPlan(**keywords)
        if plan.dim != 3:
            raise ValueError(
                "RASUNet separates in-plane from through-plane, so conv_op must be Conv3d, "
                f"got {plan.conv_op.__name__}; use PlainConvUNet in 2D, as our planner does."
            )
        if through_axis not in range(3):
            raise ValueError(f"through_axis must be 0, 1 or 2 (Z, Y, X), got {through_axis}.")
        if attention_reduction < 1:
            raise ValueError(f"attention_reduction must be 1 or more, got {attention_reduction}.")
        plan.default(norm_op=(get_matching_instancenorm(dimension=3), {"eps": 1e-5, "affine": True}))
        plan.default(nonlin=(nn.LeakyReLU, {"inplace": True}), dropout_op=(get_matching_dropout(dimension=3), None))
        plan.dropout_op_kwargs = {"p": encoder_dropout_p, **(plan.dropout_op_kwargs or {})}
        block = partial(RASBlock, plan, through_axis=through_axis, reduction=attention_reduction if attention else None)
        widths = [plan.input_channels, *plan.features_per_stage]
        down = [
            nn.Sequential(
                OrderedDict(pool=plan.pooling(i), block=block(widths[i], widths[i + 1]), dropout=plan.dropout()[0])
            )
            for i in range(plan.n_stages)
        ]
        upward = range(plan.n_stages - 2, -1, -1)
        up = [TransposedStage(plan, i, block(2 * widths[i + 1], widths[i + 1])) for i in upward]
        decoder = Decoder(up, [plan.head(widths[i + 1]) for i in upward], plan.deep_supervision)
        super().__init__(plan.strides, Encoder(down), decoder, first_convolution="block.convolutions.0.0")


class RASBlock(nn.Module):
    """``maps * attention(maps) + projection(x)`` with ``maps`` from two separable convolutions.

    Args:
        plan: Of the network, with normalisation and activation.
        inputs: Channels of the input.
        width: Channels of the output.
        through_axis: Spatial axis through the slices.
        reduction: By what the attention is narrower inside; None is no attention.

    Shape:
        x: (B, inputs, Z, Y, X).
        returns: (B, width, Z, Y, X).
    """

    def __init__(self, plan: UNetPlan, inputs: int, width: int, *, through_axis: int, reduction: int | None) -> None:
        super().__init__()
        separable = partial(separable_convolution, plan, through_axis=through_axis)
        self.convolutions = nn.Sequential(
            separable(inputs, width), *plan.activation(width), separable(width, width), *plan.activation(width)
        )
        self.attention = None
        if reduction is not None:
            hidden = max(1, width // reduction)
            self.attention = nn.Sequential(
                separable(width, hidden), nn.ReLU(inplace=True), separable(hidden, width), nn.Sigmoid()
            )
        self.project = plan.projection(inputs, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The block's output, a new tensor."""
        maps = self.convolutions(x)
        if self.attention is not None:
            maps = maps * self.attention(maps)
        return maps + self.project(x)


def separable_convolution(plan: UNetPlan, inputs: int, outputs: int, *, through_axis: int) -> nn.Sequential:
    """A 3×3 convolution within the slices, then one of 3 through them, with nothing between."""
    in_plane, through = [3, 3, 3], [1, 1, 1]
    in_plane[through_axis], through[through_axis] = 1, 3
    return nn.Sequential(plan.convolution(inputs, outputs, in_plane), plan.convolution(outputs, outputs, through))
