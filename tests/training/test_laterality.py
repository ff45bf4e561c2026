from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from nnunet_ext.errors import InputError
from nnunet_ext.training.laterality import direction_of, lateral_axis, legal_mirror_axes, rotated_plane

LPS = (1.0, 0, 0, 0, 1, 0, 0, 0, 1)
RAS = (-1.0, 0, 0, 0, -1, 0, 0, 0, 1)


def columns(*axes: tuple[int, int, int]) -> tuple[float, ...]:
    """Direction cosines whose index axes x, y, z point along these patient axes."""
    return tuple(float(v) for v in np.array(axes).T.ravel())


SAGITTAL = columns((0, 1, 0), (0, 0, -1), (1, 0, 0))
"""Slices run from right to left: left-right is the slowest array axis."""
CORONAL = columns((1, 0, 0), (0, 0, -1), (0, 1, 0))


def turned(degrees: float) -> tuple[float, ...]:
    """LPS turned in the axial plane."""
    a = np.radians(degrees)
    return (np.cos(a), -np.sin(a), 0.0, np.sin(a), np.cos(a), 0.0, 0.0, 0.0, 1.0)


# --- which mirrors are legal -----------------------------------------------------------------------------------------

TABLE = [
    # dim, lateral, dummy, rotation, legal, why
    (2, 2, False, 15, (0,), "2D: only AP is left"),
    (2, 2, False, 30, (0,), "2D: 30° never turns AP into LR"),
    (2, 2, False, 89, (0,), "2D: below 90° AP stays AP"),
    (2, 2, False, 90, (), "2D: a flip of AP and a quarter turn each way make LR"),
    (2, 2, False, 180, (), "2D: flip_y after R180 is flip_x"),
    (2, 1, False, 15, (1,), "2D transposed: LR is the first axis of the slice"),
    (2, 1, False, 180, (), "2D transposed: the same plane"),
    (2, 0, False, 15, (0, 1), "2D sagittal: LR is the slice axis, nothing to forbid"),
    (2, 0, False, 180, (0, 1), "2D sagittal: rotation stays off LR"),
    (3, 2, False, 15, (0, 1), "3D: all but LR"),
    (3, 1, False, 30, (0, 2), "3D: all but LR"),
    (3, 0, False, 30, (1, 2), "3D: all but LR"),
    (3, 2, False, 180, (), "3D: rotation about every axis makes LR of any flip"),
    (3, 0, False, 180, (), "3D: the same"),
    (3, 2, True, 15, (0, 1), "dummy 2D limited: all but LR"),
    (3, 2, True, 180, (0,), "dummy 2D: only the slice axis is out of the rotated plane"),
    (3, 1, True, 180, (0,), "dummy 2D: the same"),
    (3, 0, True, 180, (1, 2), "dummy 2D sagittal: LR is never rotated, the plane is free"),
    (3, 0, True, 15, (1, 2), "dummy 2D sagittal: the same"),
]


@pytest.mark.parametrize(
    ("dim", "lateral", "dummy", "rotation", "legal"),
    [row[:5] for row in TABLE],
    ids=[f"lateral {row[1]}, ±{row[3]}°, {row[5]}" for row in TABLE],
)
def test_legal_mirror_axes(dim, lateral, dummy, rotation, legal):
    assert legal_mirror_axes(dim, lateral, dummy, rotation) == legal


def test_flipping_back_to_front_after_half_a_turn_is_flipping_left_to_right():
    """Why forbidding the left-right mirror alone is not enough where nnU-Net rotates by ±180°."""
    axial = np.random.default_rng(0).normal(size=(5, 7))
    half_turn = np.rot90(axial, 2)
    np.testing.assert_array_equal(np.flip(half_turn, 0), np.flip(axial, 1))


def test_a_quarter_turn_each_way_around_a_flip_also_flips_left_to_right():
    axial = np.random.default_rng(0).normal(size=(6, 6))
    np.testing.assert_array_equal(np.rot90(np.flip(np.rot90(axial, 1), 0), -1), np.flip(axial, 1))


@pytest.mark.parametrize("dummy", [False, True])
@pytest.mark.parametrize("lateral", [0, 1, 2])
@pytest.mark.parametrize("dim", [2, 3])
def test_no_half_turn_and_no_legal_mirror_make_a_left_right_mirror(dim, lateral, dummy):
    """No legal flip after a half turn in the rotated planes equals the flip of the left-right axis alone."""
    legal = [axis + 3 - dim for axis in legal_mirror_axes(dim, lateral, dummy, 180)]
    plane = rotated_plane(dim, dummy)
    half_turns = [np.eye(3)]
    for a, b in permutations(plane, 2):
        turn = np.eye(3)
        turn[a, a] = turn[b, b] = -1
        half_turns.append(turn)
    forbidden = np.eye(3)
    forbidden[lateral, lateral] = -1
    for axis in legal:
        flip = np.eye(3)
        flip[axis, axis] = -1
        for turn in half_turns:
            assert not np.array_equal(flip @ turn, forbidden)


