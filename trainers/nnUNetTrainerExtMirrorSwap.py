"""Mirrors left-right and swaps the paired labels, so that both sides learn from each other.

Use it with few cases and organs in pairs named ``_L`` and ``_R``.
"""

from nnunet_ext.training.mirroring import nnUNetTrainerExtMirrorSwap

__all__ = ["nnUNetTrainerExtMirrorSwap"]
