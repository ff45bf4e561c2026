"""Trainers for the second stage of a cascade: one organ, or a few, in a region that another model found."""

from __future__ import annotations

from nnunet_ext.training.mirroring import nnUNetTrainerExtNoMirror


class nnUNetTrainerExtCascade(nnUNetTrainerExtNoMirror):
    """Trains the segmenter of a region as we recommend: nnU-Net's optimiser, loss and length, mirrors that are legal.

    Use it on datasets that ``nnunet-ext roi`` made, with plans of any network. It differs from
    nnUNetTrainerExtNoMirror in two settings, both our choice: in-plane rotation stays within ±15°, because nnU-Net
    rotates flat patches (32×128×128) by ±180° and patients lie as they lie; and a single organ without a side
    (OpticChiasm) may be mirrored across left-right as well.
    """

    limit_rotation = True
    mirror = "auto"


class nnUNetTrainerExtCascadePublished(nnUNetTrainerExtNoMirror):
    """Trains as published for the cascade: Adam at a constant rate, one case at a time, Dice, flips and noise.

    Use it to repeat the published comparison; nnUNetTrainerExtCascade is what we recommend. Settings in the plans go
    before these, so plan with the default preset, not with cpu.

    Source: localise-crop-segment cascade for seven small organs on CT and MR (60 patients): Adam 2e-4, batch size 1,
    random flip and Gaussian noise, Dice loss with epsilon, early stop between 100 and 150 epochs. Differs: flips cross
    left-right only where no organ has a side, the paper's do so although it tells left from right; an epoch is
    nnU-Net's 250 iterations and noise is nnU-Net's, because the paper gives neither; no weight decay, none is given;
    "early stop" is 30 epochs without a new best running Dice, our choice.
    """

    optimizer = "Adam"
    initial_lr = 2e-4
    weight_decay = 0.0
    lr_schedule = "constant"
    batch_size = 1
    loss = "dice"
    augmentation = "flips_noise"
    mirror = "auto"
    num_epochs = 150
    early_stop = 30
