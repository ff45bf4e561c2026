"""Checkpoints that are whole or not there, and that load without running code from the file."""

from __future__ import annotations

import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnunet_ext.errors import InputError
from nnunet_ext.io.atomic import atomic_path

_NUMPY_SCALAR: Any = np.float64(0).__reduce__()[0]
STOCK_NUMPY_GLOBALS: list[Any] = [
    (_NUMPY_SCALAR, "numpy._core.multiarray.scalar"),
    (_NUMPY_SCALAR, "numpy.core.multiarray.scalar"),  # written under numpy 1
    np.dtype,
    *(np.dtypes.Float64DType, np.dtypes.Float32DType, np.dtypes.Float16DType),
    *(np.dtypes.Int64DType, np.dtypes.Int32DType, np.dtypes.BoolDType),
]
"""What a checkpoint of stock nnU-Net needs beyond tensors: its logged numpy scalars."""


def plain(value: Any) -> Any:
    """The same content with numpy scalars and arrays as Python numbers and lists; tensors stay."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, dict):
        return {plain(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(plain(v) for v in value)
    return value


def write_checkpoint(content: dict[str, Any], path: Path, keep_previous: Path | None = None) -> None:
    """Write a checkpoint to a temporary name, sync it, rename it.

    Args:
        content: Keys of a stock nnU-Net checkpoint, and ours.
        path: Final name.
        keep_previous: Where the file that ``path`` was before is kept, as the fall-back of the next load.
    """
    with atomic_path(path) as temporary:
        torch.save(plain(content), temporary)
        if keep_previous is not None and path.exists():
            keep_previous.unlink(missing_ok=True)
            try:
                os.link(path, keep_previous)
            except OSError:  # a file system without hard links
                shutil.copyfile(path, keep_previous)


def read_checkpoint(path: Path, map_location: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint of ours, or a stock one, with ``weights_only=True`` and every byte checked.

    torch.load looks at no checksum, so weights that a disk has zeroed would be taken for weights.

    Raises:
        OSError, RuntimeError, pickle.UnpicklingError, zipfile.BadZipFile: unreadable; ``DAMAGE`` lists what to catch.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if spoiled := archive.testzip():
                raise zipfile.BadZipFile(f"{path}: the checksum of {spoiled} is wrong")
    with torch.serialization.safe_globals(STOCK_NUMPY_GLOBALS):
        content: dict[str, Any] = torch.load(path, map_location=map_location, weights_only=True)
    return content


DAMAGE = (OSError, EOFError, RuntimeError, pickle.UnpicklingError, zipfile.BadZipFile, KeyError)
"""What torch.load raises on a cut or overwritten file."""


def is_latest(path: Path) -> bool:
    """Whether this is the checkpoint that training continues from."""
    return path.name == "checkpoint_latest.pth"


def previous_of(path: Path) -> Path:
    """Where the predecessor of ``checkpoint_latest.pth`` is kept."""
    return path.with_name("checkpoint_previous.pth")


def read_with_fall_back(path: Path, device: torch.device, say: Callable[[str], None]) -> dict[str, Any]:
    """A checkpoint; of a damaged latest one its predecessor, or the best, which then takes its place.

    Raises:
        InputError: no readable checkpoint is left.
    """
    candidates = [path, previous_of(path), path.with_name("checkpoint_best.pth")] if is_latest(path) else [path]
    for candidate in candidates:
        if not candidate.exists():
            continue
        try:
            content = read_checkpoint(candidate, device)
        except DAMAGE as error:
            say(f"{candidate.name} is damaged ({type(error).__name__}); looking for an older one.")
            continue
        if candidate != path:  # else the next save would keep the damaged file as its fall-back
            with atomic_path(path) as temporary:
                shutil.copyfile(candidate, temporary)
        say(f"Continuing from {candidate.name}, epoch {content['current_epoch']}.")
        return content
    raise InputError(f"{path} is damaged and no older checkpoint can be read; delete it and train this fold again.")
