"""Which voxels nnU-Net's default resampling mixes, with which weights, and the mix: scipy's arithmetic, bit by bit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from nnunetv2.preprocessing.resampling.default_resampling import (
    determine_do_sep_z_and_axis,
    resample_data_or_seg_to_shape,
)
from nnunetv2.preprocessing.resampling.no_resampling import no_resampling_hack
from nnunetv2.preprocessing.resampling.resample_torch import resample_torch_fornnunet
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from numpy.typing import NDArray
from scipy import ndimage
from skimage.transform import resize

Half = NDArray[np.float16]
Index = NDArray[np.intp]
Shape3 = tuple[int, int, int]


@dataclass(frozen=True)
class Axis:
    """For each output index the one or two input indices that it mixes, and their weights."""

    first: Index
    second: Index
    first_weight: NDArray[np.float64]
    second_weight: NDArray[np.float64]

    @classmethod
    def linear(cls, size: int, wanted: int) -> Axis:
        """As ``scipy.ndimage.zoom(order=1, mode="nearest", grid_mode=True)`` does it, rounding included."""
        at = (np.arange(wanted, dtype=np.float64) + 0.5) * (size / wanted) - 0.5
        start = np.floor(at)
        first_weight = 1.0 - (at - start)
        second_weight = 1.0 - first_weight
        first = np.clip(start, 0, size - 1).astype(np.intp)
        second = np.where(second_weight == 0, first, np.clip(start + 1, 0, size - 1).astype(np.intp))
        return cls(first, second, first_weight, second_weight)

    @classmethod
    def nearest(cls, index: NDArray[np.float64]) -> Axis:
        """One input index for each output index."""
        first = index.astype(np.intp)
        return cls(first, first, np.ones(len(first)), np.zeros(len(first)))


@dataclass(frozen=True)
class Resampling:
    """Three axes, and which one comes first: the slow one, along which output is made plane by plane."""

    axes: tuple[Axis, Axis, Axis]
    slow: int = 0


def resampling_of(
    configuration: ConfigurationManager,
    plans: PlansManager,
    properties: Mapping[str, Any],
    given: Shape3,
    wanted: Shape3,
) -> Resampling | None:
    """How stock would resample, or None where we do not know its arithmetic."""
    function = configuration.resampling_fn_probabilities
    known = (resample_data_or_seg_to_shape, no_resampling_hack, resample_torch_fornnunet)
    if tuple(given) == wanted and function.func in known:
        return Resampling(tuple(Axis.nearest(np.arange(n)) for n in wanted))  # type: ignore[arg-type]
    options = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": False, **function.keywords}
    threshold = options.pop("separate_z_anisotropy_threshold", None)
    if function.func is not resample_data_or_seg_to_shape or options["is_seg"] or options["order"] not in (0, 1):
        return None
    if options.keys() - {"is_seg", "order", "order_z", "force_separate_z"} or not _arithmetic_is_known():
        return None
    new = [properties["spacing"][i] for i in plans.transpose_forward]
    old = configuration.spacing if len(configuration.spacing) == len(wanted) else [new[0], *configuration.spacing]
    limit = () if threshold is None else (threshold,)
    separate, slow = determine_do_sep_z_and_axis(options["force_separate_z"], old, new, *limit)
    make = Axis.linear if options["order"] == 1 else _nearest_by_zoom
    if not separate:
        return Resampling(tuple(make(a, b) for a, b in zip(given, wanted, strict=True)))  # type: ignore[arg-type]
    if options["order_z"] != 0 and given[slow] != wanted[slow]:
        return None
    flat = [make(given[i], wanted[i]) for i in range(3) if i != slow]
    return Resampling((_nearest_by_map(given[slow], wanted[slow]), *flat), int(slow))  # type: ignore[arg-type]


def _nearest_by_zoom(size: int, wanted: int) -> Axis:
    numbers = np.arange(size, dtype=np.float64)
    return Axis.nearest(ndimage.zoom(numbers, 1 / (size / wanted), order=0, mode="nearest", grid_mode=True))


def _nearest_by_map(size: int, wanted: int) -> Axis:
    numbers = np.arange(size, dtype=np.float64)
    if size == wanted:
        return Axis.nearest(numbers)
    at = float(size) / wanted * (np.arange(wanted) + 0.5) - 0.5
    return Axis.nearest(ndimage.map_coordinates(numbers, at[None], order=0, mode="nearest"))


@lru_cache(maxsize=1)
def _arithmetic_is_known() -> bool:
    """Whether ``Mixer`` repeats the installed scipy to the last bit; a compiler may fuse what we do in two steps."""
    random = np.random.default_rng(0)
    for given, wanted in [((5, 6, 7), (9, 4, 15)), ((1, 9, 8), (1, 20, 19))]:
        image = random.normal(0, 10, given).astype(np.float16)
        axes = tuple(Axis.linear(a, b) for a, b in zip(given, wanted, strict=True))
        mixer = Mixer(image[None], axes)  # type: ignore[arg-type]
        y, x = (i.ravel() for i in np.indices(wanted[1:]))
        ours = np.stack([mixer.mix(z, y, x)[0].reshape(wanted[1:]) for z in range(wanted[0])])
        stock = resize(image.astype(np.float64), wanted, 1, mode="edge", anti_aliasing=False)  # type: ignore[no-untyped-call]
        if not np.array_equal(np.clip(ours, image.min(), image.max()), stock):
            return False
    return True


@dataclass
class Mixer:
    """Logits in double precision at the voxels that need them.

    Args:
        logits: (C, Z, Y, X), finite.
        axes: Corners and weights along Z, Y, X.
    """

    logits: Half
    axes: tuple[Axis, Axis, Axis]
    planes: dict[int, NDArray[np.float64]] = field(default_factory=dict)

    def mix(self, z: int, y: Index, x: Index) -> NDArray[np.float64]:
        """(C, N) logits of the N voxels (z, y, x) of the output: the sum, corner by corner, in scipy's order."""
        along_z, along_y, along_x = self.axes
        width = self.logits.shape[-1]
        total = np.zeros((len(self.logits), len(y)))
        value = np.empty_like(total)
        corners_z = [(int(first[z]), float(weight[z])) for first, weight in _corners(along_z)]
        self.planes = {k: plane for k, plane in self.planes.items() if k in dict(corners_z)}
        for plane, weight_z in corners_z:
            if weight_z == 0:
                continue  # adds nothing but a zero
            for row, weight_y in _corners(along_y):
                for column, weight_x in _corners(along_x):
                    np.take(self._plane(plane), row[y] * width + column[x], axis=1, out=value, mode="clip")
                    if weight_z != 1:
                        value *= weight_z
                    value *= weight_y[y]
                    value *= weight_x[x]
                    total += value
        return total

    def _plane(self, z: int) -> NDArray[np.float64]:
        if z not in self.planes:
            half = torch.from_numpy(np.ascontiguousarray(self.logits[:, z]))
            self.planes[z] = half.float().double().numpy().reshape(len(half), -1)
        return self.planes[z]


def _corners(axis: Axis) -> Iterator[tuple[Index, NDArray[np.float64]]]:
    yield axis.first, axis.first_weight
    yield axis.second, axis.second_weight
