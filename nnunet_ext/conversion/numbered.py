"""A dataset by its number, and the folds that it is used with."""

from __future__ import annotations

from pathlib import Path

from nnunet_ext.conversion.splits import Split
from nnunet_ext.errors import InputError
from nnunet_ext.io.atomic import read_json
from nnunet_ext.locations import nnunet_folder


def dataset_numbered(raw: Path, number: int) -> Path:
    """The raw folder of a dataset.

    Raises:
        InputError: none has this number, or several have.
    """
    found = sorted(path for path in raw.glob(f"Dataset{number:03d}_*") if path.is_dir())
    if len(found) != 1:
        raise InputError(
            f"{raw} holds {len(found)} datasets with the number {number}, expected one; "
            "`nnunet-ext convert` writes one."
        )
    return found[0]


def splits_in_use(dataset: str) -> list[Split] | None:
    """The folds that nnU-Net trains with (preprocessed), else the raw folder's; None where there are none."""
    for variable in ("nnUNet_preprocessed", "nnUNet_raw"):
        path = nnunet_folder(variable) / dataset / "splits_final.json"
        if path.exists():
            return list(read_json(path))
    return None
