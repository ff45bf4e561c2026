"""Left and right after the prediction: are the partners on their own sides, and which voxels crossed.

Never changes a map. Sides are the patient's: LPS x grows to the left. Positions come from the grid's
direction cosines, never from the array axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nnunet_ext.evaluation.surfaces import foreground_extent
from nnunet_ext.geometry import Grid


@dataclass(frozen=True)
class LateralityFinding:
    """Whether a left organ lies on the patient's left of its partner.

    Args:
        left: Label of the left organ.
        right: Label of the right organ.
        left_x_mm: LPS x of the left organ's centroid, NaN where the organ is missing.
        right_x_mm: The same of the right organ.
        judged: False where a side is missing; nothing is claimed then.
        plausible: False only where both are there and on the wrong sides (or at the same x).
    """

    left: int
    right: int
    left_x_mm: float
    right_x_mm: float
    judged: bool
    plausible: bool

    @property
    def verdict(self) -> str:
        """The finding in one word or two: ``plausible``, ``wrong side`` or ``not judged``."""
        if not self.judged:
            return "not judged"
        return "plausible" if self.plausible else "wrong side"


@dataclass(frozen=True)
class SideConfusion:
    """Voxels of one pair that carry the wrong side's label.

    Args:
        left: Label of the left organ.
        right: Label of the right organ.
        midline_x_mm: Sagittal plane midway between the two reference centroids; NaN if one is missing.
        left_on_right: Predicted left voxels on the patient's right of the midline, beyond the margin; None
            without a midline.
        right_on_left: Predicted right voxels on the patient's left of it, beyond the margin; None likewise.
        left_as_right: Reference-left voxels that were predicted as right.
        right_as_left: Reference-right voxels that were predicted as left.
    """

    left: int
    right: int
    midline_x_mm: float
    left_on_right: int | None
    right_on_left: int | None
    left_as_right: int
    right_as_left: int


def check_laterality(
    labels: NDArray[np.integer], grid: Grid, pairs: Sequence[tuple[int, int]]
) -> list[LateralityFinding]:
    """For each (left, right) pair whether the left centroid has the larger LPS x, as it has in a patient.

    Shape:
        labels: (Z, Y, X), on ``grid``.

    Raises:
        ValueError: the array does not have the grid's shape.
    """
    x_mm = _label_positions_mm(labels, grid, pairs)
    findings = []
    for left, right in pairs:
        left_x, right_x = _mean(x_mm[left]), _mean(x_mm[right])
        judged = bool(np.isfinite(left_x) and np.isfinite(right_x))
        findings.append(LateralityFinding(left, right, left_x, right_x, judged, not judged or left_x > right_x))
    return findings


def side_confusion(
    prediction: NDArray[np.integer],
    reference: NDArray[np.integer],
    grid: Grid,
    pairs: Sequence[tuple[int, int]],
    margin_mm: float = 5.0,
) -> list[SideConfusion]:
    """For each (left, right) pair the voxels that the prediction put on the wrong side.

    Args:
        prediction: Label map to judge.
        reference: Label map to believe; gives the midline.
        grid: The grid of both.
        pairs: (left label, right label).
        margin_mm: Distance from the midline up to which a voxel is on neither side.

    Shape:
        prediction, reference: (Z, Y, X).

    Raises:
        ValueError: an array does not have the grid's shape.
    """
    truth_mm = _label_positions_mm(reference, grid, pairs)
    found_mm = _label_positions_mm(prediction, grid, pairs)
    extent = foreground_extent(prediction, reference)
    truth, found = reference[extent], prediction[extent]
    result = []
    for left, right in pairs:
        midline = (_mean(truth_mm[left]) + _mean(truth_mm[right])) / 2
        known = bool(np.isfinite(midline))
        result.append(
            SideConfusion(
                left,
                right,
                midline,
                int(np.count_nonzero(found_mm[left] < midline - margin_mm)) if known else None,
                int(np.count_nonzero(found_mm[right] > midline + margin_mm)) if known else None,
                int(np.count_nonzero((truth == left) & (found == right))),
                int(np.count_nonzero((truth == right) & (found == left))),
            )
        )
    return result


def _label_positions_mm(
    labels: NDArray[np.integer], grid: Grid, pairs: Sequence[tuple[int, int]]
) -> dict[int, NDArray[np.float64]]:
    """LPS x of every voxel of every label in the pairs."""
    if labels.shape != grid.shape:
        raise ValueError(f"labels {labels.shape} and grid {grid.shape} differ in shape.")
    extent = foreground_extent(labels)
    inside = labels[extent]
    flat = np.flatnonzero(inside)
    found = inside.ravel()[flat]
    z, y, x = (index + side.start for index, side in zip(np.unravel_index(flat, inside.shape), extent, strict=True))
    along_x, along_y, along_z, origin = grid.affine[0]  # the row of the patient's x
    x_mm = along_x * x + along_y * y + along_z * z + origin
    return {label: x_mm[found == label] for pair in pairs for label in pair}


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if values.size else float("nan")
