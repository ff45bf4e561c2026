"""Intensity windows: HU and MR values to a common range, and the same window as numbers in nnU-Net's plans."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nnunet_ext.preprocessing.images import Mask

SIGNED, UNIT = (-1.0, 1.0), (0.0, 1.0)
"""The two ranges in use."""


def window_limits(centre: float, width: float) -> tuple[float, float]:
    """Lowest and highest value of a window given as on a viewer, such as centre 40, width 400 → (-160, 240).

    Raises:
        ValueError: the width is not positive.
    """
    if not width > 0:
        raise ValueError(f"a window needs a positive width, got {width:g}.")
    return centre - width / 2, centre + width / 2


def window(
    image: NDArray[np.floating], low: float, high: float, to: tuple[float, float] = SIGNED
) -> NDArray[np.float32]:
    """The image clipped to ``low``…``high`` and mapped linearly to a range.

    Shape:
        image: any shape.
        returns: the same shape, float32 within ``to``.

    Raises:
        ValueError: high is not above low.
    """
    _check_limits(low, high)
    unit = (np.clip(np.asarray(image, dtype=np.float64), low, high) - low) / (high - low)
    return np.asarray(to[0] + unit * (to[1] - to[0]), dtype=np.float32)


def ct_normalization_numbers(low: float, high: float, to: tuple[float, float] = SIGNED) -> dict[str, float]:
    """The window as nnU-Net's ``CTNormalization`` reads it from the plans: clip to percentiles, minus mean, by std.

    Write it into ``foreground_intensity_properties_per_channel``; so a window needs no normaliser of our own.

    Raises:
        ValueError: high is not above low.
    """
    _check_limits(low, high)
    std = (high - low) / (to[1] - to[0])
    return {"percentile_00_5": low, "percentile_99_5": high, "mean": low - to[0] * std, "std": std}


def clip_percentiles(
    image: NDArray[np.floating], mask: Mask, low: float = 0.5, high: float = 99.5, to: tuple[float, float] = UNIT
) -> NDArray[np.float32]:
    """An MR clipped to percentiles inside the head mask and mapped to a range.

    Shape:
        image, mask: (Z, Y, X).
        returns: (Z, Y, X) float32 within ``to``.

    Raises:
        ValueError: the mask is empty, or the image is constant inside it.
    """
    if not mask.any():
        raise ValueError("the mask is empty, so there are no percentiles.")
    bottom, top = (float(v) for v in np.percentile(image[mask], (low, high)))
    return window(image, bottom, top, to)


def _check_limits(low: float, high: float) -> None:
    if not high > low:
        raise ValueError(f"a window needs high > low, got low {low:g}, high {high:g}.")
