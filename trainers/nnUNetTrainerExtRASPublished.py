"""Trains RASUNet as published: Adam 1e-4, batch 8, Dice, flips; 3D only.

Use it to repeat the published comparison; otherwise nnUNetTrainerExtRAS.
"""

from nnunet_ext.training.networks import nnUNetTrainerExtRASPublished

__all__ = ["nnUNetTrainerExtRASPublished"]
