"""What must be true of an image or a label map before anybody trains on it or predicts from it.

Each check names the file, what was expected, what came and what to do; conversion and prediction make the same ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray

from nnunet_ext.conversion.source import Stored
from nnunet_ext.errors import InputError
from nnunet_ext.geometry import Grid, grid_difference
from nnunet_ext.io.nifti import read_image

AIR_HU = -1024.0
"""Lowest value of a 12-bit CT; whatever lies below is padding (-2000, -3024, -32768)."""
OFFSET_HU = 1024.0
"""What 12-bit CT adds to HU so that nothing is negative: the usual rescale intercept is -1024."""
DENSE_HU, DENSE_SHARE = 800.0, 0.1
"""Our choice: in HU compact bone and metal lie above 800 and fill no tenth of a scan, in HU + 1024 all tissue does."""
MAX_LOWEST_HU = -200.0
"""Our choice: a patient's CT shows air or lung; with nothing below -200 it is no Hounsfield scale."""
MAX_HU = 30_000.0
"""Above every extended-scale CT (metal reaches some 20 000), below an unsigned wrap of negative values."""
SPACING_RANGE_MM = (0.1, 20.0)
"""Our choice: what scanners and planning systems write, from micro-CT to thick localisers."""


def read_checked_image(path: Path, modality: str, stored: Stored = "hu") -> tuple[NDArray[np.float32], Grid, list[str]]:
    """An image that can be trusted, with what had to be repaired.

    Args:
        path: NIfTI file.
        modality: Channel name; ``CT`` adds the Hounsfield checks, anything else gets the general ones.
        stored: How the file stores a CT; see ``in_hounsfield``. Left alone for other channels.

    Shape:
        returns: (Z, Y, X) float32 in the file's orientation, its Grid, and one sentence per repair.

    Raises:
        InputError: truncated, corrupt, not 3D, NaN or infinite, constant, spacing missing or outside 0.1–20
            mm, skewed axes, or no Hounsfield scale.
    """
    image, grid = read_image(path)
    check_spacing_is_set(path)
    check_spacing(grid, str(path))
    image, notes = in_hounsfield(image, modality, stored, str(path))
    image, repairs = check_values(image, modality, str(path))
    return image, grid, notes + repairs


def in_hounsfield(
    image: NDArray[np.float32], modality: str, stored: Stored, name: str
) -> tuple[NDArray[np.float32], list[str]]:
    """A CT that was stored as HU + 1024 (the rescale intercept left out) in HU, and one sentence if it was.

    ``auto`` looks at how much is denser than bone: of a body in HU next to nothing, of one in HU + 1024 all of it. The
    lowest value would say less, since padding may lie below the air of either.

    Raises:
        InputError: HU + 1024 is asked for, and hardly a voxel would be tissue.
    """
    if modality.upper() != "CT" or stored == "hu" or not image.size:
        return image, []
    dense = float(np.mean(image > DENSE_HU))
    if dense > DENSE_SHARE:
        return image - np.float32(OFFSET_HU), [f"stored as HU + {OFFSET_HU:g}, {OFFSET_HU:g} subtracted"]
    if stored == "plus1024":
        raise InputError(
            f"{name} has values from {image.min():g} to {image.max():g} and only {dense:.1%} above {DENSE_HU:g}, so it "
            f"is not stored as HU + {OFFSET_HU:g}; convert with --values hu or auto, or export the original values."
        )
    return image, []


def check_values(image: NDArray[np.float32], modality: str, name: str) -> tuple[NDArray[np.float32], list[str]]:
    """The image with CT padding clipped to -1024 HU, and one sentence per repair.

    Raises:
        InputError: NaN or infinite, constant, or (CT) no Hounsfield scale.
    """
    bad = int(image.size - np.count_nonzero(np.isfinite(image)))
    if bad:
        raise InputError(f"{name} has {bad} NaN or infinite voxels; repair the export.")
    repairs: list[str] = []
    if modality.upper() == "CT":
        image, repairs = _check_hounsfield(image, name)
    if image.size == 0 or image.min() == image.max():
        value = f"{image.flat[0]:g}" if image.size else "nothing"
        raise InputError(f"{name} is constant ({value} in every voxel); export the scan again.")
    return image, repairs


