"""Planners that plan with networks of ours: the same rules, another architecture and its own memory scale."""

from __future__ import annotations

from typing import Any, ClassVar

from dynamic_network_architectures.building_blocks.helper import get_matching_batchnorm, get_matching_dropout
from torch import nn

from nnunet_ext.networks.context_unet import ContextUNet
from nnunet_ext.networks.original_unet import BATCH_STATISTICS, OriginalUNet
from nnunet_ext.planning.axial import ExtPlanner
from nnunet_ext.planning.cpu import ExtPlannerCPU

STOCK_REFERENCE_3D = 560_000_000
STOCK_REFERENCE_2D = 85_000_000
"""NnU-Net's own: convolution outputs of PlainConvUNet that fit 8 GB at batch size 2 (3D) and 12 (2D)."""


class NetworkPlanner(ExtPlanner):
    """Plans another network; stands before ExtPlanner or ExtPlannerCPU among the bases of a planner.

    nnU-Net estimates memory by counting what convolutions write. How many bytes a training step keeps per counted
    value depends on the network, so its reference values are scaled by ``memory_scale``: the bytes per value of
    PlainConvUNet over those of this network, measured with ``benchmarks/networks.py``.

    Data are not shared with plans of other networks, although they may be equal: the spacing, the normalisation and
    the resampling of one plans file may be changed later, and would change the other's data.
    """

    network: ClassVar[type[nn.Module]]
    memory_scale: ClassVar[dict[int, float]]
    base_channels: ClassVar[int] = 32
    max_channels: ClassVar[dict[int, int]] = {2: 512, 3: 320}

    def __init__(self, dataset_name_or_id: str | int, **kwargs: Any) -> None:
        super().__init__(dataset_name_or_id, **kwargs)
        self.UNet_class = self.network
        self.UNet_base_num_features = self.base_channels
        self.UNet_reference_val_3d = round(STOCK_REFERENCE_3D * self.memory_scale[3])
        self.UNet_reference_val_2d = round(STOCK_REFERENCE_2D * self.memory_scale[2])
        self.UNet_max_features_2d, self.UNet_max_features_3d = self.max_channels[2], self.max_channels[3]

    def get_plans_for_configuration(self, spacing: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As planned, with the layers of this network."""
        planned: dict[str, Any] = super().get_plans_for_configuration(spacing, *args, **kwargs)
        planned["architecture"]["arch_kwargs"].update(self.layers(len(spacing)))
        return planned

    def layers(self, dim: int) -> dict[str, Any]:
        """Keywords of the network that differ from nnU-Net's; classes by their dotted path."""
        raise NotImplementedError


class ContextPlanner(NetworkPlanner):
    """Plans ContextUNet: the paper's 16 base channels, spatial dropout of 0.3, an output per stage.

    Memory: a training step keeps 9.67 bytes per counted value in 3D and 9.72 in 2D, PlainConvUNet 7.71 and 7.77
    (single precision, patches 32×64×64 and 128×128, 16 features). Upsampled maps are kept and not counted.
    """

    network = ContextUNet
    base_channels = 16
    memory_scale: ClassVar[dict[int, float]] = {2: 7.77 / 9.72, 3: 7.71 / 9.67}

    def layers(self, dim: int) -> dict[str, Any]:
        """Spatial dropout, and both own keywords where they can be changed."""
        return {
            "dropout_op": dotted_path(get_matching_dropout(dimension=dim)),
            "context_dropout_p": 0.3,
            "supervision": "aux",
        }


class OriginalPlanner(NetworkPlanner):
    """Plans OriginalUNet: batch normalisation by the batch at hand and ReLU, 32 base channels, as published.

    Memory: a training step keeps 7.42 bytes per counted value in 3D and 7.71 in 2D, measured as for ContextPlanner.
    It counts twice as many values as PlainConvUNet of the same base channels, so its patches and batches are smaller.
    """

    network = OriginalUNet
    max_channels: ClassVar[dict[int, int]] = {2: 512, 3: 256}
    memory_scale: ClassVar[dict[int, float]] = {2: 7.77 / 7.71, 3: 7.71 / 7.42}

    def layers(self, dim: int) -> dict[str, Any]:
        """BatchNorm and ReLU."""
        return {
            "norm_op": dotted_path(get_matching_batchnorm(dimension=dim)),
            "norm_op_kwargs": dict(BATCH_STATISTICS),
            "nonlin": "torch.nn.ReLU",
        }


class ExtPlannerContext(ContextPlanner, ExtPlanner):
    """ContextUNet by nnU-Net's rules, for a GPU."""

    default_plans_name = "nnUNetPlansExtContext"


class ExtPlannerOriginal(OriginalPlanner, ExtPlanner):
    """OriginalUNet by nnU-Net's rules, for a GPU."""

    default_plans_name = "nnUNetPlansExtOriginal"


class ExtPlannerCPUContext(ContextPlanner, ExtPlannerCPU):
    """ContextUNet for two cores, with the two convolutions per block that make it one."""

    default_plans_name = "nnUNetPlansExtCPUContext"
    convolutions_per_stage = 2


class ExtPlannerCPUOriginal(OriginalPlanner, ExtPlannerCPU):
    """OriginalUNet for two cores, with two convolutions per stage; half the channels, because it doubles them."""

    default_plans_name = "nnUNetPlansExtCPUOriginal"
    convolutions_per_stage = 2
    base_features = {2: 8, 3: 8}  # noqa: RUF012 (read only)


def dotted_path(kind: type) -> str:
    """Where nnU-Net finds a class by name."""
    return f"{kind.__module__}.{kind.__name__}"
