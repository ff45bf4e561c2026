"""Squeeze-and-excitation that works: all spatial axes, squeezed before the normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from nnunet_ext.networks.skeleton import UNetPlan


class SqueezeExcitation(nn.Module):
    """One weight per channel, from the means of all channels.

    Put it before a normalisation, never after: after InstanceNorm, or BatchNorm of one case, the mean of a channel is
    the norm's offset, equal for every image, and the gate says nothing.

    Source: Hu et al. 2018 (Squeeze-and-excitation networks, CVPR), equations 2 and 3. Differs: the mean over three
    axes in 3D.

    Args:
        channels: Of the maps.
        hidden: Width between the two layers.

    Shape:
        maps: (B, channels, [Z,] Y, X).
        returns: (B, channels, [1,] 1, 1), between 0 and 1.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        # not convolutions: nnU-Net's planner counts what those write
        self.layers = nn.Sequential(
            nn.Linear(channels, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, channels), nn.Sigmoid()
        )

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """The gate, to be multiplied with maps of these channels."""
        gate = self.layers(maps.flatten(2).mean(2))
        return gate.reshape(*gate.shape, *[1] * (maps.dim() - 2))


class GatedConvolutions(nn.Module):
    """Convolutions with normalisation and activation; the last one's channels are gated, squeezed before its norm.

    Args:
        plan: Of the network, with normalisation and activation.
        inputs: Channels of the input.
        width: Channels of the output.
        kernel: Edge lengths of the kernels.
        stride: Of the first convolution.
        count: Number of convolutions.
        reduction: By what the gate is narrower than the maps inside; never below MINIMUM_HIDDEN.

    Shape:
        x: (B, inputs, …).
        returns: (B, width, … / stride).
    """

    def __init__(
        self, plan: UNetPlan, inputs: int, width: int, kernel: Sequence[int], stride: Any, count: int, reduction: int
    ) -> None:
        super().__init__()
        if reduction < 1:
            raise ValueError(f"se_reduction must be 1 or more, got {reduction}.")
        layers: list[nn.Module] = []
        for i in range(count):
            if i > 0:
                layers += plan.activation(width)
            layers += [plan.convolution(width if i else inputs, width, kernel, 1 if i else stride), *plan.dropout()]
        ending = plan.activation(width)
        if plan.nonlin_first:
            layers.append(ending.pop(0))
        self.convolutions = nn.Sequential(*layers)
        self.gate = SqueezeExcitation(width, max(MINIMUM_HIDDEN, width // reduction))
        self.normalisation = nn.Sequential(*ending)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Gated maps, a new tensor."""
        maps = self.convolutions(x)
        return self.gate(maps) * self.normalisation(maps)


MINIMUM_HIDDEN = 4
"""Our choice, because the 16 channels of the CTV paper's finest stage over Hu's 16 would leave one."""
