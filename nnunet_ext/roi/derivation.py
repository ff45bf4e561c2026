"""A region dataset by number, in nnU-Net's folders, for the command line; and what to say about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from nnunet_ext.errors import InputError
from nnunet_ext.io.atomic import read_json
from nnunet_ext.locations import nnunet_folder
from nnunet_ext.roi.dataset import derive_dataset
from nnunet_ext.roi.region import NO_MODEL, Region
from nnunet_ext.roi.survey import Locator


def derive_numbered(
    source: int, target: int, name: str, region: Region, progress: Callable[[Sequence[str]], Iterator[str]]
) -> tuple[Path, dict[str, Any]]:
    """Derive dataset ``target`` from dataset ``source``; models are given as folders in the region.

    Args:
        source: Number of the source dataset.
        target: Number to write; must be free.
        name: Name to write.
        region: ``source`` and ``fallback`` are folders of trained models, or "truth" or "body".
        progress: Wraps the list of cases.

    Returns:
        The folder written, and the content of its ``regions.json``.

    Raises:
        InputError: a dataset or model is missing, the number is taken, or a model trained on the cases it shall locate.
    """
    raw = nnunet_folder("nnUNet_raw")
    folder = _dataset(raw, source)
    taken = sorted(raw.glob(f"Dataset{target:03d}_*"))
    if taken:
        raise InputError(f"{taken[0]} has the number {target}; choose another one or delete it.")
    models = [] if region.source in NO_MODEL else [Path(text) for text in (region.source, *region.fallback)]
    locators = [_locator(model) for model in models]
    out = raw / f"Dataset{target:03d}_{name}"
    return out, derive_dataset(folder, out, region, _splits(folder.name), locators, progress)


def _dataset(raw: Path, number: int) -> Path:
    found = sorted(raw.glob(f"Dataset{number:03d}_*"))
    if len(found) != 1:
        raise InputError(f"{raw} holds {len(found)} datasets with the number {number}, expected one.")
    return found[0]


def _locator(folder: Path) -> Locator:
    if not (folder / "dataset.json").exists():
        raise InputError(f"{folder} is no trained model; give a folder like .../DatasetXXX_NAME/Trainer__Plans__conf.")
    return Locator(folder.name, folder, _splits(folder.resolve().parent.name))


def _splits(dataset: str) -> list[dict[str, list[str]]]:
    """The folds in use, else the raw folder's."""
    for variable in ("nnUNet_preprocessed", "nnUNet_raw"):
        path = nnunet_folder(variable) / dataset / "splits_final.json"
        if path.exists():
            return list(read_json(path))
    raise InputError(f"{dataset} has no splits_final.json; convert it with nnunet-ext, or train a fold first.")
