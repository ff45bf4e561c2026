"""What all U-Nets of this project share: nnU-Net's keywords, the way down and up, and the count of feature maps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from dynamic_network_architectures.architectures.abstract_arch import AbstractDynamicNetworkArchitectures
from dynamic_network_architectures.building_blocks.helper import (
    convert_conv_op_to_dim,
    get_matching_convtransp,
    get_matching_pool_op,
    maybe_convert_scalar_to_list,
)
from dynamic_network_architectures.initialization.weight_init import InitWeights_He
from torch import nn
from torch.nn.modules.conv import _ConvNd


@dataclass
class UNetPlan:
    """The keywords that nnU-Net's plans give a U-Net, checked, with one entry per stage; and the layers they ask for.

    Args:
        input_channels: Channels of the image.
        n_stages: Resolutions, 2 or more.
        features_per_stage: Channels of every stage, finest first.
        conv_op: ``nn.Conv2d`` or ``nn.Conv3d``.
        kernel_sizes: Odd edge lengths of the kernels of every stage.
        strides: By what every stage is coarser than the one above it; the first is 1.
        n_conv_per_stage: Convolutions per stage on the way down.
        num_classes: Channels of the output.
        n_conv_per_stage_decoder: Convolutions per stage on the way up, coarsest first.
        conv_bias: Whether convolutions have a bias.
        norm_op: Normalisation layer; None leaves the network's own.
        norm_op_kwargs: Its arguments.
        dropout_op: Dropout layer; None leaves the network's own, which may be none.
        dropout_op_kwargs: Its arguments.
        nonlin: Activation layer; None leaves the network's own.
        nonlin_kwargs: Its arguments.
        deep_supervision: Whether the network starts with one output per stage.
        nonlin_first: Activation before normalisation.

    Raises:
        ValueError: fewer than two stages, or a list with another length.
    """

    input_channels: int
    n_stages: int
    features_per_stage: Any
    conv_op: type[_ConvNd]
    kernel_sizes: Any
    strides: Any
    n_conv_per_stage: Any
    num_classes: int
    n_conv_per_stage_decoder: Any
    conv_bias: bool = False
    norm_op: type[nn.Module] | None = None
    norm_op_kwargs: dict[str, Any] | None = None
    dropout_op: type[nn.Module] | None = None
    dropout_op_kwargs: dict[str, Any] | None = None
    nonlin: type[nn.Module] | None = None
    nonlin_kwargs: dict[str, Any] | None = None
    deep_supervision: bool = False
    nonlin_first: bool = False

    def __post_init__(self) -> None:
        if self.n_stages < 2:
            raise ValueError(f"a U-Net needs 2 stages or more, got n_stages={self.n_stages}; plan a larger patch.")
        for name in ("features_per_stage", "n_conv_per_stage", "n_conv_per_stage_decoder"):
            entries = self.n_stages - name.endswith("decoder")
            setattr(self, name, _entries(name, getattr(self, name), entries))
        for name in ("kernel_sizes", "strides"):
            stages = _entries(name, getattr(self, name), self.n_stages)
            setattr(self, name, [list(maybe_convert_scalar_to_list(self.conv_op, stage)) for stage in stages])

    @property
    def dim(self) -> int:
        """Spatial dimensions, 2 or 3."""
        return int(convert_conv_op_to_dim(self.conv_op))

    def default(self, **layers: Any) -> None:
        """Fill in layers that the plans leave open: ``norm_op=(class, arguments)``, ``nonlin=(class, arguments)``."""
        for name, (kind, arguments) in layers.items():
            if getattr(self, name) is None:
                setattr(self, name, kind)
                if getattr(self, f"{name}_kwargs") is None:
                    setattr(self, f"{name}_kwargs", arguments)

    def convolution(self, inputs: int, outputs: int, kernel: Sequence[int], stride: Any = 1) -> nn.Module:
        """A convolution that keeps the size, or divides it by the stride, rounding up."""
        return self.conv_op(inputs, outputs, kernel, stride, [(k - 1) // 2 for k in kernel], bias=self.conv_bias)

    def projection(self, inputs: int, outputs: int, stride: Sequence[int] | None = None) -> nn.Module:
        """What adds a residual block's input to its output: nothing, or a 1×1 convolution without offset.

        There is a convolution only where channels or size change.
        """
        if inputs == outputs and max(stride or [1]) == 1:
            return nn.Identity()
        return self.conv_op(inputs, outputs, 1, stride or 1, bias=False)

    def pooling(self, stage: int) -> nn.Module:
        """Max-pooling by the stride of a stage, rounding up; nothing where the stage is as fine as the one above."""
        stride = self.strides[stage]
        pool = get_matching_pool_op(dimension=self.dim, pool_type="max")
        return pool(stride, stride, ceil_mode=True) if max(stride) > 1 else nn.Identity()

    def transposed(self, inputs: int, outputs: int, stage: int) -> nn.Module:
        """A transposed convolution from the next coarser stage to this one."""
        stride = self.strides[stage + 1]
        return get_matching_convtransp(dimension=self.dim)(inputs, outputs, stride, stride, bias=self.conv_bias)

    def dropout(self) -> list[nn.Module]:
        """The dropout layer, if there is one."""
        return [] if self.dropout_op is None else [self.dropout_op(**(self.dropout_op_kwargs or {}))]

    def head(self, inputs: int) -> nn.Module:
        """The 1×1 convolution that makes logits."""
        return self.conv_op(inputs, self.num_classes, 1, bias=True)

    def activation(self, channels: int, *, keep_input: bool = False) -> list[nn.Module]:
        """Normalisation and activation, in the order of the plans.

        Args:
            channels: Of the feature map.
            keep_input: The input is used again, so nothing may be changed in place.
        """
        if self.norm_op is None or self.nonlin is None:
            raise ValueError("norm_op and nonlin are missing; name them, or give the network's own with default().")
        arguments = dict(self.nonlin_kwargs or {})
        if keep_input and self.nonlin_first and "inplace" in arguments:
            arguments["inplace"] = False
        layers = [self.norm_op(channels, **(self.norm_op_kwargs or {})), self.nonlin(**arguments)]
        return layers[::-1] if self.nonlin_first else layers


def _entries(name: str, value: Any, count: int) -> list[Any]:
    """One entry per stage, from such a list or from one number for all."""
    if isinstance(value, int):
        return [value] * count
    if len(value) != count:
        raise ValueError(f"{name} must have {count} entries, one per stage, got {len(value)}: {value}.")
    return list(value)


class Encoder(nn.Module):
    """The way down: every stage makes the feature maps of its resolution from those above.

    Shape:
        image: (B, C, [Z,] Y, X).
        returns: list of (B, C_i, [Z_i,] Y_i, X_i), finest first.
    """

    def __init__(self, stages: Sequence[nn.Module]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Feature maps of every stage."""
        maps = []
        for stage in self.stages:
            image = stage(image)
            maps.append(image)
        return maps


