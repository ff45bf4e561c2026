"""A case in an HDF5 file: an array each for image and labels, and what is known of its grid.

HDF5 stores numbers, not patients: where the axes point to is told by the user, where the voxels lie is not known, so
the first voxel gets the position 0, 0, 0.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_ext.conversion.checks import check_spacing, check_values, in_hounsfield, renumber_labels
from nnunet_ext.conversion.loaded_case import LoadedCase, drawn_and_empty
from nnunet_ext.conversion.source import Hdf5Case, Source
from nnunet_ext.errors import InputError
from nnunet_ext.geometry import Grid
from nnunet_ext.io.orientation import axis_codes, to_lps

ATTRIBUTES_MM = {"spacing_mm": 1.0, "spacing": 1.0, "voxel_size": 1.0, "element_size_um": 0.001}
"""Attributes that may hold the voxel size along the array axes, and their unit in mm."""
DIRECTIONS = {"L": (0, 1.0), "R": (0, -1.0), "P": (1, 1.0), "A": (1, -1.0), "S": (2, 1.0), "I": (2, -1.0)}
"""Letter to patient axis and sign in LPS."""
SPACING_TOLERANCE = 1e-3


def load_hdf5_case(case: Hdf5Case, source: Source) -> LoadedCase:
    """Read, check and orient one case.

    Raises:
        InputError: h5py is missing, or the file cannot be used; the message names what it holds.
    """
    image, labels, spacing = _read(case)
    grid = Grid(_triple(image.shape), spacing, direction=direction_from(case.axes))
    check_spacing(grid, str(case.file))
    name = f"{case.file}, {case.image_key},"
    values, notes = in_hounsfield(image.astype(np.float32), source.channels[0], source.treatment.stored, name)
    values, repairs = check_values(values, source.channels[0], name)
    numbers, dropped = _label_map(labels, case, source)
    contoured, empty = ((), ()) if numbers is None else drawn_and_empty(numbers, source.organs.values())
    turned, lps = to_lps(values, grid)
    return LoadedCase(
        images=(turned,),
        grid=lps,
        labels=None if numbers is None else to_lps(numbers, grid)[0],
        contoured=contoured,
        empty=empty,
        orientation=axis_codes(grid),
        notes=tuple(f"{source.channels[0]}: {note}" for note in notes + repairs) + tuple(dropped),
    )


def direction_from(axes: str) -> tuple[float, ...]:
    """Direction cosines (as in a Grid) of an array whose three axes grow to these sides, such as ``SPL``.

    Raises:
        InputError: not one letter each of L or R, P or A, S or I.
    """
    if len(axes) != 3 or {DIRECTIONS[letter][0] for letter in axes if letter in DIRECTIONS} != {0, 1, 2}:
        raise InputError(f"axes {axes!r} are not understood; expected one of L or R, P or A, S or I each, such as SPL.")
    matrix = np.zeros((3, 3))
    for array_axis, letter in enumerate(axes):
        patient_axis, sign = DIRECTIONS[letter]
        matrix[patient_axis, 2 - array_axis] = sign
    return tuple(float(v) for v in matrix.ravel())


def _read(case: Hdf5Case) -> tuple[NDArray[Any], NDArray[Any] | None, tuple[float, float, float]]:
    h5py = _h5py()
    try:
        with h5py.File(case.file, "r") as file:
            stored = _data_set(h5py, file, case.image_key, case, "--image-key")
            spacing = _spacing(file, stored, case)
            image = np.asarray(stored[()])
            if case.label_key is None:
                return image, None, spacing
            labels = np.asarray(_data_set(h5py, file, case.label_key, case, "--label-key")[()])
    except (OSError, RuntimeError) as error:
        raise InputError(f"{case.file} is no HDF5 file, truncated or damaged ({error}); copy it again.") from error
    if labels.shape != image.shape:
        raise InputError(
            f"{case.file} has an image of shape {image.shape} and labels of shape {labels.shape}; they must be equal."
        )
    return image, labels, spacing


def _h5py() -> ModuleType:
    try:
        import h5py
    except ImportError as error:
        raise InputError("HDF5 files need h5py, which is not installed; pip install 'nnunet-ext[hdf5]'.") from error
    module: ModuleType = h5py
    return module


def _data_set(h5py: ModuleType, file: Any, key: str, case: Hdf5Case, flag: str) -> Any:
    found = file.get(key)
    if not isinstance(found, h5py.Dataset):
        held: list[str] = []
        file.visititems(lambda name, item: held.append(name) if isinstance(item, h5py.Dataset) else None)
        raise InputError(f"{case.file} has no data set {key!r}, only {', '.join(held) or 'none'}; name it with {flag}.")
    if len(found.shape) != 3 or found.dtype.kind not in "buif":
        raise InputError(
            f"{case.file}, {key}, has shape {found.shape} and type {found.dtype}, expected one 3D volume of numbers; "
            "write one file per case."
        )
    return found


def _spacing(file: Any, image: Any, case: Hdf5Case) -> tuple[float, float, float]:
    """The voxel size from the file or from the user, which must not contradict each other."""
    holders = [(holder, name) for holder in (image, file) for name in ATTRIBUTES_MM if name in holder.attrs]
    if not holders:
        if case.spacing_mm is None:
            raise InputError(
                f"{case.file} does not say its voxel size (attribute {' or '.join(ATTRIBUTES_MM)} of the image); "
                "give it with --spacing-mm."
            )
        return case.spacing_mm
    holder, name = holders[0]
    values = np.ravel(holder.attrs[name])
    if values.size != 3 or values.dtype.kind not in "uif":
        raise InputError(f"{case.file} has the attribute {name} = {holder.attrs[name]}, expected three voxel sizes.")
    z, y, x = (float(v) * ATTRIBUTES_MM[name] for v in values)
    if case.spacing_mm is not None and not np.allclose((z, y, x), case.spacing_mm, atol=SPACING_TOLERANCE):
        raise InputError(
            f"{case.file} says a voxel size of {z:g}×{y:g}×{x:g} mm in its attribute {name}, --spacing-mm "
            f"{'×'.join(f'{s:g}' for s in case.spacing_mm)}; drop the option or correct the file."
        )
    return z, y, x


def _label_map(raw: NDArray[Any] | None, case: Hdf5Case, source: Source) -> tuple[NDArray[np.uint16] | None, list[str]]:
    if raw is None:
        return None, []
    name = f"{case.file}, {case.label_key},"
    values = raw.astype(np.float64)
    odd = int(np.count_nonzero(~np.isfinite(values) | (values != np.rint(values)) | (values < 0) | (values > 65535)))
    if odd:
        raise InputError(f"{name} has {odd} voxels that are not whole numbers from 0 to 65535; labels must be.")
    return renumber_labels(
        values.astype(np.uint16), source.values, name, unlisted_is_background=source.unlisted_is_background
    )


def _triple(shape: tuple[int, ...]) -> tuple[int, int, int]:
    z, y, x = shape
    return z, y, x
