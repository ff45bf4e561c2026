from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nnunet_ext.evaluation.overlay import draw_overlay, telling_slices
from nnunet_ext.geometry import Grid
from nnunet_ext.phantom import ORGANS, draw_case

SPACING_MM = (3.0, 1.0, 1.0)
UPRIGHT = Grid((8, 60, 40), SPACING_MM)


def picture(path: Path) -> np.ndarray:
    from matplotlib.image import imread

    return np.asarray(imread(path))[..., :3]


def left_is_grey() -> np.ndarray:
    """Air, but grey at large x (the patient's left) and at the front."""
    image = np.full(UPRIGHT.shape, -1000, dtype=np.float32)
    image[:, :, 25:] = 40
    image[:, :15, :] = 40
    return image


def cube() -> np.ndarray:
    labels = np.zeros(UPRIGHT.shape, dtype=np.uint8)
    labels[2:6, 25:35, 15:25] = 1
    return labels


def mirrored(array: np.ndarray) -> tuple[np.ndarray, Grid]:
    """The same patient stored from left to right, and transposed to sagittal slices."""
    end = UPRIGHT.points_mm([(0, 0, UPRIGHT.shape[2] - 1)])[0]
    direction = (0.0, 0.0, -1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0)  # index x along z, y along y, z along −x
    stored = np.ascontiguousarray(array[:, :, ::-1].transpose(2, 1, 0))
    return stored, Grid(stored.shape, (1.0, 1.0, 3.0), (float(end[0]), 0.0, 0.0), direction)


def test_overlay_of_a_phantom_is_a_picture_with_lines_in_colour(tmp_path):
    image, labels, grid = draw_case(0)
    draw_overlay(tmp_path / "a.png", image, grid, {"reference": labels, "prediction": labels}, ORGANS, "a")
    pixels = picture(tmp_path / "a.png")
    assert pixels.shape[1] > 1000
    assert (np.ptp(pixels, axis=2) > 0.3).sum() > 1000
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


def test_patient_left_is_on_the_right_of_the_picture_and_the_front_is_up(tmp_path):
    draw_overlay(tmp_path / "a.png", left_is_grey(), UPRIGHT, {"reference": cube()}, {"Cube": 1}, "a")
    panel = picture(tmp_path / "a.png")[60:460, :490].mean(axis=2)
    grey, black = (np.argwhere(abs(panel - level) < 0.02).mean(axis=0) for level in (0.5, 0.0))
    assert grey[0] < black[0] - 20
    assert grey[1] > black[1] + 20


def test_the_picture_does_not_depend_on_how_the_voxels_are_stored(tmp_path):
    image, grid = mirrored(left_is_grey())
    labels, _ = mirrored(cube())
    draw_overlay(tmp_path / "stored.png", image, grid, {"reference": labels}, {"Cube": 1}, "a")
    draw_overlay(tmp_path / "upright.png", left_is_grey(), UPRIGHT, {"reference": cube()}, {"Cube": 1}, "a")
    assert np.array_equal(picture(tmp_path / "stored.png"), picture(tmp_path / "upright.png"))


def test_pixels_keep_their_millimetres(tmp_path):
    grid = Grid((4, 40, 40), (3.0, 1.0, 2.0))
    labels = np.zeros(grid.shape, dtype=np.uint8)
    labels[1:3, 18:22, 18:22] = 1
    image = np.full(grid.shape, 1000, dtype=np.float32)
    draw_overlay(tmp_path / "a.png", image, grid, {"prediction": labels}, {"Cube": 1}, "a")
    drawn = (np.ptp(picture(tmp_path / "a.png"), axis=2) > 0.3)[:430, :490]
    height, width = (np.ptp(np.flatnonzero(drawn.any(axis=axis))) for axis in (1, 0))
    assert width / height == pytest.approx(2, abs=0.1)


def test_one_slice_goes_through_the_smallest_organ():
    _, labels, _ = draw_case(3)
    slices = telling_slices(labels, ORGANS)
    assert any((labels[z] == ORGANS["OpticChiasm"]).any() for z in slices)
    assert slices == sorted(set(slices), reverse=True)
    assert len(slices) == 3


def test_the_three_slices_together_show_every_organ_of_the_phantom():
    for seed in range(5):
        _, labels, _ = draw_case(seed)
        shown = np.unique(labels[telling_slices(labels, ORGANS)])
        assert set(ORGANS.values()) <= set(shown.tolist())


def test_slices_are_spread_where_there_is_no_organ():
    assert telling_slices(np.zeros((9, 4, 4), dtype=np.uint8), {"Brainstem": 1}) == [6, 4, 2]


def test_names_that_look_like_formulas_are_drawn_as_they_are(tmp_path):
    draw_overlay(tmp_path / "a.png", left_is_grey(), UPRIGHT, {r"$\frac$": cube()}, {r"a$b$ $\x$": 1}, r"$\frac$")
    assert (tmp_path / "a.png").stat().st_size > 0


def test_a_case_without_organs_is_still_a_picture(tmp_path):
    empty = np.zeros(UPRIGHT.shape, dtype=np.uint8)
    draw_overlay(tmp_path / "a.png", left_is_grey(), UPRIGHT, {"prediction": empty}, {"Cube": 1}, "a")
    assert (tmp_path / "a.png").stat().st_size > 0


def test_a_thin_volume_gives_fewer_slices(tmp_path):
    labels = cube()[2:4]
    grid = Grid(labels.shape, SPACING_MM)
    assert telling_slices(labels, {"Cube": 1}) == [1, 0]
    draw_overlay(tmp_path / "a.png", left_is_grey()[:2], grid, {"reference": labels}, {"Cube": 1}, "a")


def test_labels_of_another_shape_are_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"prediction \(7, 60, 40\) and image \(8, 60, 40\)"):
        draw_overlay(tmp_path / "a.png", left_is_grey(), UPRIGHT, {"prediction": cube()[1:]}, {"Cube": 1}, "a")
    assert not list(tmp_path.iterdir())


def test_a_grid_without_axial_slices_is_refused(tmp_path):
    grid = Grid(UPRIGHT.shape, SPACING_MM, direction=(0.7, 0.7, 0.1, 0.7, -0.7, 0.1, 0.1, 0.2, -0.9))
    with pytest.raises(ValueError, match="too oblique"):
        draw_overlay(tmp_path / "a.png", left_is_grey(), grid, {"prediction": cube()}, {"Cube": 1}, "a")
