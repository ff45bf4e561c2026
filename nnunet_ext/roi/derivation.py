"""A region dataset by number, in nnU-Net's folders, for the command line; and what to say about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from nnunet_ext.errors import InputError
from nnunet_ext.io.numbered import Split, check_elsewhere, check_name, dataset_numbered, splits_in_use, taken_by
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
        target: Number to write, 1 to 999; must be free.
        name: Letters, digits, ``_`` and ``-``.
        region: ``source`` and ``fallback`` are folders of trained models, or "truth" or "body".
        progress: Wraps the list of cases.

    Returns:
        The folder written, and the content of its ``regions.json``.

    Raises:
        InputError: a dataset or model is missing, number or name cannot be used, or a model trained on the cases
            that it shall locate.
    """
    check_name(target, name)
    raw, *others = (nnunet_folder(f"nnUNet_{part}") for part in ("raw", "preprocessed", "results"))
    folder = dataset_numbered(raw, source)
    taken = taken_by(raw, target)
    if taken:
        raise InputError(f"{taken[0]} has the number {target}; choose another one or delete it.")
    out = raw / f"Dataset{target:03d}_{name}"
    check_elsewhere(others, target, out.name)
    models = [] if region.source in NO_MODEL else [Path(text) for text in (region.source, *region.fallback)]
    locators = [_locator(model) for model in models]
    return out, derive_dataset(folder, out, region, _splits(folder.name), locators, progress)


def _locator(folder: Path) -> Locator:
    if not (folder / "dataset.json").exists():
        raise InputError(f"{folder} is no trained model; give a folder like .../DatasetXXX_NAME/Trainer__Plans__conf.")
    dataset, model = folder.resolve().parts[-2:]
    return Locator(f"{dataset}/{model}", folder, _splits(dataset))


def _splits(dataset: str) -> list[Split]:
    splits = splits_in_use(dataset)
    if splits is None:
        raise InputError(f"{dataset} has no splits_final.json; convert it with nnunet-ext, or train a fold first.")
    return splits
