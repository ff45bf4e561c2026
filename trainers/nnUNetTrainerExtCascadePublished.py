"""Trains a region's segmenter as published: Adam 2e-4, one case at a time, Dice, flips and noise, early stop.

Use it to repeat the published comparison; otherwise nnUNetTrainerExtCascade is better.
"""

from nnunet_ext.training.cascade import nnUNetTrainerExtCascadePublished

__all__ = ["nnUNetTrainerExtCascadePublished"]
