"""The quality weighting as published."""

from __future__ import annotations

from typing import Any, ClassVar

from nnunet_ext.training.quality import nnUNetTrainerExtQuality


class nnUNetTrainerExtQualityLiteral(nnUNetTrainerExtQuality):
    """Trains with weights as published: BCE, Adam, batch 32, scores bounded by λ = 2 from the first step.

    Use it to repeat the published comparison; nnUNetTrainerExtQuality is safer. ``"quality": {"ocm": false}`` in the
    plans is the published variant without the bound. Settings in the plans go before these, so plan with the default
    preset, not with cpu.

    Source: QAM + OCM (Zhu, Shi, Wu 2019: Pick-and-Learn, MICCAI) as a later thesis has it, on JSRT chest organs (165
    training images of 256×256): U-Net with binary cross-entropy, QAM learning rate 1e-4, batch size 32,
    ``Loss = Σ softmax(λ tanh a) L`` over the batch. Differs: Adam at 1e-3 for the segmenter, falling as nnU-Net's rate,
    number of epochs and augmentation are nnU-Net's, because none is given; no weight decay; no deep supervision, none
    is shown; organs that exclude each other share a softmax; QualityNet's widths and norm.
    """

    optimizer = "Adam"
    initial_lr = 1e-3
    weight_decay = 0.0
    batch_size = 32
    loss = "bce"
    deep_supervision = False
    oversample_foreground_percent = 0.33
    quality: ClassVar[dict[str, Any]] = {
        "burn_in": 0.0,
        "ramp": 0.0,
        "centre": False,
        "driver": "loss",
        "min_foreground": 0,
        "memory": 0,
    }
