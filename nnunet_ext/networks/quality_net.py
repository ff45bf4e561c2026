"""QualityNet: one number for an image and its contours, which tells how well they fit."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.functional import max_pool2d, max_pool3d

GROUPS = 8
"""Of the normalisation; batch normalisation would mix clean samples with noisy ones and fail at batch 1."""


class QualityNet(nn.Module):
    """VGG-like blocks over image and labels, then one signed channel and its mean.

    Use it as the quality awareness module (QAM) beside a segmenter; prediction does not need it.

    Source: QAM of Zhu, Shi, Wu 2019 (Pick-and-Learn, MICCAI): a VGG network on image and label whose last layer is
    replaced by one-channel average pooling. Differs: widths 16 to 128 and GroupNorm. The head has no activation: an
    average of ReLU features, as one re-implementation has it, gives scores of one sign and halves the range of λ tanh.

    Args:
        input_channels: Channels of the image plus those of the labels.
        dim: 2 or 3.
        widths: Channels of the blocks, multiples of 8; two convolutions and a max-pooling each.
        strides: Of the poolings, one list per block; None is 2 everywhere. The first convolutions see full resolution,
            because noise of one voxel must be visible.

    Shape:
        inputs: (B, C, [Z,] Y, X), any size; an axis shorter than its stride is pooled to 1 and left alone from there.
        returns: (B,), any sign, in single precision at least.

    Raises:
        ValueError: widths and strides that do not fit together.
    """

    def __init__(
        self,
        input_channels: int,
        dim: int,
        widths: Sequence[int] = (16, 32, 64, 128),
        strides: Sequence[Sequence[int]] | None = None,
    ) -> None:
        super().__init__()
        strides = [[2] * dim] * len(widths) if strides is None else strides
        if not widths or any(width % GROUPS for width in widths):
            raise ValueError(f"widths must be multiples of {GROUPS}, one per block, got {list(widths)}.")
        if len(strides) != len(widths) or any(len(stride) != dim for stride in strides):
            raise ValueError(f"expected {len(widths)} strides of {dim} numbers, got {[list(s) for s in strides]}.")
        self.strides = [tuple(stride) for stride in strides]
        self.dim = dim
        convolution = nn.Conv2d if dim == 2 else nn.Conv3d
        inputs = [input_channels, *widths[:-1]]
        self.blocks = nn.ModuleList(_block(convolution, i, width) for i, width in zip(inputs, widths, strict=True))
        self.head = convolution(widths[-1], 1, 1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """One answer per sample."""
        pool, x = max_pool2d if self.dim == 2 else max_pool3d, inputs
        for block, stride in zip(self.blocks, self.strides, strict=True):
            x = block(x)
            kernel = [min(s, n) for s, n in zip(stride, x.shape[2:], strict=True)]
            x = pool(x, kernel, kernel, ceil_mode=True)
        answers = self.head(x)
        return answers.to(torch.promote_types(answers.dtype, torch.float32)).flatten(1).mean(1)


def _block(convolution: type[nn.Module], inputs: int, width: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (inputs, width):
        layers += [convolution(channels, width, 3, padding=1), nn.GroupNorm(GROUPS, width), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)
