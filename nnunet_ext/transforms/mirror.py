"""Mirroring that keeps left and right true: flip the image across the body and exchange the paired labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform


def swap_labels(labels: torch.Tensor, pairs: Sequence[tuple[int, int]]) -> torch.Tensor:
    """Exchange the two labels of every pair; all others, −1 and the ignore label stay.

    Shape:
        labels: any shape, integer.
        returns: a new tensor of the same shape and type.
    """
    swapped = labels.clone()
    for left, right in pairs:
        swapped[labels == left] = right
        swapped[labels == right] = left
    return swapped


class MirrorSwapTransform(BasicTransform):
    """Flips the lateral axis and exchanges paired labels, with the given probability.

    Put it before the padding label is removed. All channels of the segmentation are swapped: channel 0 is the target, a
    cascade's channel 1 the previous stage.

    Source: ours; the usual flip augmentation, made true for organs with a side.

    Args:
        lateral_axis: Spatial axis of the patch that runs left-right, counted without the channel.
        pairs: Pairs of label numbers to exchange.
        p: Probability of a flip.

    Shape:
        image: (C, [Z,] Y, X); segmentation: (S, [Z,] Y, X), integer.
    """

    def __init__(self, lateral_axis: int, pairs: Sequence[tuple[int, int]], p: float = 0.5) -> None:
        super().__init__()
        self.lateral_axis = lateral_axis
        self.pairs = tuple((int(a), int(b)) for a, b in pairs)
        self.p = p

    def get_parameters(self, **data_dict: Any) -> dict[str, bool]:
        """Draw whether this sample is flipped."""
        return {"flip": bool(torch.rand(1) < self.p)}

    def _apply_to_image(self, img: torch.Tensor, **params: Any) -> torch.Tensor:
        return torch.flip(img, [self.lateral_axis + 1]) if params["flip"] else img

    def _apply_to_regr_target(self, regression_target: torch.Tensor, **params: Any) -> torch.Tensor:
        return self._apply_to_image(regression_target, **params)

    def _apply_to_segmentation(self, segmentation: torch.Tensor, **params: Any) -> torch.Tensor:
        if not params["flip"]:
            return segmentation
        return swap_labels(torch.flip(segmentation, [self.lateral_axis + 1]), self.pairs)
