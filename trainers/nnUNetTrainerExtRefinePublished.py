"""Trains SEResUNet in three passes as published: Adam 1e-4, batch 1, 100 000 steps, BCE + Dice.

Use it to repeat the published comparison; otherwise nnUNetTrainerExtRefine.
"""

from nnunet_ext.training.refinement import nnUNetTrainerExtRefinePublished

__all__ = ["nnUNetTrainerExtRefinePublished"]
