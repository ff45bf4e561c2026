from __future__ import annotations

import numpy as np
import pytest

from nnunet_ext.conversion.loading import load_case
from nnunet_ext.conversion.organ_files import paint_organs
from nnunet_ext.conversion.source import NiftiCase, Source
from nnunet_ext.errors import InputError
from nnunet_ext.geometry import Grid

ORGANS = {"Eye_L": 1, "Lens_L": 2, "OpticChiasm": 3}
GRID = Grid((2, 3, 4), (3.0, 1.0, 1.0))


@pytest.fixture
def files(draw, tmp_path):
    """An eye of six voxels, a lens of two of which one lies in the eye, an empty chiasm; the lens is listed first."""
    masks = {name: np.zeros(GRID.shape) for name in ("Lens_L", "Eye_L", "OpticChiasm")}
    masks["Eye_L"][0, :2, :3] = 1
    masks["Lens_L"][0, 1, 2:4] = 255
    return {name: draw.save(tmp_path / f"{name}.nii.gz", mask) for name, mask in masks.items()}


def test_later_numbers_are_painted_last_and_the_overlap_is_said(files, tmp_path):
    labels, contoured, notes = paint_organs(files, tmp_path / "CT.nii.gz", GRID, ORGANS)
    assert labels[0].tolist() == [[1, 1, 1, 0], [1, 1, 2, 2], [0, 0, 0, 0]]
    assert contoured == (1, 2)
    assert notes == ["1 voxels of Eye_L became Lens_L"]


def test_a_file_on_another_grid_is_refused(files, draw, tmp_path):
    files["Eye_L"] = draw.save(tmp_path / "Eye_L.nii.gz", np.zeros((2, 3, 5)))
    with pytest.raises(InputError, match="another grid"):
        paint_organs(files, tmp_path / "CT.nii.gz", GRID, ORGANS)


@pytest.mark.parametrize(("empty", "contoured"), [("not-contoured", (1, 2)), ("absent", (1, 2, 3))])
def test_a_file_without_a_voxel_says_what_the_user_says_and_no_file_says_nothing(
    files, draw, tmp_path, empty, contoured
):
    image = draw.save(tmp_path / "CT.nii.gz", np.arange(24).reshape(GRID.shape) * 50 - 1000)
    organs = {**ORGANS, "Pituitary": 4}
    source = Source("drawn", tmp_path, "", "", "", organs, (), empty=empty)
    loaded = load_case(NiftiCase("a", (image,), organs=files), source)
    assert (loaded.contoured, loaded.empty) == (contoured, (3,))