# --- which axis is left-right ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("direction", "transpose", "axis"),
    [
        (LPS, (0, 1, 2), 2),
        (RAS, (0, 1, 2), 2),
        (LPS, (1, 0, 2), 2),
        (LPS, (2, 0, 1), 0),
        (LPS, (1, 2, 0), 1),
        (SAGITTAL, (0, 1, 2), 0),
        (SAGITTAL, (1, 0, 2), 1),
        (SAGITTAL, (2, 1, 0), 2),
        (CORONAL, (0, 1, 2), 2),
        (CORONAL, (1, 0, 2), 2),
        (turned(19), (0, 1, 2), 2),
        (turned(-19), (2, 1, 0), 0),
    ],
    ids=["LPS", "RAS", "coronal first", "LR first", "LR in the middle", "sagittal scan", "sagittal, coronal first",
         "sagittal, last first", "coronal scan", "coronal scan, axial first", "19° oblique", "-19°, LR first"],
)  # fmt: skip
def test_lateral_axis_follows_the_scan_and_the_transpose(direction, transpose, axis):
    assert lateral_axis({"case": direction}, transpose) == axis


@pytest.mark.parametrize("transpose", list(permutations(range(3))))
def test_the_lateral_axis_is_where_the_left_organ_differs_from_the_right_one(transpose):
    left = np.zeros((3, 4, 5))
    left[:, :, 4] = 1  # LPS: larger x is the patient's left
    seen = np.transpose(left, transpose)
    axis = lateral_axis({"case": LPS}, transpose)
    others = tuple(a for a in range(3) if a != axis)
    assert seen.mean(axis=others).tolist() == [0, 0, 0, 0, 1]


def test_a_mirrored_scan_has_the_same_axis_as_its_original():
    assert lateral_axis({"a": LPS, "b": RAS, "c": tuple(-v for v in LPS)}, (0, 1, 2)) == 2


def test_every_case_that_is_too_oblique_or_without_orientation_is_named():
    with pytest.raises(InputError) as caught:
        lateral_axis({"good": LPS, "flat": None, "tilted": turned(25)}, (0, 1, 2))
    assert "flat (no orientation), tilted (25° oblique)" in str(caught.value)
    assert "good" not in str(caught.value)


def test_cases_that_disagree_are_named_by_axis():
    with pytest.raises(InputError, match=r"axis 0: c; axis 2: a, b"):
        lateral_axis({"a": LPS, "b": CORONAL, "c": SAGITTAL}, (0, 1, 2))


# --- what nnU-Net's readers note -------------------------------------------------------------------------------------


def test_direction_of_simpleitk_is_taken_as_it_is():
    assert direction_of({"sitk_stuff": {"direction": SAGITTAL}}) == SAGITTAL


def test_direction_of_a_plain_picture_is_unknown():
    assert direction_of({"sitk_stuff": {"direction": (1.0, 0.0, 0.0, 1.0)}}) is None
    assert direction_of({"spacing": [1, 1, 1]}) is None


@pytest.mark.parametrize("direction", [LPS, RAS, SAGITTAL, CORONAL, turned(12)])
def test_direction_of_nibabel_is_turned_from_ras_to_lps(direction):
    affine = np.eye(4)
    affine[:3, :3] = np.diag([-1, -1, 1]) @ np.reshape(direction, (3, 3)) @ np.diag([0.7, 1.0, 3.0])
    affine[:3, 3] = 11, -27, 340
    read = direction_of({"nibabel_stuff": {"original_affine": affine}})
    np.testing.assert_allclose(read, direction, atol=1e-12)


def test_a_reoriented_nibabel_image_counts_as_nnunet_sees_it():
    affine = np.diag([1.0, 1.0, 3.0, 1.0])
    stuff = {"original_affine": affine[[1, 2, 0, 3]], "reoriented_affine": affine}
    assert lateral_axis({"case": direction_of({"nibabel_stuff": stuff})}, (0, 1, 2)) == 2


@pytest.mark.parametrize("name", ["SimpleITKIO", "SimpleITKIOWithReorient", "NibabelIO", "NibabelIOWithReorient"])
@pytest.mark.parametrize("direction", [LPS, SAGITTAL], ids=["axial", "sagittal"])
def test_every_reader_of_nnunet_puts_left_right_where_we_say(tmp_path, name, direction):
    """Written with a bright left half of the patient, read with nnU-Net's own reader."""
    import SimpleITK as sitk  # noqa: N813
    from nnunetv2.imageio import nibabel_reader_writer, simpleitk_reader_writer

    axis = 2 if direction == LPS else 0
    array = np.zeros((6, 6, 6), np.float32)
    array[(slice(None),) * axis + (slice(3, None),)] = 1.0  # both directions: index grows towards the left
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((1.0, 1.0, 3.0))
    image.SetDirection(direction)
    sitk.WriteImage(image, str(tmp_path / "ct.nii.gz"))
    room = simpleitk_reader_writer if "SimpleITK" in name else nibabel_reader_writer
    read, properties = getattr(room, name)().read_images((str(tmp_path / "ct.nii.gz"),))
    found = lateral_axis({"case": direction_of(properties)}, (0, 1, 2))
    others = tuple(a for a in range(3) if a != found)
    assert sorted(read[0].mean(axis=others).tolist()) == [0, 0, 0, 1, 1, 1]
