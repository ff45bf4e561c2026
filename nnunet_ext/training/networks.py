"""Trainers that put another network into nnU-Net's plans, for those who think in trainer flags."""

from __future__ import annotations

from typing import Any, NamedTuple

from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunet_ext.errors import InputError
from nnunet_ext.networks.deep_res_unet import DeepResUNet
from nnunet_ext.networks.ras_unet import RASUNet
from nnunet_ext.networks.se_res_unet import SEResUNet
from nnunet_ext.training.mirroring import nnUNetTrainerExtNoMirror

STOCK_NETWORKS = "dynamic_network_architectures.architectures."
"""Where the networks of nnU-Net's own planners live."""

SHAPE = ("n_stages", "features_per_stage", "kernel_sizes", "strides", "conv_bias", "norm_op_kwargs")
CLASSES = ["conv_op", "norm_op"]
"""Keywords that all networks take from the plans; activation and dropout are each network's own."""

CONVOLUTIONS = 2
"""Per block, as in the papers; plans of residual encoders count blocks instead, and plans for a CPU may say one."""


class Architecture(NamedTuple):
    """What plans say about a network: dotted path, keywords, and which of them are dotted paths of classes."""

    name: str
    keywords: dict[str, Any]
    classes: list[str]


def planned_architecture(configuration: ConfigurationManager) -> Architecture:
    """The network that these plans name."""
    return Architecture(
        configuration.network_arch_class_name,
        dict(configuration.network_arch_init_kwargs),
        list(configuration.network_arch_init_kwargs_req_import),
    )


def replaced(planned: Architecture, network: type[nn.Module], wanted_by: str) -> Architecture:
    """Another network of the planned depth, width, strides, kernels and normalisation.

    Args:
        planned: Of nnU-Net's own planners; a plan that names the wanted network already is kept as it is.
        network: What to build instead.
        wanted_by: Trainer, for the message.

    Raises:
        InputError: the plans name yet another network.
    """
    name = path_of(network)
    if planned.name == name:
        return planned
    if not planned.name.startswith(STOCK_NETWORKS) or not {*SHAPE, *CLASSES} <= set(planned.keywords):
        raise InputError(
            f"{wanted_by} puts {network.__name__} into plans of nnU-Net's own U-Nets, but these name {planned.name}; "
            "train them with nnUNetTrainerExtNoMirror, or plan again with `nnunet-ext plan --network`."
        )
    keywords = {key: planned.keywords[key] for key in (*SHAPE, *CLASSES)}
    counts = {"n_conv_per_stage": CONVOLUTIONS, "n_conv_per_stage_decoder": CONVOLUTIONS}
    return Architecture(name, {**keywords, **counts}, CLASSES)


def path_of(kind: type) -> str:
    """Where nnU-Net finds a class by name."""
    return f"{kind.__module__}.{kind.__name__}"


