"""ContextUNet: strided convolutions down, residual context blocks, localisation blocks up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from dynamic_network_architectures.building_blocks.helper import get_matching_dropout, get_matching_instancenorm
from torch import nn
from torch.nn.functional import interpolate

from nnunet_ext.networks.skeleton import Decoder, Encoder, UNetPlan, UNetSkeleton

Supervision = Literal["aux", "sum"]

SUMMED_LEVELS = 3
"""Segmentation levels that are added; Isensee et al. 2017, figure 1."""


class ContextUNet(UNetSkeleton):
    """A residual U-Net with dropout inside its blocks, for organs of a few voxels in a small region.

    Use it on regions cut around one organ; on whole volumes PlainConvUNet learns faster. ``n_conv_per_stage`` counts
    the convolutions of a context block and ``n_conv_per_stage_decoder`` those of a localisation block, the last of
    which is 1×1; nnU-Net's planner gives 2 for both, which is the paper's network.

    Source: Isensee et al. 2017 (Brain tumor segmentation and radiomics survival prediction: contribution to the BRATS
    2017 challenge, BrainLes at MICCAI), network architecture and figure 1; base 16, five stages, dropout 0.3. Differs:
    the first convolution of a localisation block already writes the stage's channels, as in the widely used
    re-implementation ``isensee2017_model``; the finest stage has a localisation block too; number of stages, strides
    and kernels come from the plans; by default every stage has an auxiliary loss (Zeng et al. 2017, 3D U-net with
    multi-level deep supervision, MLMI) in place of the sum; logits instead of the softmax.

    Args:
        context_dropout_p: Share of channels dropped between two convolutions of a context block; the ``p`` of
            ``dropout_op_kwargs`` overrules it.
        supervision: "aux": one output per stage, as nnU-Net's networks. "sum": the output is the sum of the three
            finest heads, each upsampled to the next (the paper's, which has no other output: train it with
            ``deep_supervision`` off). With deep supervision on it gives the three partial sums, and for coarser stages
            the coarsest of them averaged down. No head is ever unused, so DDP works either way.
        keywords: As UNetPlan. Defaults are InstanceNorm, LeakyReLU and spatial dropout; ``dropout_op`` replaces the
            dropout layer of the context blocks.

    Shape:
        image: (B, C, [Z,] Y, X).
        returns: logits (B, K, [Z,] Y, X); with deep supervision a list of ``n_stages - 1``, finest first.

    Raises:
        ValueError: unknown ``supervision``, or keywords that do not fit together.
    """

    def __init__(self, *, context_dropout_p: float = 0.3, supervision: Supervision = "aux", **keywords: Any) -> None:
        if supervision not in get_args(Supervision):
            raise ValueError(f"supervision must be one of {get_args(Supervision)}, got {supervision!r}.")
        plan = UNetPlan(**keywords)
        norm = get_matching_instancenorm(dimension=plan.dim)
        plan.default(norm_op=(norm, {"eps": 1e-5, "affine": True}), nonlin=(nn.LeakyReLU, {"inplace": True}))
        plan.default(dropout_op=(get_matching_dropout(dimension=plan.dim), None))
        plan.dropout_op_kwargs = {"p": context_dropout_p, **(plan.dropout_op_kwargs or {})}
        widths = [plan.input_channels, *plan.features_per_stage]
        encoder = Encoder([_ContextStage(plan, widths[i], i) for i in range(plan.n_stages)])
        upward = range(plan.n_stages - 2, -1, -1)
        stages = [_LocalisationStage(plan, i) for i in upward]
        heads = [plan.head(plan.features_per_stage[i]) for i in upward]
        decoder = (
            Decoder(stages, heads, plan.deep_supervision)
            if supervision == "aux"
            else SummingDecoder(stages, heads[-SUMMED_LEVELS:], plan.deep_supervision)
        )
        super().__init__(plan.strides, encoder, decoder, first_convolution="enter")


class _ContextStage(nn.Module):
    """``enter = conv(x); enter + context(enter)``, a pre-activation residual block after a strided convolution."""

    def __init__(self, plan: UNetPlan, inputs: int, stage: int) -> None:
        super().__init__()
        width, kernel = plan.features_per_stage[stage], plan.kernel_sizes[stage]
        self.enter = plan.convolution(inputs, width, kernel, plan.strides[stage])
        layers: list[nn.Module] = []
        for i in range(plan.n_conv_per_stage[stage]):
            if i > 0:
                layers += plan.dropout()
            layers += plan.activation(width, keep_input=i == 0)
            layers.append(plan.convolution(width, width, kernel))
        self.context = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, …) to (B, width, … / stride)."""
        x = self.enter(x)
        return x + self.context(x)


class _LocalisationStage(nn.Module):
    """Upsample by repetition, convolve, join the skip, and reduce: 3×3×3 then 1×1×1."""

    def __init__(self, plan: UNetPlan, stage: int) -> None:
        super().__init__()
        width, below = plan.features_per_stage[stage], plan.features_per_stage[stage + 1]
        kernel, point = plan.kernel_sizes[stage], [1] * plan.dim
        self.upward = nn.Sequential(plan.convolution(below, width, kernel), *plan.activation(width))
        count = plan.n_conv_per_stage_decoder[plan.n_stages - 2 - stage]
        layers: list[nn.Module] = []
        for i in range(count):
            edges = point if 0 < i == count - 1 else kernel
            layers += [plan.convolution(width if i else 2 * width, width, edges), *plan.activation(width)]
        self.localisation = nn.Sequential(*layers)

    def forward(self, below: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        """(B, C, coarse) and (B, width, fine) to (B, width, fine)."""
        up = self.upward(interpolate(below, size=skip.shape[2:], mode="nearest"))
        return self.localisation(torch.cat([skip, up], 1))


class SummingDecoder(Decoder):
    """A decoder whose output is the sum of its heads: ``s_i = head_i + upsampled s_(i+1)``."""

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor | list[torch.Tensor]:
        """The finest sum; with deep supervision every sum, and for coarser stages averages of the coarsest one."""
        merged = self.merged(maps)
        sums: list[torch.Tensor] = []
        for head, y in zip(self.seg_layers, reversed(merged[: len(self.seg_layers)]), strict=True):
            logits = head(y)
            if sums:
                logits = logits + interpolate(sums[-1], size=y.shape[2:], mode="nearest")
            sums.append(logits)
        sums.reverse()
        if not self.deep_supervision:
            return sums[0]
        for y in merged[len(sums) :]:
            sums.append(interpolate(sums[-1], size=y.shape[2:], mode="area"))
        return sums

    def heads_used(self) -> int:
        """All of them."""
        return len(self.seg_layers)
