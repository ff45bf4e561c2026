"""Where things are: the trainers that nnU-Net must find, nnU-Net's three data folders, and what their files end in."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from nnunet_ext.errors import InputError

TRAINER_VARIABLE = "nnUNet_extTrainer"
DATA_VARIABLES = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
FILE_ENDING = ".nii.gz"
"""Of every image and label map in the datasets that we write or derive from."""


def trainers_folder() -> Path:
    """Folder of our trainer files, of an editable install as of a wheel; nothing in it is imported.

    Raises:
        InputError: the installation has no such folder.
    """
    spec = importlib.util.find_spec("nnunet_ext.trainers")
    if spec is None or not spec.submodule_search_locations:
        raise InputError("the package nnunet_ext.trainers is missing; install nnunet-ext again.")
    return Path(next(iter(spec.submodule_search_locations))).resolve()


def trainer_search_path() -> str:
    """Value for ``nnUNet_extTrainer``: our folder first, then the folders that are already there, each once.

    Raises:
        InputError: our folder's name holds the separator, so that nnU-Net could not read it back.
    """
    ours = str(trainers_folder())
    if os.pathsep in ours:
        raise InputError(
            f"nnU-Net splits {TRAINER_VARIABLE} at {os.pathsep!r}, so it cannot read {ours}; "
            "install into a folder without it."
        )
    present = [part for part in os.environ.get(TRAINER_VARIABLE, "").split(os.pathsep) if part.strip()]
    return os.pathsep.join(dict.fromkeys([ours, *present]))


def expose_trainers() -> None:
    """Make our trainers visible to nnU-Net in this process and in those that it starts."""
    os.environ[TRAINER_VARIABLE] = trainer_search_path()


def nnunet_folder(name: str) -> Path:
    """One of nnU-Net's data folders, from the environment variable of that name.

    Use the folder at once and do not keep it: nnU-Net reads the variable anew at every use, and so do we.

    Args:
        name: One of ``DATA_VARIABLES``.

    Raises:
        ValueError: the name is none of nnU-Net's.
        InputError: the variable is not set.
    """
    if name not in DATA_VARIABLES:
        raise ValueError(f"nnU-Net has no folder {name!r}, only {', '.join(DATA_VARIABLES)}.")
    value = os.environ.get(name, "").strip()
    if not value:
        raise InputError(f"{name} is not set; export {name}=FOLDER, the folder where nnU-Net keeps its data.")
    return Path(value)