def check_spacing(grid: Grid, name: str) -> None:
    """Refuse impossible voxel sizes.

    Raises:
        InputError: a voxel size is outside 0.1–20 mm.
    """
    low, high = SPACING_RANGE_MM
    if not all(low <= s <= high for s in grid.spacing_mm):
        sizes = "×".join(f"{s:g}" for s in grid.spacing_mm)
        raise InputError(
            f"{name} has a spacing of {sizes} mm (Z×Y×X), expected {low:g} to {high:g} mm; "
            "check its unit and set the true spacing in the header."
        )


def check_spacing_is_set(path: Path) -> None:
    """Refuse a NIfTI header that was never given a spacing, which ITK silently reads as 1 mm.

    Raises:
        InputError: a voxel size is zero, negative or NaN, or all are 1 and no orientation was stored either.
    """
    header = nibabel.Nifti1Image.load(path).header
    sizes = [float(v) for v in header["pixdim"][1:4]]
    unset = int(header["qform_code"]) == 0 and int(header["sform_code"]) == 0 and sizes == [1.0, 1.0, 1.0]
    if unset or not all(s > 0 for s in sizes):
        raise InputError(
            f"{path} has no spacing in its header (voxel sizes {sizes}, no orientation); set the true spacing in mm."
        )


def check_same_grid(path: Path, grid: Grid, image_path: Path, image_grid: Grid) -> None:
    """Refuse a file that does not lie on the grid of the case's first image.

    Raises:
        InputError: naming both files and the difference.
    """
    difference = grid_difference(image_grid, grid)
    if difference:
        raise InputError(
            f"{path} lies on another grid than {image_path}: {difference}; resample it or check the series."
        )


def renumber_labels(
    labels: NDArray[np.uint16], values: Mapping[int, int], name: str, *, unlisted_is_background: bool = False
) -> tuple[NDArray[np.uint16], list[str]]:
    """A label map in the dataset's numbers, and one sentence per value that became background.

    Args:
        labels: Label map in the file's numbers.
        values: Value in the file to number in the dataset; 0 means background.
        name: What the error message calls the file.
        unlisted_is_background: Values without an entry become background instead of an error.

    Raises:
        InputError: a value has no entry; every such value is named with its voxel count.
    """
    found, counts = np.unique(labels, return_counts=True)
    unknown = {int(v): int(n) for v, n in zip(found, counts, strict=True) if int(v) not in values}
    if unknown and not unlisted_is_background:
        listed = ", ".join(f"{v} ({n} voxels)" for v, n in unknown.items())
        known = ", ".join(str(v) for v in sorted(values))
        raise InputError(f"{name} has unknown label value {listed}, expected {known}; correct it or list the value.")
    table = np.zeros(int(found.max(initial=0)) + 1, dtype=np.uint16)
    dropped = []
    for value, count in zip(found.tolist(), counts.tolist(), strict=True):
        table[value] = values.get(value, 0)
        if value and not table[value]:
            dropped.append(f"label {value} ({count} voxels) became background")
    return table[labels], dropped


def _check_hounsfield(image: NDArray[np.float32], name: str) -> tuple[NDArray[np.float32], list[str]]:
    low, high = (float(image.min()), float(image.max())) if image.size else (0.0, 0.0)
    if high > MAX_HU:
        raise InputError(
            f"{name} reaches {high:g} HU, expected at most {MAX_HU:g}; negative values were probably wrapped "
            "by an unsigned export, convert the series again."
        )
    if image.size and low != high and low > MAX_LOWEST_HU:
        raise InputError(
            f"{name} has no voxel below {MAX_LOWEST_HU:g} (lowest {low:g}), so it is no CT in Hounsfield "
            "units; apply the rescale slope and intercept."
        )
    if low >= AIR_HU:
        return image, []
    count = int(np.count_nonzero(image < AIR_HU))
    clipped = np.maximum(image, np.float32(AIR_HU))
    return clipped, [f"{count} voxels below {AIR_HU:g} HU (lowest {low:g}) clipped to {AIR_HU:g}"]
