"""Trains DeepResUNet as published: Adam 1e-4, batch 2, Dice, early stop.

Use it to repeat the published comparison; otherwise nnUNetTrainerExtDeepRes.
"""

from nnunet_ext.training.networks import nnUNetTrainerExtDeepResPublished

__all__ = ["nnUNetTrainerExtDeepResPublished"]
