"""Trainers of networks that refine their own answer: a loss on every pass, the last one for everything else."""

from __future__ import annotations

import math
from typing import ClassVar

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunet_ext.errors import InputError
from nnunet_ext.networks.refinement_unet import RefinementUNet
from nnunet_ext.networks.se_res_unet import SEResUNet
from nnunet_ext.training.losses import PassWeightedLoss
from nnunet_ext.training.networks import (
    Architecture,
    nnUNetTrainerExtNetwork,
    path_of,
    planned_architecture,
    replaced,
)

REGIONS_KEY = "overlapping_classes"
"""In the plans that are kept with a model: whether its classes overlap, which prediction could not tell otherwise."""


class nnUNetTrainerExtRefine(nnUNetTrainerExtNetwork):
    """Trains a network in several passes, each with a loss of its own; otherwise as nnU-Net does.

    Use it with plans of ``nnunet-ext plan --network refine:…``, which are made for it. With other plans it refines the
    planned network in three passes, and computes activations twice to stay within the memory for which these were
    made, which takes a third longer. ``pass_weights`` of the settings replaces the weights 1, 2, 3. Validation and
    prediction use the last pass. Mirrors across left-right only where the single organ has no side.

    Source: clinical target volume of cervical cancer on CT, "recurrent loss", after Mosinska et al. 2018 (Beyond the
    pixel-wise loss for topology-aware delineation, CVPR); see RefinementUNet and PassWeightedLoss.

    Raises:
        InputError: ``pass_weights`` has another number of entries than the network has passes.
    """

    refines: ClassVar[type[nn.Module] | None] = None

    def initialize(self) -> None:
        """As the base; notes in the plans what prediction must know to build the network."""
        self.plans_manager.plans[REGIONS_KEY] = bool(self.label_manager.has_regions)
        super().initialize()

    @classmethod
    def architecture(cls, plans: PlansManager, configuration: ConfigurationManager) -> Architecture:
        """The planned RefinementUNet, or one around the planned network."""
        planned = planned_architecture(configuration)
        if planned.name == path_of(RefinementUNet):
            return planned._replace(keywords={**planned.keywords, "every_pass": True})
        if cls.refines is not None:
            planned = replaced(planned, cls.refines, cls.__name__)
        own = {
            "base": planned.name,
            "checkpoint_passes": True,
            "every_pass": True,
            "regions": plans.plans.get(REGIONS_KEY, False),
        }
        return Architecture(path_of(RefinementUNet), {**planned.keywords, **own}, planned.classes)

    def _build_loss(self) -> nn.Module:
        """The loss of the settings on every pass, weighted."""
        passes = self.bare_network.passes
        weights = self.settings.pass_weights or list(range(1, passes + 1))
        if len(weights) != passes or not 0 < sum(weights) < math.inf:
            raise InputError(
                f"pass_weights must have {passes} entries, one per pass, and a positive sum, got {weights}."
            )
        return PassWeightedLoss(super()._build_loss(), weights)


class nnUNetTrainerExtRefinePublished(nnUNetTrainerExtRefine):
    """Trains SEResUNet in three passes as published: Adam 1e-4 for 100 000 steps of one patch, BCE + Dice.

    Use it to repeat the published comparison. Settings in the plans go before these, so plan with the default preset,
    not with cpu. Plans of nnU-Net's own networks give the shape of the SEResUNet; a planned RefinementUNet is kept.

    Source: clinical target volume of cervical cancer on CT (340 series, three folds): Adam 1e-4 constant, at most
    100 000 iterations, batch size 1, BCE + Dice, flips on three axes and noise. Differs: no rotation within ±10°;
    shifts are nnU-Net's random crops, and noise is nnU-Net's, of variance up to 0.1 of the normalised image where the
    paper has 0.001 of the window; no weight decay, none is given; no deep supervision, none is mentioned; width, depth,
    normalisation and patch are the plans'; flips cross left-right only where the single organ has no side, which is so
    for the paper's target.
    """

    refines = SEResUNet
    optimizer = "Adam"
    initial_lr = 1e-4
    weight_decay = 0.0
    lr_schedule = "constant"
    batch_size = 1
    num_epochs = 400
    num_iterations_per_epoch = 250
    loss = "bce_dice"
    deep_supervision = False
    augmentation = "flips_noise"