class Decoder(nn.Module):
    """The way up, with a head on every stage; ``deep_supervision`` may be switched at any time.

    All heads exist whether they are used or not, so that weights fit both ways. As in nnU-Net's own decoder, stages
    and heads are kept coarsest first.

    Shape:
        maps: what Encoder returns.
        returns: logits (B, K, [Z,] Y, X); with deep supervision a list of them, one per stage, finest first.
    """

    def __init__(self, stages: Sequence[nn.Module], heads: Sequence[nn.Module], deep_supervision: bool) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.seg_layers = nn.ModuleList(heads)
        self.deep_supervision = deep_supervision

    def merged(self, maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Feature maps after every stage of the way up, finest first."""
        below, merged = maps[-1], []
        for stage, skip in zip(self.stages, reversed(maps[:-1]), strict=True):
            below = stage(below, skip)
            merged.append(below)
        return merged[::-1]

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor | list[torch.Tensor]:
        """Logits, or a list of logits."""
        merged = self.merged(maps)
        if not self.deep_supervision:
            return self.seg_layers[-1](merged[0])
        return [head(y) for head, y in zip(reversed(self.seg_layers), merged, strict=True)]

    def heads_used(self) -> int:
        """How many of the finest heads the present output needs."""
        return len(self.seg_layers) if self.deep_supervision else 1


class TransposedStage(nn.Module):
    """One step of the way up: transposed convolution, join the skip, then a block.

    Args:
        plan: Of the network.
        stage: To which it leads.
        block: From twice the stage's channels to the stage's.
    """

    def __init__(self, plan: UNetPlan, stage: int, block: nn.Module) -> None:
        super().__init__()
        self.upward = plan.transposed(plan.features_per_stage[stage + 1], plan.features_per_stage[stage], stage)
        self.block = block

    def forward(self, below: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        """(B, C, coarse) and (B, width, fine) to (B, width, fine)."""
        return self.block(torch.cat([skip, cropped(self.upward(below), skip)], 1))


class UNetSkeleton(AbstractDynamicNetworkArchitectures):
    """An encoder and a decoder as nnU-Net's trainers, predictors and planners expect them.

    Args:
        strides: By what every stage is coarser than the one above it.
        encoder: The way down.
        decoder: The way up; nnU-Net switches its ``deep_supervision``.
        first_convolution: Name of the convolution that sees the image, below ``encoder.stages.0``.

    Shape:
        image: (B, C, [Z,] Y, X); any size that survives the strides, edges need not be divisible.
        returns: as Decoder.
    """

    def __init__(
        self, strides: Sequence[Sequence[int]], encoder: Encoder, decoder: Decoder, first_convolution: str
    ) -> None:
        super().__init__()
        self.strides = [list(stride) for stride in strides]
        self.encoder = encoder
        self.decoder = decoder
        self.key_to_encoder = "encoder.stages"
        self.key_to_stem = "encoder.stages.0"
        self.keys_to_in_proj = (f"encoder.stages.0.{first_convolution}",)

    def forward(self, image: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """Logits, with deep supervision a list of them, finest first."""
        return self.decoder(self.encoder(image))

    def compute_conv_feature_map_size(self, input_size: Sequence[int]) -> int:
        """Values that all convolutions write for one image, from which nnU-Net's planner estimates memory.

        Args:
            input_size: Of the patch, without batch and channels.

        Raises:
            ValueError: not as many edges as the network has dimensions.
        """
        if len(input_size) != len(self.strides[0]):
            raise ValueError(f"expected {len(self.strides[0])} edge lengths, got {list(input_size)}.")
        sizes, size = [], list(input_size)
        for stride in self.strides:
            size = [math.ceil(n / s) for n, s in zip(size, stride, strict=True)]
            sizes.append(math.prod(size))
        heads = [self.decoder.seg_layers[-1 - i] for i in range(self.decoder.heads_used())]
        parts = (self.encoder.stages, reversed(self.decoder.stages), heads)
        return sum(_channels(stage) * n for part in parts for stage, n in zip(part, sizes, strict=False))

    @staticmethod
    def initialize(module: nn.Module) -> None:
        """He's initialisation of convolutions, as PlainConvUNet; used by ``network.apply``."""
        InitWeights_He(1e-2)(module)


def _channels(stage: nn.Module) -> int:
    """Channels that all convolutions of a stage write; all of them write at the stage's own resolution."""
    return sum(layer.out_channels for layer in stage.modules() if isinstance(layer, _ConvNd))


def cropped(maps: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Maps without the voxels that an odd edge gained on the way down and up; (B, C, …) as ``like``."""
    return maps[(slice(None), slice(None), *(slice(n) for n in like.shape[2:]))]
