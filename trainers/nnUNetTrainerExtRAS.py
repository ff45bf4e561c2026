"""Trains the separable-convolution network with spatial attention (RASUNet), with plans of nnU-Net's own; 3D only.

Use it on thick slices where plans exist already; ``nnunet-ext plan --network ras`` is better.
"""

from nnunet_ext.training.networks import nnUNetTrainerExtRAS

__all__ = ["nnUNetTrainerExtRAS"]
