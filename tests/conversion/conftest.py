"""Small CT phantoms on disk: a body with air around it, a left and a right organ, one in the middle."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from nnunet_ext.conversion.source import NiftiCase, Source

SPACING_MM = (3.0, 1.0, 1.0)
ORGANS = {"Brainstem": 1, "Parotid_L": 2, "Parotid_R": 3}


def phantom(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """CT and labels (Z, Y, X) in LPS: the left organ lies at larger x."""
    noise = np.random.default_rng(seed).integers(-20, 20, (8, 12, 16))
    image = np.full((8, 12, 16), -1000.0)
    image[1:7, 2:10, 2:14] = 40.0
    image += noise
    labels = np.zeros((8, 12, 16), np.uint8)
    labels[3:5, 4:7, 7:9] = 1
    labels[3:5, 4:7, 11:13] = 2
    labels[3:5, 4:7, 3:4] = 3
    return image, labels


def save(
    path: Path,
    array: np.ndarray,
    spacing_mm: tuple[float, float, float] = SPACING_MM,
    origin_mm: tuple[float, float, float] = (0.0, 0.0, 0.0),
    direction: tuple[float, ...] = (1, 0, 0, 0, 1, 0, 0, 0, 1),
    dtype: type = np.int16,
) -> Path:
    """Write an array (Z, Y, X) with SimpleITK."""
    image = sitk.GetImageFromArray(array.astype(dtype))
    image.SetSpacing(spacing_mm[::-1])
    image.SetOrigin(origin_mm)
    image.SetDirection([float(v) for v in direction])
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path), True)
    return path


def save_case(folder: Path, name: str, seed: int = 0) -> tuple[Path, Path]:
    """One good case in ``images/`` and ``labels/``."""
    image, labels = phantom(seed)
    return save(folder / f"images/{name}.nii.gz", image), save(folder / f"labels/{name}.nii.gz", labels)


def truncate(path: Path) -> None:
    """Cut a gzip file in the middle."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def rewrite_header(path: Path, **fields: object) -> None:
    """Change header fields of a .nii.gz, with a checksum that fits."""
    import nibabel

    image = nibabel.Nifti1Image.from_bytes(gzip.decompress(path.read_bytes()))
    for key, value in fields.items():
        image.header[key] = value
    content = image.header.binaryblock + b"\0" * 4 + np.asarray(image.dataobj.get_unscaled()).tobytes(order="F")
    path.write_bytes(gzip.compress(content))


@pytest.fixture
def draw() -> SimpleNamespace:
    """The drawing functions of this file, for tests that cannot import it."""
    return SimpleNamespace(
        phantom=phantom, save=save, save_case=save_case, truncate=truncate, rewrite_header=rewrite_header
    )


@pytest.fixture
def good_folder(tmp_path: Path) -> Path:
    """Seven good cases, case_0 to case_6."""
    for i in range(7):
        save_case(tmp_path / "source", f"case_{i}", seed=i)
    return tmp_path / "source"


@pytest.fixture
def source_of() -> Callable[..., Source]:
    """A Source for a folder of paired files."""
    from nnunet_ext.conversion.folders import paired_cases
    from nnunet_ext.conversion.source import in_order

    def make(folder: Path, **changes: object) -> Source:
        cases: tuple[NiftiCase, ...] = changes.pop("cases", None) or in_order(paired_cases(folder))  # type: ignore
        fields = {"description": "phantoms", "licence": "none", "reference": "none", "organs": ORGANS}
        return Source(name="drawn", folder=folder, cases=cases, **{**fields, **changes})  # type: ignore[arg-type]

    return make
