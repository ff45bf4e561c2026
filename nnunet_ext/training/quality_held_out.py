"""What a QAM says about cases that it never saw: the scores of the audit."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.utils.seg_to_regions import ConvertSegmentationToRegionsTransform
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from numpy.typing import NDArray

from nnunet_ext.geometry import Box
from nnunet_ext.io.atomic import write_text
from nnunet_ext.losses.present import erase_absent
from nnunet_ext.roi.boxes import crop

AT_ONCE = 8
"""Patches that the QAM sees at a time."""


def covering_tiles(foreground: NDArray[np.bool_], patch: Sequence[int]) -> list[Box]:
    """Patches side by side that cover the foreground of a case, centred on it; none for an empty one.

    Args:
        foreground: (Z, Y, X).
        patch: Size of a patch; one of two axes is a slice.
    """
    if not foreground.any():
        return []
    size = [1] * (3 - len(patch)) + [int(n) for n in patch]
    starts = []
    for axis, edge in enumerate(size):
        where = np.flatnonzero(foreground.any(axis=tuple(a for a in range(3) if a != axis)))
        low, length = int(where[0]), int(where[-1]) - int(where[0]) + 1
        count = math.ceil(length / edge)
        first = low - (count * edge - length) // 2
        starts.append([first + i * edge for i in range(count)])
    corners = product(*starts)
    boxes = [Box((z, y, x), (z + size[0], y + size[1], x + size[2])) for z, y, x in corners]
    return [box for box in boxes if _holds(foreground, box)]


def heads_target(labels: NDArray[np.integer], manager: LabelManager) -> torch.Tensor:
    """A patch of labels as the training transforms give it: padding is background, regions have a channel each.

    Shape:
        labels: (1, [Z,] Y, X); returns: (1 or regions, [Z,] Y, X).
    """
    target = torch.from_numpy(np.maximum(labels, 0).astype(np.int16))
    if not manager.has_regions:
        return target
    regions = [*manager.foreground_regions, *([manager.ignore_label] if manager.has_ignore_label else [])]
    converted: torch.Tensor = ConvertSegmentationToRegionsTransform(regions, channel_in_seg=0)(segmentation=target)[
        "segmentation"
    ]
    return converted


def counted_labels(manager: LabelManager, absent: Sequence[bool] | None = None) -> list[int]:
    """Labels whose voxels are contours in a case: of a head that was contoured, neither background nor ignored.

    Args:
        manager: Labels of the dataset.
        absent: Heads that were not contoured, as absent_heads gives them; None is none.
    """
    heads = manager.foreground_regions if manager.has_regions else manager.all_labels
    gone = [False] * len(heads) if absent is None else absent
    there = [head for head, left_out in zip(heads, gone, strict=True) if not left_out]
    parts = [head if isinstance(head, (tuple, list)) else [head] for head in there]
    return sorted({int(label) for part in parts for label in part} - {0})


def case_answer(
    image: NDArray[np.floating],
    labels: NDArray[np.integer],
    patch: Sequence[int],
    manager: LabelManager,
    min_foreground: int,
    ask: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    absent: Sequence[bool] | None = None,
) -> float:
    """Mean answer of a QAM over the patches of a case; NaN for a case without a contour.

    As in training, voxels to ignore are no contour, and what was not contoured is not there.

    Args:
        image: (C, Z, Y, X), preprocessed.
        labels: (1, Z, Y, X), preprocessed.
        patch: Patch size of the configuration.
        manager: Labels of the dataset.
        min_foreground: Labelled voxels of a patch that counts; where none has as many, the one with most does.
        ask: From images (B, C, [Z,] Y, X) and targets to answers (B,).
        absent: Heads that were not contoured in this case; None is none.
    """
    contours = np.isin(labels[0], counted_labels(manager, absent))
    tiles = covering_tiles(contours, patch)
    if not tiles:
        return float("nan")
    sizes = np.array([np.count_nonzero(crop(contours, box)) for box in tiles])
    chosen = [tiles[i] for i in np.flatnonzero(sizes >= min(min_foreground, sizes.max()))]
    flat = (slice(None), 0) if len(patch) == 2 else (slice(None),)
    answers = []
    for start in range(0, len(chosen), AT_ONCE):
        boxes = chosen[start : start + AT_ONCE]
        images = [np.stack([crop(np.asarray(channel), box) for channel in image])[flat] for box in boxes]
        targets = torch.stack([heads_target(crop(labels[0], box)[None][flat], manager) for box in boxes])
        if absent is not None:
            targets = erase_absent(targets, torch.tensor([list(absent)] * len(boxes)), regions=manager.has_regions)
        answers.append(ask(torch.from_numpy(np.stack(images)).float(), targets))
    return float(torch.cat(answers).mean())


def write_held_out(path: Path, scores: dict[str, float]) -> None:
    """Write case, score and weight (1 is the mean of the held-out cases); cases without a score are left out.

    Args:
        path: CSV to write.
        scores: Case to score; the weight is proportional to its exponential.
    """
    known = {case: score for case, score in sorted(scores.items()) if math.isfinite(score)}
    weights = np.exp(np.array(list(known.values())) - max(known.values(), default=0.0))
    lines = [
        f"{case},{score:.6g},{weight / weights.mean():.6g}\n"
        for (case, score), weight in zip(known.items(), weights, strict=True)
    ]
    write_text(path, "case,score,weight\n" + "".join(lines))


def _holds(foreground: NDArray[Any], box: Box) -> bool:
    inside = tuple(slice(max(0, a), max(0, b)) for a, b in zip(box.start, box.stop, strict=True))
    return bool(foreground[inside].any())
