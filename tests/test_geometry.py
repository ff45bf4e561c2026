import numpy as np
import pytest

from nnunet_ext.geometry import Box, Grid, body_axis, grid_difference

TURN = np.radians(15)
OBLIQUE = Grid(
    shape=(5, 7, 9),
    spacing_mm=(3.0, 1.0, 0.5),
    origin_mm=(-20.0, 5.0, 100.0),
    direction=(-np.cos(TURN), np.sin(TURN), 0.0, np.sin(TURN), np.cos(TURN), 0.0, 0.0, 0.0, -1.0),
)
"""Right-to-left columns, feet-first slices, turned by 15° about the long axis."""


def test_the_affine_maps_the_first_voxel_to_the_origin_and_steps_by_the_spacing():
    np.testing.assert_allclose(OBLIQUE.points_mm([(0, 0, 0)])[0], OBLIQUE.origin_mm)
    for axis, step in enumerate((3.0, 1.0, 0.5)):
        voxel = np.eye(3)[axis]
        assert np.linalg.norm(OBLIQUE.points_mm([voxel])[0] - OBLIQUE.origin_mm) == pytest.approx(step)


def test_a_cropped_grid_keeps_every_voxel_where_it_was_also_outside_the_image():
    box = Box((-2, 1, 3), (4, 9, 5))
    voxels = np.argwhere(np.ones(box.shape))
    np.testing.assert_allclose(
        OBLIQUE.cropped(box).points_mm(voxels), OBLIQUE.points_mm(voxels + np.array(box.start)), atol=1e-9
    )


def test_a_box_is_never_shifted_to_fit():
    assert Box.around((0.0, 0.0, 0.0), (4, 5, 6)) == Box((-2, -2, -3), (2, 3, 3))


def test_a_centre_between_two_voxels_rounds_up_for_even_and_odd_ones():
    assert Box.around((1.5, 2.5, 0.49), (1, 1, 1)).start == (2, 3, 0)


def test_an_empty_box_is_refused():
    with pytest.raises(ValueError, match="stop > start"):
        Box((0, 0, 0), (1, 0, 1))


def test_equal_grids_do_not_differ():
    assert grid_difference(OBLIQUE, OBLIQUE) is None


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (Grid((4, 7, 9), OBLIQUE.spacing_mm, OBLIQUE.origin_mm, OBLIQUE.direction), "shapes"),
        (Grid(OBLIQUE.shape, OBLIQUE.spacing_mm, (-19.9, 5.0, 100.0), OBLIQUE.direction), "mm apart"),
        (Grid(OBLIQUE.shape, (3.1, 1.0, 0.5), OBLIQUE.origin_mm, OBLIQUE.direction), "mm apart"),
        (Grid(OBLIQUE.shape, OBLIQUE.spacing_mm, OBLIQUE.origin_mm), "mm apart"),
    ],
    ids=["shape", "origin by 0.2 voxels", "spacing", "direction"],
)
def test_a_difference_is_said(other, said):
    assert said in grid_difference(OBLIQUE, other)


def test_a_tenth_of_a_voxel_is_no_difference():
    near = Grid(OBLIQUE.shape, OBLIQUE.spacing_mm, (-20.0 + 0.04, 5.0, 100.0), OBLIQUE.direction)
    assert grid_difference(OBLIQUE, near) is None


@pytest.mark.parametrize(("patient_axis", "array_axis"), [(0, 2), (1, 1), (2, 0)])
def test_body_axes_of_an_upright_image_run_x_y_z(patient_axis, array_axis):
    assert body_axis(Grid((1, 1, 1)).direction, patient_axis) == (array_axis, pytest.approx(0.0))


def test_the_angle_of_an_oblique_axis_is_measured():
    axis, degrees = body_axis(OBLIQUE.direction, 0)
    assert axis == 2
    assert degrees == pytest.approx(15.0)


def test_left_right_is_found_on_permuted_axes():
    sagittal = (0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0)  # index z runs along x
    assert body_axis(sagittal, 0) == (0, pytest.approx(0.0))


def test_voxel_volume_is_in_millilitres():
    assert OBLIQUE.voxel_ml == pytest.approx(0.0015)
