"""Weighs samples by contour quality as published: BCE, Adam, batch 32, scores bounded by 2 from the first step.

Use it to repeat the published comparison; otherwise nnUNetTrainerExtQuality is safer.
"""

from nnunet_ext.training.quality_literal import nnUNetTrainerExtQualityLiteral

__all__ = ["nnUNetTrainerExtQualityLiteral"]
