"""The settings that all our trainers share, and where their values come from.

Order, later wins: nnU-Net's defaults, class attributes of the trainer, the plans block
``configurations.<name>.nnunet_ext``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, ValidationError, model_validator

from nnunet_ext.errors import InputError

PLANS_BLOCK = "nnunet_ext"


class QualitySettings(BaseModel):
    """How a trainer weighs its samples by the quality of their contours. Defaults are what we recommend.

    A network beside the segmenter, the QAM, gives every sample an answer; the score of a sample is what the answer
    counts, and softmax of the scores its weight.

    Args:
        qam_lr: Learning rate of the QAM (Adam). At more than a tenth of the segmenter's the two can agree on eroded or
            on dilated contours before the segmenter knows better.
        lambda_: Bound of the score; no weight is more than exp(2 λ) times another (55 at 2). 0 trains as without QAM.
        ocm: Whether scores are bounded, ``λ tanh(answer)``; off, the score is the answer.
        centre: Whether the running mean of the answers is subtracted first, ``λ tanh(answer − mean)``. Off (as
            published), answers may drift together to where tanh is flat, and all weights become equal for good.
            Without ocm it has no effect.
        burn_in: Share of all epochs with equal weights; the QAM trains from there on. 1 is a control with the loss of
            this trainer and equal weights to the end.
        ramp: Share of all epochs by which the scores, rising from 0 since burn_in, reach full strength; equal to
            burn_in they have it at once.
        driver: By what the QAM judges a sample: its own "loss" (as published), "displacement" (mean distance of the
            boundaries, mm, over organs) or "readiness" (the same of the organs that are known by now, from the middle
            contour instead of the prediction and relative to what is usual; a patch with an organ that is not known
            loses no weight).
        ready_dice: Soft Dice, of the better quarter of its recent contours, from which an organ is known well enough to
            judge contours by it. Too high, and nothing ever competes; the log says so.
        min_foreground: Labelled voxels in a patch that competes; all others keep weight 1. 0 lets every patch compete.
        memory: Earlier samples that compete as well in steps in which fewer than 8 do, so that the weights of a batch
            of 1 differ; 0 is none.
        accumulate: Batches per optimiser step that compete with each other, as one batch of that many would, with the
            memory of one and twice the forward passes; a norm with running statistics, which nnU-Net's networks do not
            have, would take in each batch twice.
        case_memory: Average the score of a sample with the running score of its case.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    qam_lr: float = Field(1e-4, gt=0)
    lambda_: float = Field(2.0, ge=0)
    ocm: bool = True
    centre: bool = True
    burn_in: float = Field(0.1, ge=0, le=1)
    ramp: float = Field(0.4, ge=0, le=1)
    driver: Literal["loss", "displacement", "readiness"] = "readiness"
    ready_dice: float = Field(0.6, ge=0, lt=1)
    min_foreground: int = Field(100, ge=0)
    memory: int = Field(31, ge=0)
    accumulate: int = Field(1, gt=0)
    case_memory: bool = False

    @model_validator(mode="after")
    def _ramp_follows_burn_in(self) -> Self:
        if self.ramp < self.burn_in:
            raise ValueError(f"ramp must not be less than burn_in, got {self.ramp} and {self.burn_in}")
        return self

    def strength(self, progress: float) -> float | None:
        """Share of the scores that holds after this share of the training; None during burn-in."""
        if progress < self.burn_in:
            return None
        return 1.0 if progress >= self.ramp else (progress - self.burn_in) / (self.ramp - self.burn_in)


