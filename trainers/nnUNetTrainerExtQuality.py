"""Weighs every sample by how well its contours seem to fit the image, as a second network learns it.

Use it where contours come from many hands and some are wrong; works at any batch size.
"""

from nnunet_ext.training.quality import nnUNetTrainerExtQuality

__all__ = ["nnUNetTrainerExtQuality"]
