"""Models that read the labels off a drawn image, and the folders that they are run on; no tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from nnunet_ext.errors import CasesFailedError
from nnunet_ext.fusion.rules import FusionTable
from nnunet_ext.geometry import Grid
from nnunet_ext.io.nifti import write_image, write_labels
from nnunet_ext.io.orientation import from_lps
from nnunet_ext.recipe.composed import Composed
from nnunet_ext.recipe.inference import PreprocessedCache
from nnunet_ext.recipe.predict import predict_folder
from nnunet_ext.recipe.schema import Recipe
from nnunet_ext.roi.learned import Learned
from nnunet_ext.roi.prior import Prior

ORGANS = {"Brainstem": 1, "Parotid_L": 2, "Parotid_R": 3}
AIR_HU, HU_PER_LABEL = -1000.0, 100.0
SPACING_MM = (3.0, 1.0, 1.0)
SHAPE = (9, 20, 31)

Labels = NDArray[np.uint8]
Read = Callable[[NDArray[np.float32]], NDArray[np.integer]]


def image_of(labels: Labels) -> NDArray[np.float32]:
    """A body of 0 HU in air, each label 100 HU brighter than the last."""
    body = np.full(labels.shape, AIR_HU, np.float32)
    body[1:-1, 2:-2, 2:-2] = 0
    return np.where(labels > 0, labels * HU_PER_LABEL, body).astype(np.float32)


def threshold(images: NDArray[np.float32]) -> NDArray[np.integer]:
    return np.clip(np.rint(images[0] / HU_PER_LABEL), 0, len(ORGANS)).astype(np.uint8)


def nothing(images: NDArray[np.float32]) -> NDArray[np.integer]:
    return np.zeros(images.shape[1:], np.uint8)


@dataclass
class FakeModel:
    """Stands for a LoadedModel: labels from intensities, and a list of the shapes that it was given."""

    read: Read = threshold
    labels: dict[str, int] = field(default_factory=lambda: dict(ORGANS))
    digest: str = "0123"
    median_mm: Sequence[float] = SPACING_MM
    channels: Sequence[str] = ()
    median_shape: Sequence[int] | None = None
    seen: list[tuple[int, ...]] = field(default_factory=list)

    @property
    def predictor(self) -> Any:
        plans: dict[str, Any] = {"original_median_spacing_after_transp": list(self.median_mm)}
        if self.median_shape is not None:
            plans |= {"original_median_shape_after_transp": self.median_shape, "transpose_backward": [0, 1, 2]}
        return SimpleNamespace(plans_manager=SimpleNamespace(plans=plans))

    def preprocessing(self, spacing_mm: Sequence[float]) -> str:
        return f"{id(self)}"

    def predict(
        self, images: NDArray[np.float32], spacing_mm: Sequence[float], shared: PreprocessedCache | None = None
    ) -> NDArray[np.integer]:
        self.seen.append(images.shape)
        return self.read(images)


def only_brainstem(images: NDArray[np.float32]) -> NDArray[np.integer]:
    return (threshold(images) == ORGANS["Brainstem"]).astype(np.uint8)


def no_brainstem(images: NDArray[np.float32]) -> NDArray[np.integer]:
    labels = threshold(images)
    return np.where(labels == ORGANS["Brainstem"], 0, labels)


def composed(
    size_vox: tuple[int, int, int] = (5, 7, 9), channels: Sequence[str] = ("CT",), **models: FakeModel
) -> Composed:
    """2d owns the parotids, small owns the brainstem, 3d only helps to find it."""
    region = {"organs": ["Brainstem"], "from": "2d", "fallback": ["3d"], "size_vox": size_vox}
    recipe = Recipe.model_validate(
        {
            "name": "drawn",
            "title": "Drawn.",
            "dataset": 11,
            "organs": list(ORGANS),
            "device": "cpu",
            "models": {
                "2d": {"dataset": 11, "configuration": "2d"},
                "3d": {"dataset": 11, "configuration": "3d_fullres"},
                "small": {"dataset": 12, "configuration": "3d_fullres", "region": region},
            },
        }
    )
    owner = {"Brainstem": "small", "Parotid_L": "2d", "Parotid_R": "2d"}
    known = {"2d": ORGANS, "3d": ORGANS, "small": {"Brainstem": 1}}
    table = FusionTable(ORGANS, owner, known, list(ORGANS))
    small = FakeModel(only_brainstem, {"Brainstem": 1})
    loaded: dict[str, Any] = {"2d": FakeModel(), "3d": FakeModel(), "small": small} | models
    learned = Learned(Prior((0.5, 0.5, 0.5), body_error_mm=0.0), (10.0, 10.0, 10.0), (20.0, 20.0, 20.0))
    return Composed(recipe, table, channels, loaded, {"small": {"both": learned}})


def patient(shape: tuple[int, int, int] = SHAPE, corner: tuple[int, int, int] = (3, 8, 14)) -> Labels:
    """LPS labels: a brainstem of 3 × 4 × 4 voxels, the left parotid at large x, the right one at small x."""
    labels = np.zeros(shape, np.uint8)
    z, y, x = corner
    labels[4:7, 6:12, -7:-3] = ORGANS["Parotid_L"]
    labels[4:7, 6:12, 3:6] = ORGANS["Parotid_R"]
    labels[z : z + 3, y : y + 4, x : x + 4] = ORGANS["Brainstem"]
    return labels


def direction_of(matrix: NDArray[np.floating]) -> tuple[float, ...]:
    return tuple(float(v) for v in np.asarray(matrix).ravel())


LPS, RAS = np.eye(3), np.diag([-1.0, -1.0, 1.0])
PERMUTED = np.array([[0.0, 0, 1], [1, 0, 0], [0, -1, 0]])
"""Sagittal slices, stored from the right, upside down; the columns are the index axes."""
OBLIQUE = Rotation.from_euler("xyz", [12, -8, 15], degrees=True).as_matrix()
GRIDS = {
    "LPS": LPS,
    "RAS": RAS,
    "feet first": np.diag([1.0, -1.0, -1.0]),
    "permuted": PERMUTED,
    "oblique": OBLIQUE,
    "oblique and permuted": OBLIQUE @ PERMUTED,
}


def stored(labels: Labels, matrix: NDArray[np.floating]) -> tuple[Labels, Grid]:
    """LPS labels as a file in another orientation stores them, and its grid (3 mm along the body)."""
    nearest = np.rint(matrix / np.abs(matrix).max(axis=0))
    along = np.abs(nearest).argmax(axis=0)  # index axis x, y, z -> patient axis
    size, spacing = labels.shape[::-1], SPACING_MM[::-1]
    x, y, z = (size[a] for a in along)
    sx, sy, sz = (spacing[a] for a in along)
    grid = Grid((z, y, x), (sz, sy, sx), (-50.0, 20.0, 300.0), direction_of(matrix))
    return from_lps(labels, grid), grid


def write_cases(tmp_path: Path) -> tuple[Path, Path]:
    """IN with the cases good_0, good_1, good_2, each in its own orientation, and a name for OUT."""
    for i, matrix in enumerate((LPS, RAS, OBLIQUE @ PERMUTED)):
        labels, grid = stored(patient(corner=(3, 8, 12 + i)), matrix)
        write_image(tmp_path / "IN" / f"good_{i}_0000.nii.gz", image_of(labels), grid)
        write_labels(tmp_path / "truth" / f"good_{i}.nii.gz", labels, grid)
    return tmp_path / "IN", tmp_path / "OUT"


def run(folders: tuple[Path, Path], model: Composed | None = None) -> list[str]:
    said: list[str] = []
    predict_folder(model or composed(), *folders, said.append)
    return said


def failure(folders: tuple[Path, Path], model: Composed | None = None) -> str:
    with pytest.raises(CasesFailedError) as caught:
        run(folders, model)
    assert caught.value.exit_code == 3
    return str(caught.value)
