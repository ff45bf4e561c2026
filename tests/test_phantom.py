from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import label as connected_parts

from nnunet_ext.geometry import body_axis
from nnunet_ext.labels import swap_pairs
from nnunet_ext.phantom import GRID, ORGANS, draw_case

SEEDS = range(20)


@pytest.fixture(scope="module")
def cases() -> list[tuple[np.ndarray, np.ndarray]]:
    return [draw_case(seed)[:2] for seed in SEEDS]


def centre_mm(labels: np.ndarray, organ: str) -> np.ndarray:
    return GRID.points_mm(np.argwhere(labels == ORGANS[organ])).mean(axis=0)


def test_image_is_float_hu_and_labels_are_bytes_on_one_grid():
    image, labels, grid = draw_case(0)
    assert (image.dtype, labels.dtype) == (np.float32, np.uint8)
    assert image.shape == labels.shape == grid.shape


def test_every_organ_is_in_every_case(cases):
    for _, labels in cases:
        assert set(np.unique(labels)) == {0, *ORGANS.values()}


def test_left_parotid_lies_at_larger_lps_x(cases):
    for _, labels in cases:
        assert centre_mm(labels, "Parotid_L")[0] - centre_mm(labels, "Parotid_R")[0] > 80


def test_no_parotid_crosses_the_midline_between_the_jaws(cases):
    for _, labels in cases:
        middle = centre_mm(labels, "Bone_Mandible")[0]
        x_mm = GRID.points_mm(np.argwhere(labels == ORGANS["Parotid_L"]))[:, 0]
        assert x_mm.min() > middle


def test_axes_are_upright_and_the_last_one_is_left_right():
    assert body_axis(GRID.direction, 0) == (2, 0.0)
    assert body_axis(GRID.direction, 2) == (0, 0.0)


def test_mandible_is_in_front_of_the_cord_and_below_the_chiasm(cases):
    for _, labels in cases:
        mandible = centre_mm(labels, "Bone_Mandible")
        assert mandible[1] < centre_mm(labels, "SpinalCord")[1]
        assert mandible[2] < centre_mm(labels, "OpticChiasm")[2]


def test_chiasm_has_some_thirty_voxels(cases):
    counts = [int((labels == ORGANS["OpticChiasm"]).sum()) for _, labels in cases]
    assert min(counts) >= 20
    assert max(counts) <= 45


@pytest.mark.parametrize("organ", ["Brainstem", "SpinalCord", "Parotid_L", "Parotid_R", "Bone_Mandible"])
def test_organs_are_in_one_piece(cases, organ):
    for _, labels in cases:
        mask = labels == ORGANS[organ]
        parts, _ = connected_parts(mask, np.ones((3, 3, 3)))
        assert np.bincount(parts[mask]).max() > 0.98 * mask.sum()


def test_densities_are_those_of_a_planning_ct(cases):
    ranges = {
        "Brainstem": (20, 50),
        "Parotid_L": (-25, 35),
        "Parotid_R": (-25, 35),
        "Bone_Mandible": (500, 900),
    }
    for image, labels in cases:
        assert image.min() >= -1024
        assert image[0, 0].mean() == pytest.approx(-1000, abs=15)
        for organ, (low, high) in ranges.items():
            assert low < image[labels == ORGANS[organ]].mean() < high


def test_parotids_of_one_patient_look_the_same(cases):
    (pair,) = swap_pairs(ORGANS)
    differences = [image[labels == pair[0]].mean() - image[labels == pair[1]].mean() for image, labels in cases]
    assert max(np.abs(differences)) < 12


def test_noise_is_that_of_a_planning_ct():
    image, labels, _ = draw_case(0)
    assert 15 < image[labels == ORGANS["Brainstem"]].std() < 35


def test_patients_differ_in_size_and_position(cases):
    volumes = np.array([[(labels == value).sum() for value in ORGANS.values()] for _, labels in cases])
    positions = np.array([centre_mm(labels, "Brainstem") for _, labels in cases])
    assert (volumes.std(axis=0) / volumes.mean(axis=0) > 0.05).all()
    assert (positions.std(axis=0) > 1).all()


def test_the_same_seed_draws_the_same_patient():
    first, second = draw_case(5), draw_case(5)
    assert np.array_equal(first[0], second[0])
    assert np.array_equal(first[1], second[1])