class TrainerSettings(BaseModel):
    """What a trainer of ours can be told. Defaults are nnU-Net 2.8's own, so an empty block trains as stock does.

    Args:
        num_epochs: Epochs in all.
        num_iterations_per_epoch: Optimiser steps per epoch.
        num_val_iterations_per_epoch: Batches of the running ("pseudo Dice") validation.
        initial_lr: Learning rate at the start.
        weight_decay: Of the optimiser.
        optimizer: SGD (momentum 0.99, Nesterov), Adam or AdamW.
        lr_schedule: "poly" (exponent 0.9, nnU-Net's), "constant", or "plateau" (nnU-Net v1's: a fifth after 30 epochs
            in which the running average of the training loss gained less than 1e-3; training ends early after 50 such
            epochs at 1e-6 or less).
        lr_update: When the schedule moves: every "epoch" (nnU-Net's) or every "iteration", which a training of few
            epochs needs to end at a small learning rate.
        batch_size: None keeps the plans' value.
        oversample_foreground_percent: Share of each batch that must contain foreground, 0 to 1.
        deep_supervision: Auxiliary losses at lower resolutions.
        save_every: Epochs between two ``checkpoint_latest.pth``.
        seed: Epoch ``e`` starts from ``seed + e`` in python, numpy and torch.
        limit_rotation: Limit in-plane rotation to ±15° where it would reach ±90°, which makes the anterior-posterior
            mirror legal again.
        mirror_at_prediction: Average over the legal mirrors at prediction; off is 2 to 8 times faster.
        loss: "dice_ce" (Dice + cross-entropy, nnU-Net's), "dice" (soft Dice alone, 1 − 2|P∩G| / (|P| + |G|) with plain
            sums and epsilon 1e-5, mean over organs), "bce_dice" (the same Dice + binary cross-entropy of every organ
            against all else; equal to "dice_ce" for one organ and for regions) or "bce" (that cross-entropy alone).
        pass_weights: Of the losses of the passes of a refining network, first pass first; only nnUNetTrainerExtRefine
            reads it. None is 1, 2, 3 and so on.
        early_stop: Epochs without a new best running Dice (the EMA of the pseudo Dice) after which training ends as if
            that epoch were the last; None trains all epochs.
        augmentation: "full" (nnU-Net's), "flips_noise" (mirrors and Gaussian noise alone) or "flips" (mirrors alone).
        mirror: Axes that trainers which know left from right may mirror. "legal": never across left-right. "auto":
            across as well where the dataset has one organ and that organ has no side (OpticChiasm), because a binary
            network cannot confuse what it does not tell apart. "all": across as well for any dataset without a
            left-right pair; right for one sided organ (Lens_L) only in a region that leaves its partner out.
        cpu_threads: Threads of one CPU training; None leaves torch's choice.
        present_labels: What an organ is in a case where ``present_labels.json`` of the dataset says that nobody
            contoured it: "leave_out" (neither foreground nor background) or "background" (nnU-Net's).
        quality: Weights of samples by the quality of their contours; only nnUNetTrainerExtQuality and
            nnUNetTrainerExtQualityLiteral read it. Keys of the plans are added to those of the class.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    num_epochs: int = Field(1000, gt=0)
    num_iterations_per_epoch: int = Field(250, gt=0)
    num_val_iterations_per_epoch: int = Field(50, gt=0)
    initial_lr: float = Field(1e-2, gt=0)
    weight_decay: float = Field(3e-5, ge=0)
    optimizer: Literal["SGD", "Adam", "AdamW"] = "SGD"
    lr_schedule: Literal["poly", "constant", "plateau"] = "poly"
    lr_update: Literal["epoch", "iteration"] = "epoch"
    batch_size: int | None = Field(None, gt=0)
    oversample_foreground_percent: float = Field(0.33, ge=0, le=1)
    deep_supervision: bool = True
    save_every: int = Field(50, gt=0)
    seed: int = Field(12345, ge=0, lt=2**31)
    limit_rotation: bool = False
    mirror_at_prediction: bool = True
    loss: Literal["dice_ce", "dice", "bce_dice", "bce"] = "dice_ce"
    pass_weights: list[NonNegativeFloat] | None = Field(None, min_length=1)
    early_stop: int | None = Field(None, gt=0)
    augmentation: Literal["full", "flips_noise", "flips"] = "full"
    mirror: Literal["legal", "auto", "all"] = "legal"
    cpu_threads: int | None = Field(None, gt=0)
    present_labels: Literal["leave_out", "background"] = "leave_out"
    quality: QualitySettings = QualitySettings()


def resolve_settings(trainer: type, block: Mapping[str, Any], where: str) -> TrainerSettings:
    """The settings of a trainer class under a plans block.

    Args:
        trainer: Class whose attributes named like a setting replace the default.
        block: Content of the plans block.
        where: Name of the block for messages.

    Raises:
        InputError: unknown key or wrong type; the message lists the valid keys.
    """
    values = {name: getattr(trainer, name) for name in TrainerSettings.model_fields if hasattr(trainer, name)}
    for name, value in block.items():
        nested = isinstance(value, Mapping) and isinstance(values.get(name), Mapping)
        values[name] = {**values[name], **value} if nested else value
    try:
        return TrainerSettings(**values)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}, got {e['input']!r}" for e in error.errors())
        raise InputError(
            f"{where}: {faults}. Valid keys: {', '.join(TrainerSettings.model_fields)}; "
            f"of quality: {', '.join(QualitySettings.model_fields)}."
        ) from error
