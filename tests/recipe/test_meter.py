from __future__ import annotations

import time

import numpy as np
import pytest

from nnunet_ext.recipe import meter as module
from nnunet_ext.recipe.meter import Meter


def test_seconds_of_a_stage_add_up_and_other_stages_are_separate():
    meter = Meter()
    for _ in range(2):
        with meter.stage("3d"):
            time.sleep(0.03)
    with meter.stage("fusion"):
        pass
    assert meter.stages["3d"]["seconds"] >= 0.06
    assert meter.stages["fusion"]["seconds"] < 0.03


def test_a_stage_that_fails_is_measured_all_the_same():
    meter = Meter()
    with pytest.raises(ValueError, match="broken"), meter.stage("3d"):
        raise ValueError("broken")
    assert "seconds" in meter.stages["3d"]


@pytest.mark.skipif(not module.CLEAR.exists(), reason="the high-water mark of memory can be reset on Linux only")
def test_the_peak_is_that_of_the_stage_and_not_of_an_earlier_one():
    meter = Meter()
    with meter.stage("large"):
        np.ones(40_000_000, np.float32).sum()
    with meter.stage("small"):
        np.ones(40_000, np.float32).sum()
    assert meter.stages["large"]["peak_mb"] > meter.stages["small"]["peak_mb"] + 100


def test_without_a_way_to_reset_the_peak_no_memory_is_claimed(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "CLEAR", tmp_path / "missing" / "clear_refs")
    meter = Meter()
    with meter.stage("3d"):
        pass
    assert set(meter.stages["3d"]) == {"seconds"}
