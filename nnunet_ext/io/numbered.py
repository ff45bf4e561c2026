"""Datasets in nnU-Net's folders by their number: which there are, which number is free, and the folds in use."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from nnunet_ext.errors import InputError
from nnunet_ext.io.atomic import read_json
from nnunet_ext.locations import nnunet_folder

SPLITS_FILE = "splits_final.json"
Split = dict[str, list[str]]


def taken_by(raw: Path, number: int) -> list[Path]:
    """Folders in nnUNet_raw that carry the number, whatever their name."""
    return sorted(path for path in raw.glob(f"Dataset{number:03d}_*") if path.is_dir())


def dataset_numbered(raw: Path, number: int) -> Path:
    """The raw folder of a dataset.

    Raises:
        InputError: none has this number, or several have.
    """
    found = taken_by(raw, number)
    if len(found) != 1:
        raise InputError(
            f"{raw} holds {len(found)} datasets with the number {number}, expected one; "
            "`nnunet-ext convert` writes one."
        )
    return found[0]


def check_name(number: int, name: str) -> None:
    """Refuse a number or name that nnU-Net could not find again.

    Raises:
        InputError: number outside 1–999, or other characters than letters, digits, ``_`` and ``-``.
    """
    if not 1 <= number <= 999:
        raise InputError(f"dataset number {number} is not between 1 and 999.")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name) or "__" in name:
        raise InputError(f"dataset name {name!r} must be letters, digits, _ and -, without a double __.")


def check_elsewhere(folders: Sequence[Path], number: int, dataset: str) -> None:
    """Refuse a number that another of nnU-Net's folders knows under another name.

    Raises:
        InputError: it does; nnU-Net would then find neither.
    """
    others = [path for folder in folders for path in taken_by(folder, number) if path.name != dataset]
    if others:
        raise InputError(
            f"{others[0]} has the number of {dataset} under another name, and nnU-Net then finds neither; "
            "choose another number, use that name, or remove the folder."
        )


def stale_data(preprocessed: Path, dataset: str) -> str | None:
    """What to say once a dataset was written anew: nnU-Net keeps fingerprint, plans and data of the one before."""
    folder = preprocessed / dataset
    return f"{folder} was made from an earlier dataset of this name; delete it" if folder.exists() else None


def splits_in_use(dataset: str, roots: Sequence[Path] = ()) -> list[Split] | None:
    """The folds that nnU-Net trains with (preprocessed), else the raw folder's; None where there are none.

    Args:
        dataset: Folder name of the dataset.
        roots: nnUNet_preprocessed and nnUNet_raw; empty means those of the environment.

    Raises:
        InputError: the file is no list of folds.
    """
    for root in roots or [nnunet_folder(name) for name in ("nnUNet_preprocessed", "nnUNet_raw")]:
        path = root / dataset / SPLITS_FILE
        if path.exists():
            return _read_splits(path)
    return None


def _read_splits(path: Path) -> list[Split]:
    splits = read_json(path)
    if not isinstance(splits, list) or not all(_is_split(split) for split in splits):
        raise InputError(f'{path} must be a list of folds, [{{"train": ["a"], "val": ["b"]}}]; correct it.')
    return splits


def _is_split(split: object) -> bool:
    return isinstance(split, dict) and all(
        isinstance(cases := split.get(part), list) and all(isinstance(case, str) for case in cases)
        for part in ("train", "val")
    )
