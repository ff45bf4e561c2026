"""Regions: how a centre is found, a box cut and pasted back; the same code for training and for prediction."""

from nnunet_ext.geometry import Box
from nnunet_ext.roi.boxes import crop, paste
from nnunet_ext.roi.centre import centre_of

__all__ = ["Box", "centre_of", "crop", "paste"]
