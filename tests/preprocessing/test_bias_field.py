from __future__ import annotations

import itertools

import numpy as np
import pytest

from nnunet_ext.errors import InputError
from nnunet_ext.geometry import Grid
from nnunet_ext.preprocessing import bias_field
from nnunet_ext.preprocessing.bias_field import correct_bias_field, mesh_and_margins, shrink_factors


@pytest.fixture
def drifting(head):
    """An MR, its mask, and the same MR under a known field that rises to 1.9 times from right-front to left-back."""
    clean = head.draw_mr()
    x, y, z = head.points()
    field = np.exp(0.32 * (x / 60 + (y + 10) / 80) + 0.1 * np.cos(z / 40))
    mask = clean > 0
    noise = np.random.default_rng(0).normal(0, 3, clean.shape)
    return clean, mask, np.where(mask, clean * field + noise, 0).astype(np.float32)


def _spread(image: np.ndarray, clean: np.ndarray, mask: np.ndarray) -> float:
    """Standard deviation of the remaining field, as a fraction."""
    rest = image[mask] / clean[mask]
    return float(rest.std() / rest.mean())


def test_a_known_field_becomes_eight_times_flatter_and_organs_keep_their_contrast(drifting, head):
    clean, mask, seen = drifting
    done = correct_bias_field(seen, head.grid)
    organs = mask & (clean >= 300)  # brain, lesion and eye: 300, 450, 600
    assert _spread(seen, clean, organs) > 0.12
    assert _spread(done.image, clean, organs) < _spread(seen, clean, organs) / 8
    assert done.iterations > 0
    assert not done.stopped


def test_mean_in_the_head_grid_and_zeros_stay(drifting, head, monkeypatch):
    monkeypatch.setattr(bias_field, "LEVELS", 2)
    _, mask, seen = drifting
    done = correct_bias_field(seen, head.grid, mask)
    assert done.image.shape == seen.shape
    assert done.image[mask].mean() == pytest.approx(seen[mask].mean(), rel=1e-4)
    assert (done.image[~mask] == 0).all()
    assert done.image == pytest.approx(seen * np.exp(-done.log_field))


def test_the_clock_ends_it_with_the_field_so_far(drifting, head):
    _, mask, seen = drifting
    ticks = itertools.count(step=10.0)
    done = correct_bias_field(seen, head.grid, mask, time_limit_s=25.0, clock=lambda: next(ticks))
    assert done.stopped
    assert done.iterations == 2 * bias_field.CHUNK
    assert np.ptp(done.log_field) > 0


def test_no_time_at_all_changes_nothing(drifting, head):
    _, mask, seen = drifting
    done = correct_bias_field(seen, head.grid, mask, time_limit_s=-1.0)
    assert done.stopped
    assert np.array_equal(done.image, seen)


def test_progress_rises_to_one(drifting, head, monkeypatch):
    monkeypatch.setattr(bias_field, "LEVELS", 2)
    monkeypatch.setattr(bias_field, "ITERATIONS", 20)
    heard: list[float] = []
    correct_bias_field(drifting[2], head.grid, progress=heard.append)
    assert heard == sorted(heard)
    assert heard[-1] == 1


def test_thick_slices_are_shrunk_less_than_rows():
    assert shrink_factors(Grid((30, 140, 120), (3.0, 1.0, 1.0))) == [4, 4, 1]
    assert shrink_factors(Grid((160, 200, 200), (1.0, 1.0, 1.0))) == [4, 4, 4]
    assert shrink_factors(Grid((3, 8, 200), (1.0, 1.0, 1.0))) == [4, 2, 1]


def test_a_mesh_element_is_200_mm_in_a_small_image_too():
    spans, lower, upper = mesh_and_margins((30, 35, 60), (4.0, 4.0, 4.0))
    assert spans == [1, 1, 2]
    assert [n + a + b for n, a, b in zip((30, 35, 60), lower, upper, strict=True)] == [50, 50, 100]


def test_an_mr_without_positive_values_is_refused(head):
    with pytest.raises(InputError, match="logarithms"):
        correct_bias_field(np.zeros(head.grid.shape, np.float32), head.grid, np.ones(head.grid.shape, bool))
