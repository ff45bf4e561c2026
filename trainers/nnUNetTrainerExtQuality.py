"""Weighs every sample by how well its contours seem to fit the image, as a second network learns it.

Use it where contours come from many hands and up to half are grossly wrong; works at any batch size. Dice is per sample
here, even where the plans have batch_dice (2D); the control with equal weights is
``"quality": {"burn_in": 1, "ramp": 1}``.
"""

from nnunet_ext.training.quality import nnUNetTrainerExtQuality

__all__ = ["nnUNetTrainerExtQuality"]
