"""Trains as stock nnU-Net does, with settings from the plans block ``nnunet_ext``, exact resume and safe checkpoints.

Use it where mirroring is wanted, or as the base of a trainer of your own.
"""

from nnunet_ext.training.base import nnUNetTrainerExt

__all__ = ["nnUNetTrainerExt"]
