"""Planners that plan with networks of ours: the same rules, another architecture and its own memory scale."""

from __future__ import annotations

from typing import Any, ClassVar

from dynamic_network_architectures.architectures.unet import PlainConvUNet
from dynamic_network_architectures.building_blocks.helper import get_matching_batchnorm, get_matching_dropout
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import nn

from nnunet_ext.networks.context_unet import ContextUNet
from nnunet_ext.networks.deep_res_unet import DeepResUNet
from nnunet_ext.networks.original_unet import BATCH_STATISTICS, OriginalUNet
from nnunet_ext.networks.ras_unet import RASUNet
from nnunet_ext.networks.refinement_unet import RefinementUNet
from nnunet_ext.networks.se_res_unet import SEResUNet
from nnunet_ext.networks.se_unet import SEUNet3D
from nnunet_ext.planning.axial import ExtPlanner
from nnunet_ext.planning.cpu import ExtPlannerCPU

STOCK_REFERENCE_3D = 560_000_000
STOCK_REFERENCE_2D = 85_000_000
"""NnU-Net's own: convolution outputs of PlainConvUNet that fit 8 GB at batch size 2 (3D) and 12 (2D)."""


class NetworkPlanner(ExtPlanner):
    """Plans another network; stands before ExtPlanner or ExtPlannerCPU among the bases of a planner.

    nnU-Net estimates memory by counting what convolutions write. How many bytes a training step keeps per counted
    value depends on the network, so its reference values are scaled by ``memory_scale``: the bytes per value of
    PlainConvUNet over those of this network, measured with ``benchmarks/networks.py``. A network whose scale has no
    entry for 2D works in 3D alone; nnU-Net always plans 2D too, so PlainConvUNet stands in for it there.

    Data are not shared with plans of other networks, although they may be equal: the spacing, the normalisation and
    the resampling of one plans file may be changed later, and would change the other's data.
    """

    network: ClassVar[type[nn.Module]]
    memory_scale: ClassVar[dict[int, float]]
    base_channels: ClassVar[int] = 32
    max_channels: ClassVar[dict[int, int]] = {2: 512, 3: 320}

    def __init__(self, dataset_name_or_id: str | int, **kwargs: Any) -> None:
        super().__init__(dataset_name_or_id, **kwargs)
        self.UNet_base_num_features = self.base_channels
        self.UNet_reference_val_3d = round(STOCK_REFERENCE_3D * self.memory_scale[3])
        self.UNet_reference_val_2d = round(STOCK_REFERENCE_2D * self.memory_scale.get(2, 1.0))
        self.UNet_max_features_2d, self.UNet_max_features_3d = self.max_channels[2], self.max_channels[3]

    def get_plans_for_configuration(self, spacing: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As planned, with the layers of this network."""
        dim = len(spacing)
        self.UNet_class = self.network if dim in self.memory_scale else PlainConvUNet
        planned: dict[str, Any] = super().get_plans_for_configuration(spacing, *args, **kwargs)
        if dim in self.memory_scale:
            planned["architecture"]["arch_kwargs"].update(self.layers(dim))
        return planned

    def static_estimate_VRAM_usage(  # noqa: N802 (nnU-Net's name)
        self, patch_size: Any, inputs: int, outputs: int, network: str, arch_kwargs: dict[str, Any], *names: Any
    ) -> int:
        """As stock, with the layers of this network."""
        dim = len(patch_size)
        layers = self.layers(dim) if dim in self.memory_scale else {}
        return int(
            super().static_estimate_VRAM_usage(patch_size, inputs, outputs, network, arch_kwargs | layers, *names)
        )

    @classmethod
    def layers(cls, dim: int) -> dict[str, Any]:
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

    @classmethod
    def layers(cls, dim: int) -> dict[str, Any]:
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

    @classmethod
    def layers(cls, dim: int) -> dict[str, Any]:
        """BatchNorm and ReLU."""
        return {
            "norm_op": dotted_path(get_matching_batchnorm(dimension=dim)),
            "norm_op_kwargs": dict(BATCH_STATISTICS),
            "nonlin": "torch.nn.ReLU",
        }


class RASPlanner(NetworkPlanner):
    """Plans RASUNet in 3D, with full attention and the paper's dropout; PlainConvUNet in 2D.

    The head-foot axis comes first and is the one through the slices. Memory: a training step keeps 5.08 bytes per
    counted value in 3D, measured as for ContextPlanner, but it counts 3.7 times as many values as PlainConvUNet.
    """

    network = RASUNet
    memory_scale: ClassVar[dict[int, float]] = {3: 7.71 / 5.08}
    encoder_dropout_p: ClassVar[float] = 0.5

    @classmethod
    def layers(cls, dim: int) -> dict[str, Any]:
        """The own keywords, where they can be changed."""
        return {
            "attention": True,
            "attention_reduction": 1,
            "encoder_dropout_p": cls.encoder_dropout_p,
            "through_axis": 0,
        }


class SEPlanner(NetworkPlanner):
    """Plans SEUNet3D, in 2D too.

    Memory: a training step keeps 9.53 bytes per counted value in 3D and 9.91 in 2D, measured as for ContextPlanner.
    Gated maps are kept and not counted.
    """

    network = SEUNet3D
    memory_scale: ClassVar[dict[int, float]] = {2: 7.77 / 9.91, 3: 7.71 / 9.53}

    @classmethod
    def layers(cls, dim: int) -> dict[str, Any]:
        """The own keyword, where it can be changed."""
        return {"se_reduction": 16}


class SEResPlanner(NetworkPlanner):
    """Plans SEResUNet with ELU before the norm, at nnU-Net's widths.

    Memory: a training step keeps 6.68 bytes per counted value in 3D and 6.72 in 2D, measured as for ContextPlanner; it
    counts 1.4 times as many values as PlainConvUNet.
    """

    network = SEResUNet
    memory_scale: ClassVar[dict[int, float]] = {2: 7.77 / 6.72, 3: 7.71 / 6.68}

    @classmethod
    def layers(cls, dim: int) -> dict[str, Any]:
        """ELU, its place, and the own keyword."""
        return {"nonlin": "torch.nn.ELU", "nonlin_first": True, "se_reduction": 8}


class DeepResPlanner(NetworkPlanner):
    """Plans DeepResUNet with InstanceNorm and ReLU, at nnU-Net's widths; the paper's begin at 64.

    Memory: a training step keeps 8.38 bytes per counted value in 3D and 8.41 in 2D, measured as for ContextPlanner.
    """

    network = DeepResUNet
    memory_scale: ClassVar[dict[int, float]] = {2: 7.77 / 8.41, 3: 7.71 / 8.38}

    @classmethod
    def layers(cls, dim: int) -> dict[str, Any]:
        """ReLU."""
        return {"nonlin": "torch.nn.ReLU"}


class RefinementPlanner(NetworkPlanner):
    """Plans RefinementUNet with three passes and the layers of its base.

    The plans ask for the output of the last pass alone, which every trainer can train on; a trainer with a loss per
    pass switches ``every_pass`` of the network on.
    """

    network = RefinementUNet
    base: ClassVar[type[nn.Module]]
    base_planner: ClassVar[type[NetworkPlanner] | None] = None

    @classmethod
    def layers(cls, dim: int) -> dict[str, Any]:
        """Those of the base, and the own keywords where they can be changed."""
        own = {"base": dotted_path(cls.base), "passes": 3, "checkpoint_passes": False, "every_pass": False}
        return own if cls.base_planner is None else {**cls.base_planner.layers(dim), **own}

    def get_plans_for_configuration(self, spacing: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As planned; whether classes overlap is the dataset's."""
        planned = super().get_plans_for_configuration(spacing, *args, **kwargs)
        labels = LabelManager(self.dataset_json["labels"], self.dataset_json.get("regions_class_order"))
        planned["architecture"]["arch_kwargs"]["regions"] = bool(labels.has_regions)
        return planned


class RefinePlainPlanner(RefinementPlanner):
    """Plans three passes of PlainConvUNet.

    Memory: a training step keeps 7.91 bytes per counted value in 3D and in 2D, measured as for ContextPlanner; it
    counts every pass.
    """

    base = PlainConvUNet
    memory_scale: ClassVar[dict[int, float]] = {2: 7.77 / 7.91, 3: 7.71 / 7.91}


class RefineSEResPlanner(RefinementPlanner):
    """Plans three passes of SEResUNet.

    Memory: a training step keeps 6.83 bytes per counted value in 3D and in 2D, measured as for ContextPlanner; it
    counts every pass.
    """

    base = SEResUNet
    base_planner = SEResPlanner
    memory_scale: ClassVar[dict[int, float]] = {2: 7.77 / 6.83, 3: 7.71 / 6.83}


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


class ExtPlannerRAS(RASPlanner, ExtPlanner):
    """RASUNet by nnU-Net's rules, for a GPU."""

    default_plans_name = "nnUNetPlansExtRAS"


class ExtPlannerSE(SEPlanner, ExtPlanner):
    """SEUNet3D by nnU-Net's rules, for a GPU."""

    default_plans_name = "nnUNetPlansExtSE"


class ExtPlannerSERes(SEResPlanner, ExtPlanner):
    """SEResUNet by nnU-Net's rules, for a GPU."""

    default_plans_name = "nnUNetPlansExtSERes"


class ExtPlannerDeepRes(DeepResPlanner, ExtPlanner):
    """DeepResUNet by nnU-Net's rules, for a GPU."""

    default_plans_name = "nnUNetPlansExtDeepRes"


class ExtPlannerRefinePlain(RefinePlainPlanner, ExtPlanner):
    """Three passes of PlainConvUNet by nnU-Net's rules, for a GPU."""

    default_plans_name = "nnUNetPlansExtRefinePlain"


class ExtPlannerRefine(RefineSEResPlanner, ExtPlanner):
    """Three passes of SEResUNet by nnU-Net's rules, for a GPU."""

    default_plans_name = "nnUNetPlansExtRefine"


class ExtPlannerCPURAS(RASPlanner, ExtPlannerCPU):
    """RASUNet for two cores: half the channels, because a block has eight convolutions; no dropout in short runs."""

    default_plans_name = "nnUNetPlansExtCPURAS"
    base_features = {2: 16, 3: 8}  # noqa: RUF012 (read only)
    encoder_dropout_p = 0.0


class ExtPlannerCPUSE(SEPlanner, ExtPlannerCPU):
    """SEUNet3D for two cores, with two convolutions per stage."""

    default_plans_name = "nnUNetPlansExtCPUSE"
    convolutions_per_stage = 2


class ExtPlannerCPUSERes(SEResPlanner, ExtPlannerCPU):
    """SEResUNet for two cores, with two convolutions per block."""

    default_plans_name = "nnUNetPlansExtCPUSERes"
    convolutions_per_stage = 2


class ExtPlannerCPUDeepRes(DeepResPlanner, ExtPlannerCPU):
    """DeepResUNet for two cores, with two convolutions per unit."""

    default_plans_name = "nnUNetPlansExtCPUDeepRes"
    convolutions_per_stage = 2


class ExtPlannerCPURefinePlain(RefinePlainPlanner, ExtPlannerCPU):
    """Three passes of PlainConvUNet for two cores; half the channels."""

    default_plans_name = "nnUNetPlansExtCPURefinePlain"
    base_features = {2: 8, 3: 8}  # noqa: RUF012 (read only)


class ExtPlannerCPURefine(RefineSEResPlanner, ExtPlannerCPU):
    """Three passes of SEResUNet for two cores, with two convolutions per block; half the channels."""

    default_plans_name = "nnUNetPlansExtCPURefine"
    convolutions_per_stage = 2
    base_features = {2: 8, 3: 8}  # noqa: RUF012 (read only)


PLANNERS: dict[str, dict[str, type[ExtPlanner]]] = {
    "plain": {"default": ExtPlanner, "cpu": ExtPlannerCPU},
    "context": {"default": ExtPlannerContext, "cpu": ExtPlannerCPUContext},
    "original": {"default": ExtPlannerOriginal, "cpu": ExtPlannerCPUOriginal},
    "ras": {"default": ExtPlannerRAS, "cpu": ExtPlannerCPURAS},
    "se": {"default": ExtPlannerSE, "cpu": ExtPlannerCPUSE},
    "se-res": {"default": ExtPlannerSERes, "cpu": ExtPlannerCPUSERes},
    "deep-res": {"default": ExtPlannerDeepRes, "cpu": ExtPlannerCPUDeepRes},
    "refine:plain": {"default": ExtPlannerRefinePlain, "cpu": ExtPlannerCPURefinePlain},
    "refine:se-res": {"default": ExtPlannerRefine, "cpu": ExtPlannerCPURefine},
}
"""Network (as in ``planning.names``) and preset to planner."""


def dotted_path(kind: type) -> str:
    """Where nnU-Net finds a class by name."""
    return f"{kind.__module__}.{kind.__name__}"
