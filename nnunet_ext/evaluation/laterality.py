"""Left and right after the prediction: are the partners on their own sides, and which voxels crossed.

Never changes a map. Sides are the patient's: LPS x grows to the left. Positions come from the grid's
direction cosines, never from the array axes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
    x_mm = _mean_x_mm(labels, grid, pairs)
    findings = []
    for left, right in pairs:
        left_x, right_x = x_mm[left], x_mm[right]
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
    mean_mm = _mean_x_mm(reference, grid, pairs)
    midlines = {(left, right): (mean_mm[left] + mean_mm[right]) / 2 for left, right in pairs}
    on_right = dict.fromkeys(pairs, 0)  # of the left organ, beyond the margin
    on_left = dict.fromkeys(pairs, 0)
    for plane, x_mm in _planes(prediction, grid):
        for left, right in pairs:
            low, high = midlines[left, right] - margin_mm, midlines[left, right] + margin_mm
            on_right[left, right] += int(np.count_nonzero((plane == left) & (x_mm < low)))
            on_left[left, right] += int(np.count_nonzero((plane == right) & (x_mm > high)))
    extent = foreground_extent(prediction, reference)
    truth, found = reference[extent], prediction[extent]
    result = []
    for pair in pairs:
        left, right = pair
        known = bool(np.isfinite(midlines[pair]))
        result.append(
            SideConfusion(
                left,
                right,
                midlines[pair],
                on_right[pair] if known else None,
                on_left[pair] if known else None,
                int(np.count_nonzero((truth == left) & (found == right))),
                int(np.count_nonzero((truth == right) & (found == left))),
            )
        )
    return result


def _mean_x_mm(labels: NDArray[np.integer], grid: Grid, pairs: Sequence[tuple[int, int]]) -> dict[int, float]:
    """LPS x of the centroid of every label in the pairs; NaN where it is missing."""
    wanted = [label for pair in pairs for label in pair]
    count, total = np.zeros(max(wanted, default=0) + 1), np.zeros(max(wanted, default=0) + 1)
    for plane, x_mm in _planes(labels, grid):
        asked = plane < len(count)
        count += np.bincount(plane[asked], minlength=len(count))
        total += np.bincount(plane[asked], x_mm[asked], minlength=len(count))
    return {label: float(total[label] / count[label]) if count[label] else float("nan") for label in wanted}


def _planes(labels: NDArray[np.integer], grid: Grid) -> Iterator[tuple[NDArray[np.integer], NDArray[np.float64]]]:
    """Plane by plane of the foreground's box, to spare memory: labels (Y, X) and the LPS x of their voxels.

    Raises:
        ValueError: the array does not have the grid's shape.
    """
    if labels.shape != grid.shape:
        raise ValueError(f"labels {labels.shape} and grid {grid.shape} differ in shape.")
    z, y, x = foreground_extent(labels)
    along_x, along_y, along_z, origin = grid.affine[0]  # the row of the patient's x
    in_plane = along_x * np.arange(x.start, x.stop) + along_y * np.arange(y.start, y.stop)[:, None]
    for index in range(z.start, z.stop):
        yield labels[index, y, x], in_plane + (along_z * index + origin)
