from __future__ import annotations

import numpy as np
import pytest

from nnunet_ext.errors import InputError
from nnunet_ext.geometry import Grid
from nnunet_ext.io.orientation import to_lps
from nnunet_ext.preprocessing import bias_field
from nnunet_ext.preprocessing.steps import STEPS, apply_steps, treat

FLIPPED = (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0)


@pytest.fixture
def images(head):
    return {"CT": head.draw().ct, "T1w": head.draw_mr()}


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(bias_field, "LEVELS", 1)
    monkeypatch.setattr(bias_field, "ITERATIONS", 10)


def test_names_are_those_that_datasets_hold():
    assert sorted(STEPS) == ["n4", "remove_couch"]


@pytest.mark.usefixtures("quick")
def test_each_channel_gets_its_own_steps_and_says_so(head, images):
    before = {channel: image.copy() for channel, image in images.items()}
    heard: list[str] = []
    steps = {"CT": ["remove_couch"], "T1w": ["n4"]}
    done, notes = apply_steps(images, head.grid, steps, say=heard.append)
    assert list(done) == ["CT", "T1w"]
    assert (done["CT"][head.draw().couch] == -1024).all()
    assert done["T1w"].dtype == np.float32
    assert [note.partition(":")[0] for note in notes] == ["CT", "T1w"]
    assert heard[0] == "CT: remove_couch 0%"
    assert all(np.array_equal(images[channel], before[channel]) for channel in images)


def test_channels_without_steps_come_back_as_they_are(head, images):
    done, notes = apply_steps(images, head.grid, {"CT": []})
    assert done["CT"] is images["CT"]
    assert done["T1w"] is images["T1w"]
    assert notes == []


def test_the_orientation_of_a_file_changes_nothing(head, images):
    turned = np.ascontiguousarray(images["CT"][:, ::-1, ::-1])
    z, y, x = head.grid.shape
    ox, oy, oz = head.grid.origin_mm
    grid = Grid((z, y, x), head.grid.spacing_mm, (ox + x - 1, oy + y - 1, oz), FLIPPED)
    steps = {"CT": ["remove_couch"]}
    there, kept, _ = treat({"CT": turned}, grid, steps)
    here, _, _ = treat({"CT": images["CT"]}, head.grid, steps)
    assert np.array_equal(to_lps(there["CT"], grid)[0], here["CT"])
    assert kept["CT"].shape == grid.shape


@pytest.mark.parametrize(
    ("steps", "word"), [({"PET": ["n4"]}, "channel PET"), ({"CT": ["n5"]}, "'n5', known are remove_couch, n4")]
)
def test_unknown_channels_and_steps_are_refused(head, images, steps, word):
    with pytest.raises(InputError, match=word):
        apply_steps(images, head.grid, steps)


def test_a_step_that_cannot_be_done_names_its_channel(head, images):
    with pytest.raises(InputError, match=r"^CT: .*threshold"):
        apply_steps({"CT": np.abs(images["CT"])}, head.grid, {"CT": ["remove_couch"]})
