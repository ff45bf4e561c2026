"""From logits on a network's grid to the label map on the image's grid: stock's bits without resampling every class.

Source: nnU-Net's ``convert_predicted_logits_to_segmentation_with_correct_shape`` resamples the logits of all classes in
double precision, rounds them to half and takes the largest. An output voxel is a mix of two to eight corner voxels with
weights w_i >= 0, so it is enough to look at the corners:

* Class k is largest at every corner. Multiplying by a weight and adding are monotone also after rounding, so stock
  finds t_k >= t_j for every other class j, and ``argmax`` answers k unless an *earlier* class ends on the same half.
* That needs t_k - t_j <= ulp(t_k) <= 2^-10 |t_k| + 2^-24. Where each corner i has
  v_ki - v_ji > 1.001 (2^-10 |v_ki| + 2^-24), the mix has it too (the weights sum to one): no tie. A voxel with an
  earlier class nearer than that counts as undecided.
* Regions: head j is on above a fixed half. If all its corners are on, or all off, so is the mix.
* Stock clips the mix to the range of its class. A mix leaves that range by rounding in double only, which the rounding
  to half takes back: clipping never changes a half.

Everywhere else the logits are mixed with the arithmetic of ``scipy.ndimage``, operation by operation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from numpy.typing import NDArray

from nnunet_ext.recipe.interpolation import Half, Mixer, Resampling, Shape3, resampling_of

Map = NDArray[np.integer]

INFINITE = 0x7C00
"""Bits of infinity in half precision; what is above is not a number."""
CHUNK = 1 << 19
"""Values that are mixed at once; our choice, so that they stay in the cache."""


def labels_from_logits(
    logits: torch.Tensor,
    plans: PlansManager,
    configuration: ConfigurationManager,
    labels: LabelManager,
    properties: Mapping[str, Any],
) -> Map:
    """The label map of an image, bit for bit what stock's export gives.

    Resamples in its own way what nnU-Net's default resampling of order 0 or 1 produces; anything else (order 3, torch,
    other label managers, logits that are not finite halves) goes through stock's own function.

    Args:
        logits: Averaged output of the network.
        plans: Transposition of the axes.
        configuration: Spacing and resampling.
        labels: Classes or regions.
        properties: What the preprocessor remembers of the image.

    Shape:
        logits: (C, Z, Y, X) on the network's grid, half.
        returns: (Z, Y, X) on the grid of the image, uint8 (uint16 from 255 labels on).
    """
    shape: Shape3 = tuple(int(n) for n in properties["shape_after_cropping_and_before_resampling"])  # type: ignore
    array = logits.numpy()
    rule = _rule(labels, array.shape[0])
    resampling = resampling_of(configuration, plans, properties, array.shape[1:], shape)
    if rule is None or resampling is None or not _is_finite_half(array):
        stock: Map = convert_predicted_logits_to_segmentation_with_correct_shape(
            logits, plans, configuration, labels, dict(properties)
        )
        return stock
    result = np.zeros(
        properties["shape_before_cropping"], np.uint8 if len(labels.foreground_labels) < 255 else np.uint16
    )
    box = tuple(slice(int(start), int(stop)) for start, stop in properties["bbox_used_for_cropping"])
    _fill(result[box], array, rule, resampling)
    return result.transpose(plans.transpose_backward)


# --- which class wins -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Rule:
    """How the heads of a network become one number per voxel.

    Args:
        undecided: Number that stands for "look closer".
        numbers: Winner to label.
        threshold: Smallest half (as key) that switches a region on; None where the largest class wins.
    """

    undecided: int
    numbers: NDArray[np.integer]
    threshold: int | None

    @property
    def dtype(self) -> type[np.uint8] | type[np.uint16]:
        return np.uint8 if self.undecided == 255 else np.uint16

    def winners(self, half: Half) -> Map:
        """(C, ...) to the first of the largest classes, or one more than the last region that is on, 0 for none."""
        if self.threshold is None:
            return _argmax(half, self.dtype)[0]
        on = np.zeros(half.shape[1:], self.dtype)
        for number, head in enumerate(half, 1):
            np.maximum(on, (_keys(head) >= self.threshold) * self.dtype(number), out=on)
        return on

    def votes(self, half: Half) -> Map:
        """Winners, undecided where a mix with neighbours of the same vote could end in a tie."""
        if self.threshold is not None:
            return self.winners(half)
        winner, best, rival = _argmax(half, self.dtype)
        value, near = _floats(best), _floats(rival)
        np.subtract(value, near, out=near)
        np.abs(value, out=value)
        value *= np.float32(1.001 * 2**-10)
        value += np.float32(1.001 * 2**-24)
        winner[near <= value] = self.undecided
        return winner


def _rule(labels: LabelManager, heads: int) -> _Rule | None:
    if type(labels) is not LabelManager or heads >= 2**16 - 2:
        return None
    undecided = 255 if heads < 254 else 2**16 - 1
    if not labels.has_regions:
        return _Rule(undecided, np.arange(heads), None)
    threshold = _smallest_half_above_one_half()
    if labels.inference_nonlin is not torch.sigmoid or threshold is None or len(labels.regions_class_order) != heads:
        return None
    return _Rule(undecided, np.array([0, *labels.regions_class_order], np.int16), threshold)


@lru_cache(maxsize=1)
def _smallest_half_above_one_half() -> int | None:
    """Key of the smallest half whose sigmoid exceeds 0.5; None if torch does not answer the same everywhere."""
    steps = torch.arange(1, INFINITE, dtype=torch.int16).view(torch.half).float()
    on = torch.sigmoid(steps) > 0.5
    alone = torch.stack([torch.sigmoid(step[None])[0] > 0.5 for step in steps[:64]])
    first = int(on.int().argmax())
    known = bool(on[first:].all()) and torch.equal(alone, on[:64]) and bool(on[-1]) and first < 64
    return first + 1 if known and not bool(torch.sigmoid(torch.zeros(99)).gt(0.5).any()) else None


def _argmax(half: Half, dtype: type[np.uint8] | type[np.uint16]) -> tuple[Map, Map, Map]:
    """First largest class, its key, and the largest key among the classes before it."""
    best = _keys(half[0])
    winner, rival = np.zeros(best.shape, dtype), np.full(best.shape, -INFINITE, np.int16)
    for number in range(1, len(half)):
        key = _keys(half[number])
        better = key > best
        np.copyto(rival, best, where=better)
        np.maximum(winner, better * dtype(number), out=winner)
        np.maximum(best, key, out=best)
    return winner, best, rival


def _keys(half: Half) -> NDArray[np.int16]:
    """Integers in the order of the halves, 0 for both zeros: they compare many times faster."""
    bits = np.ascontiguousarray(half).view(np.int16)
    sign = bits >> 15  # 0 or -1
    magnitude: NDArray[np.int16] = bits & np.int16(0x7FFF)
    magnitude ^= sign
    magnitude -= sign
    return magnitude


def _floats(keys: Map) -> NDArray[np.float32]:
    sign = keys >> 15
    bits = (keys ^ sign) - sign
    bits |= sign & np.int16(-0x8000)
    # torch converts halves eight at a time, numpy one by one
    return torch.from_numpy(bits).view(torch.half).float().numpy()


def _is_finite_half(array: NDArray[Any]) -> bool:
    if array.dtype != np.float16:
        return False
    planes = (np.ascontiguousarray(plane).view(np.int16) for head in array for plane in head)
    return all(int((plane & np.int16(0x7FFF)).max()) < INFINITE for plane in planes)


# --- the map ----------------------------------------------------------------------------------------------------------


def _fill(result: Map, logits: Half, rule: _Rule, resampling: Resampling) -> None:
    """Write the labels of all output planes.

    Shape:
        result: (Z, Y, X), written.
        logits: (C, Z, Y, X) on the network's grid.
    """
    logits, result = np.moveaxis(logits, resampling.slow + 1, 1), np.moveaxis(result, resampling.slow, 0)
    slow, rows, columns = resampling.axes
    exact = all((axis.second_weight == 0).all() for axis in resampling.axes)
    mixer = Mixer(logits, resampling.axes)
    votes = _Votes(rule.winners if exact else rule.votes, logits)
    before: tuple[Any, ...] = ()
    for z in range(len(result)):
        pair = (slow.first[z], slow.second[z], slow.first_weight[z])
        if pair == before:
            result[z] = result[z - 1]
            continue
        before = pair
        plane = _agree(votes.of(slow.first[z]), votes.of(slow.second[z]), rule)
        plane = _agree(plane[:, columns.first], plane[:, columns.second], rule)
        plane = _agree(plane[rows.first], plane[rows.second], rule)
        _decide(plane, z, mixer, rule)
        result[z] = rule.numbers[plane]


@dataclass
class _Votes:
    """Votes of the two input planes that are needed now."""

    vote: Callable[[Half], Map]
    logits: Half
    planes: dict[int, Map] = field(default_factory=dict)

    def of(self, z: int) -> Map:
        if z not in self.planes:
            self.planes = {k: plane for k, plane in self.planes.items() if k >= z - 1}
            self.planes[z] = self.vote(self.logits[:, z])
        return self.planes[z]


def _agree(first: Map, second: Map, rule: _Rule) -> Map:
    return first if first is second else np.where(first == second, first, rule.dtype(rule.undecided))


def _decide(plane: Map, z: int, mixer: Mixer, rule: _Rule) -> None:
    """Fill in the undecided voxels of an output plane."""
    undecided = np.flatnonzero(plane == rule.undecided)
    flat, width = plane.reshape(-1), plane.shape[1]
    step = max(1, CHUNK // len(mixer.logits))
    for start in range(0, len(undecided), step):
        here = undecided[start : start + step]
        y, x = np.divmod(here, width)
        flat[here] = rule.winners(mixer.mix(z, y, x).astype(np.float16))
