"""Trains without left-right mirroring, wherever left-right lies in the arrays.

Use it when organs have a side; stock ``nnUNetv2_predict`` obeys the axes it stored.
"""

from nnunet_ext.training.mirroring import nnUNetTrainerExtNoMirror

__all__ = ["nnUNetTrainerExtNoMirror"]
