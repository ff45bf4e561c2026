from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from nnunet_ext.evaluation.laterality import check_laterality, side_confusion
from nnunet_ext.geometry import Grid

LEFT, RIGHT = 1, 2
PAIRS = [(LEFT, RIGHT)]
TILT = math.radians(15)
DIRECTIONS = {
    "plain": np.eye(3),
    "x mirrored": np.diag([-1.0, 1.0, 1.0]),
    "x and y mirrored": np.diag([-1.0, -1.0, 1.0]),
    "axes permuted": np.array([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]),
    "permuted and mirrored": np.array([[0.0, -1.0, 0.0], [0.0, 0.0, 1.0], [-1.0, 0.0, 0.0]]),
    "oblique": np.array(
        [[math.cos(TILT), -math.sin(TILT), 0.0], [math.sin(TILT), math.cos(TILT), 0.0], [0.0, 0.0, 1.0]]
    ),
}


@pytest.fixture(params=list(DIRECTIONS))
def grid(request: pytest.FixtureRequest) -> Grid:
    """40³ voxels around the patient's origin, axes as named."""
    matrix = DIRECTIONS[request.param]
    spacing = (3.0, 1.0, 1.0)
    middle = matrix @ (np.array(spacing[::-1]) * 19.5)
    return Grid((40, 40, 40), spacing, tuple(-middle), tuple(matrix.ravel()))


def phantom(
    grid: Grid, left_x_mm: float = 12.0, right_x_mm: float = -12.0, radius_mm: float = 5.0
) -> NDArray[np.uint8]:
    """A ball named left at the patient's left (positive LPS x) and one named right at the patient's right."""
    points = grid.points_mm(np.argwhere(np.ones(grid.shape, dtype=bool)))
    labels = np.zeros(grid.shape, dtype=np.uint8)
    for label, x_mm in ((LEFT, left_x_mm), (RIGHT, right_x_mm)):
        inside = np.linalg.norm(points - [x_mm, 0, 0], axis=1) <= radius_mm
        labels[inside.reshape(grid.shape)] = label
    return labels


def test_the_named_left_is_on_the_patients_left_whatever_the_axes(grid: Grid) -> None:
    (finding,) = check_laterality(phantom(grid), grid, PAIRS)
    assert finding.judged
    assert finding.plausible
    assert finding.left_x_mm == pytest.approx(12, abs=1)
    assert finding.right_x_mm == pytest.approx(-12, abs=1)
    assert finding.verdict == "plausible"


def test_swapped_sides_are_reported_and_nothing_is_changed(grid: Grid) -> None:
    labels = phantom(grid, left_x_mm=-12, right_x_mm=12)
    before = labels.copy()
    (finding,) = check_laterality(labels, grid, PAIRS)
    assert (finding.judged, finding.plausible, finding.verdict) == (True, False, "wrong side")
    np.testing.assert_array_equal(labels, before)


def test_a_missing_side_is_not_judged(grid: Grid) -> None:
    labels = phantom(grid)
    labels[labels == RIGHT] = 0
    (finding,) = check_laterality(labels, grid, PAIRS)
    assert (finding.judged, finding.plausible, finding.verdict) == (False, True, "not judged")
    assert math.isnan(finding.right_x_mm)
    assert check_laterality(np.zeros_like(labels), grid, PAIRS)[0].verdict == "not judged"


def test_a_perfect_prediction_has_no_confused_voxel(grid: Grid) -> None:
    labels = phantom(grid)
    (found,) = side_confusion(labels, labels, grid, PAIRS)
    assert found.midline_x_mm == pytest.approx(0, abs=0.5)
    assert (found.left_on_right, found.right_on_left, found.left_as_right, found.right_as_left) == (
        0,
        0,
        0,
        0,
    )


def test_swapped_labels_are_counted_voxel_by_voxel(grid: Grid) -> None:
    reference = phantom(grid)
    prediction = phantom(grid, left_x_mm=-12, right_x_mm=12)
    left, right = np.count_nonzero(reference == LEFT), np.count_nonzero(reference == RIGHT)
    (found,) = side_confusion(prediction, reference, grid, PAIRS)
    assert (found.left_on_right, found.right_on_left) == (right, left)
    assert (found.left_as_right, found.right_as_left) == (left, right)


def test_one_stray_voxel_counts_on_its_side_only(grid: Grid) -> None:
    reference = phantom(grid)
    prediction = reference.copy()
    stray = tuple(np.argwhere(reference == RIGHT)[0])
    prediction[stray] = LEFT
    (found,) = side_confusion(prediction, reference, grid, PAIRS)
    assert (found.left_on_right, found.right_on_left, found.left_as_right, found.right_as_left) == (
        1,
        0,
        0,
        1,
    )


def test_voxels_within_the_margin_of_the_midline_are_on_neither_side(grid: Grid) -> None:
    reference = phantom(grid)
    prediction = phantom(grid, left_x_mm=0, radius_mm=4)
    prediction[prediction == RIGHT] = 0
    assert side_confusion(prediction, reference, grid, PAIRS)[0].left_on_right == 0
    crossed = side_confusion(prediction, reference, grid, PAIRS, margin_mm=0)[0].left_on_right
    assert crossed is not None
    assert crossed > 0


def test_without_both_reference_organs_there_is_no_midline(grid: Grid) -> None:
    prediction = phantom(grid)
    reference = prediction.copy()
    reference[reference == LEFT] = 0
    (found,) = side_confusion(prediction, reference, grid, PAIRS)
    assert math.isnan(found.midline_x_mm)
    assert (found.left_on_right, found.right_on_left) == (None, None)


def test_an_array_of_another_shape_is_refused(grid: Grid) -> None:
    with pytest.raises(ValueError, match=r"\(2, 2, 2\) and grid \(40, 40, 40\)"):
        check_laterality(np.zeros((2, 2, 2), dtype=np.uint8), grid, PAIRS)
