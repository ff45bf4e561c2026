"""Trains the deep residual U-Net of 2018 (DeepResUNet), with plans of nnU-Net's own.

Use it where plans exist already; ``nnunet-ext plan --network deep-res`` is better.
"""

from nnunet_ext.training.networks import nnUNetTrainerExtDeepRes

__all__ = ["nnUNetTrainerExtDeepRes"]