class nnUNetTrainerExtNetwork(nnUNetTrainerExtNoMirror):
    """Base of the trainers that choose the network; no flag itself.

    It mirrors as nnUNetTrainerExtNoMirror with ``mirror`` "auto": across left-right only where a dataset's single organ
    has no side. Clinical target volume and liver tumour, for which these networks were published with flips on all
    axes, are such organs; paired ones may be trained with the same flag and stay unconfused.
    """

    mirror = "auto"

    @classmethod
    def build_network_architecture(
        cls,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """The network for these plans; training and prediction build the same one.

        Raises:
            InputError: the plans do not fit.
        """
        name, keywords, classes = cls.architecture(plans_manager, configuration_manager)
        return get_network_from_plans(
            name, keywords, classes, num_input_channels, num_output_channels, deep_supervision=enable_deep_supervision
        )

    @classmethod
    def architecture(cls, plans: PlansManager, configuration: ConfigurationManager) -> Architecture:
        """What is built instead of the planned network."""
        raise NotImplementedError


class nnUNetTrainerExtRAS(nnUNetTrainerExtNetwork):
    """Trains RASUNet with plans of nnU-Net's own planners, otherwise as nnU-Net does; 3D only.

    Use it to try the network where plans exist already. Planning for it (``nnunet-ext plan --network ras``) is better:
    a step of RASUNet keeps more than twice the memory of the network whose patch this flag takes over, so it may not
    fit, while planned patches fit. With nnU-Net's SGD the first steps are rough; ``"optimizer": "Adam"`` and
    ``"initial_lr": 1e-4`` in the plans, or nnUNetTrainerExtRASPublished, are smoother. Mirrors across left-right only
    where the single organ has no side.

    Raises:
        InputError: 2D plans, or plans of a network that is neither nnU-Net's nor RASUNet.
    """

    @classmethod
    def architecture(cls, plans: PlansManager, configuration: ConfigurationManager) -> Architecture:
        """RASUNet, with full attention and dropout 0.5 unless the plans name it with other keywords."""
        if len(configuration.patch_size) != 3:
            raise InputError(
                f"{cls.__name__} trains a 3D network, but this configuration has 2D patches of "
                f"{list(configuration.patch_size)}; train a 3D configuration, or 2D with nnUNetTrainerExtNoMirror."
            )
        return replaced(planned_architecture(configuration), RASUNet, cls.__name__)


class nnUNetTrainerExtRASPublished(nnUNetTrainerExtRAS):
    """Trains RASUNet as published: Adam 1e-4, eight patches at a time, Dice, flips; 3D only.

    Use it to repeat the published comparison; for a fair one, plan with ``--network ras``. Settings in the plans go
    before these, so plan with the default preset, not with cpu.

    Source: residual attention-aware separable U-Net for liver tumour targets on CT (50 patients): Adam 1e-4, batch size
    8, Dice loss, random crop and flip. Differs: the rate is constant, the length nnU-Net's 1000 epochs of 250 steps and
    the weight decay zero, because the paper gives none of them; no deep supervision, because it shows one output; width
    and depth are the plans'; flips cross left-right only where the single organ has no side, which is so for the
    paper's target.
    """

    optimizer = "Adam"
    initial_lr = 1e-4
    weight_decay = 0.0
    lr_schedule = "constant"
    batch_size = 8
    loss = "dice"
    deep_supervision = False
    augmentation = "flips"


class nnUNetTrainerExtSERes(nnUNetTrainerExtNetwork):
    """Trains SEResUNet with plans of nnU-Net's own planners, otherwise as nnU-Net does.

    Use it to try the network where plans exist already. Planning for it (``nnunet-ext plan --network se-res``) is
    better: patch and batch are then chosen for its memory, not for PlainConvUNet's. Mirrors across left-right only
    where the single organ has no side.

    Raises:
        InputError: the plans name a network that is neither nnU-Net's nor SEResUNet.
    """

    @classmethod
    def architecture(cls, plans: PlansManager, configuration: ConfigurationManager) -> Architecture:
        """SEResUNet, with ELU before the norm unless the plans name it with other keywords."""
        return replaced(planned_architecture(configuration), SEResUNet, cls.__name__)


class nnUNetTrainerExtDeepRes(nnUNetTrainerExtNetwork):
    """Trains DeepResUNet with plans of nnU-Net's own planners, otherwise as nnU-Net does.

    Use it to try the network where plans exist already. Planning for it (``nnunet-ext plan --network deep-res``) is
    better: patch and batch are then chosen for its memory, not for PlainConvUNet's. Mirrors across left-right only
    where the single organ has no side.

    Raises:
        InputError: the plans name a network that is neither nnU-Net's nor DeepResUNet.
    """

    @classmethod
    def architecture(cls, plans: PlansManager, configuration: ConfigurationManager) -> Architecture:
        """DeepResUNet, with ReLU and the plans' norm unless the plans name it with other keywords."""
        return replaced(planned_architecture(configuration), DeepResUNet, cls.__name__)


class nnUNetTrainerExtDeepResPublished(nnUNetTrainerExtDeepRes):
    """Trains DeepResUNet as published: Adam 1e-4, two patches at a time, Dice, no auxiliary outputs, early stop.

    Use it to repeat the published comparison with plans that exist; ``nnunet-ext plan --network deep-res --preset
    published`` has the same settings and the paper's patch as well. Settings in the plans go before these, so plan with
    the default preset, not with cpu.

    Source: residual U-Net on synthetic MR of the pelvis (56 patients, 2D patches of 256×256): Adam 1e-4, batch size 2,
    Dice loss, random crops, early stopping. Differs: mirrors that do not confuse left and right are made as well; the
    patience of 50 epochs without a new best running Dice and the limit of 1000 epochs are ours, the paper gives
    neither; the rate is constant and there is no weight decay, because none is given; width, depth, patch and
    normalisation are the plans'.
    """

    optimizer = "Adam"
    initial_lr = 1e-4
    weight_decay = 0.0
    lr_schedule = "constant"
    batch_size = 2
    loss = "dice"
    deep_supervision = False
    augmentation = "flips"
    early_stop = 50
