"""Trains the residual network with channel gates (SEResUNet), with plans of nnU-Net's own.

Use it where plans exist already; ``nnunet-ext plan --network se-res`` is better.
"""

from nnunet_ext.training.networks import nnUNetTrainerExtSERes

__all__ = ["nnUNetTrainerExtSERes"]
