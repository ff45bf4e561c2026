"""nnU-Net's augmentation: repeatable, with transforms of ours, and without those that a setting leaves out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTansform


def augmentation(
    stock: Sequence[BasicTransform], choice: Literal["full", "flips", "flips_noise"], own: Sequence[BasicTransform]
) -> ComposeTransforms:
    """nnU-Net's transforms for training, with ``own`` before the padding label is removed.

    Args:
        stock: As nnU-Net lists them.
        choice: What of its augmentation is kept.
        own: Transforms that see integer labels, padding is −1.
    """
    for transform in stock:
        inner = getattr(transform, "transform", transform)
        if isinstance(inner, GaussianBlurTransform):
            inner.benchmark = False  # it would pick convolution or FFT by timing: other bits at every run
    where = next(i for i, t in enumerate(stock) if isinstance(t, RemoveLabelTansform))
    before = list(stock[:where])
    if choice != "full":
        before = flips_and_noise(before, noise=choice == "flips_noise")
    return ComposeTransforms([*before, *own, *stock[where:]])


def flips_and_noise(transforms: Iterable[BasicTransform], *, noise: bool) -> list[BasicTransform]:
    """Of nnU-Net's augmentation what crops, mirrors and masks; without rotation and scaling.

    Args:
        transforms: nnU-Net's list up to the removal of the padding label; every random one there is augmentation.
        noise: Keep the Gaussian noise too.
    """
    kept = []
    for transform in transforms:
        if isinstance(transform, RandomTransform):
            if noise and isinstance(transform.transform, GaussianNoiseTransform):
                kept.append(transform)
            continue
        if isinstance(transform, SpatialTransform):  # stays, because it also crops to the patch
            transform.p_rotation = transform.p_scaling = 0.0
        kept.append(transform)
    return kept
