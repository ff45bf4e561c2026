"""Trains the segmenter of a region as recommended: nnU-Net's optimiser and loss, small rotations, legal mirrors.

Use it on datasets that ``nnunet-ext roi`` made, with the plans of any network.
"""

from nnunet_ext.training.cascade import nnUNetTrainerExtCascade

__all__ = ["nnUNetTrainerExtCascade"]
