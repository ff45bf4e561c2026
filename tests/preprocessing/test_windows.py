from __future__ import annotations

import numpy as np
import pytest

from nnunet_ext.preprocessing.windows import UNIT, clip_percentiles, ct_normalization_numbers, window, window_limits


def test_soft_tissue_window_as_on_a_viewer():
    assert window_limits(40, 400) == (-160, 240)


def test_window_maps_its_ends_and_clips_beyond():
    image = np.array([-1000.0, -160.0, 40.0, 240.0, 3000.0])
    assert window(image, -160, 240) == pytest.approx([-1, -1, 0, 1, 1])
    assert window(image, -160, 240, UNIT) == pytest.approx([0, 0, 0.5, 1, 1])


@pytest.mark.parametrize(
    ("limits", "to", "mean", "std"),
    [((-150, 150), (-1, 1), 0, 150), ((0, 1600), (0, 1), 0, 1600), ((-600, 1500), (-1, 1), 450, 1050)],
)
def test_numbers_for_nnunet_are_the_window(limits, to, mean, std):
    numbers = ct_normalization_numbers(*limits, to)
    assert numbers == {"percentile_00_5": limits[0], "percentile_99_5": limits[1], "mean": mean, "std": std}
    image = np.linspace(-2000, 2000, 41)
    by_nnunet = (np.clip(image, limits[0], limits[1]) - numbers["mean"]) / numbers["std"]
    assert window(image, *limits, to) == pytest.approx(by_nnunet, abs=1e-6)


def test_percentiles_are_those_of_the_head():
    image = np.concatenate((np.zeros(500), np.linspace(100, 300, 201))).reshape(1, 1, -1)
    result = clip_percentiles(image, image > 50)
    assert result.min() == 0
    assert result[0, 0, 600] == pytest.approx(0.5)


@pytest.mark.parametrize("call", [lambda: window_limits(40, 0), lambda: window(np.zeros(2), 5, 5)])
def test_empty_windows_are_refused(call):
    with pytest.raises(ValueError, match="window"):
        call()


def test_percentiles_of_nothing_are_refused():
    with pytest.raises(ValueError, match="mask is empty"):
        clip_percentiles(np.ones((1, 1, 3)), np.zeros((1, 1, 3), bool))
