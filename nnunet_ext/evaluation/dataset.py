"""What is judged: organs from nnU-Net's dataset.json, and which of them were contoured in which case."""

from __future__ import annotations

import glob
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunet_ext.errors import InputError
from nnunet_ext.io.atomic import read_json

DATASET_FILE = "dataset.json"
PRESENT_FILE = "present_labels.json"
BLOCK, CONTAINS = "nnunet_ext", "contains"


@dataclass(frozen=True)
class DatasetOrgans:
    """The foreground of a dataset.

    Args:
        organs: Organ name to label, or to the labels of a region.
        ignore: The ignore label, if there is one.
        contains: Organ to the organs inside it, which a label map can only draw over it.
    """

    organs: dict[str, int | tuple[int, ...]]
    ignore: int | None = None
    contains: dict[str, tuple[str, ...]] = field(default_factory=dict)


def find_dataset_json(predictions: Path, references: Path) -> Path:
    """dataset.json beside the references, in the predictions (nnU-Net copies it there) or in the references.

    Raises:
        InputError: there is none.
    """
    places = [references.absolute().parent, predictions, references]
    for place in places:
        if (place / DATASET_FILE).is_file():
            return place / DATASET_FILE
    raise InputError(f"no {DATASET_FILE} in {', '.join(map(str, places))}; it names the organs: give it with -djfile.")


def read_organs(path: Path) -> DatasetOrgans:
    """Organs of an nnU-Net v2 dataset.json, regions included, background and ignore label left out.

    Raises:
        InputError: the file is missing, is not JSON, or has no valid ``labels``.
    """
    content = read_json(path)
    labels = content.get("labels") if isinstance(content, dict) else None
    if not isinstance(labels, dict):
        raise InputError(f'{path} has no "labels" (name to number), expected nnU-Net v2\'s dataset.json.')
    organs: dict[str, int | tuple[int, ...]] = {}
    ignore = None
    for name, value in labels.items():
        numbers = value if isinstance(value, list) else [value]
        if not numbers or not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in numbers):
            raise InputError(
                f"{path}: label {name!r} is {value!r}, expected a whole number from 0 or a list of them; "
                "nnU-Net v1 files have number to name: swap them."
            )
        if name == "ignore":
            ignore = numbers[0]
        elif numbers != [0] and name != "background":
            organs[name] = numbers[0] if len(numbers) == 1 else tuple(numbers)
    if not organs:
        raise InputError(f'{path} names no organ beside the background; add it to "labels".')
    try:
        contains = contained_organs(content, organs)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return DatasetOrgans(organs, ignore, contains)


def contained_organs(dataset_json: Mapping[str, Any], organs: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Which organs lie inside another one: ``{"nnunet_ext": {"contains": {"Eye_L": ["Lens_L"]}}}`` of a dataset.json.

    A voxel of a label map carries one label, so a reference eye has a hole where its lens is. Where the block is, the
    eye is judged with its lens, in both maps. Inner organs of inner organs are to be listed, too.

    Args:
        dataset_json: Content of the file.
        organs: Names that exist.

    Raises:
        InputError: the block has another form, names an unknown organ, or an organ as part of itself.
    """
    block = dataset_json.get(BLOCK)
    found = block.get(CONTAINS, {}) if isinstance(block, dict) else {}
    if not isinstance(found, dict) or not all(
        isinstance(inner, list) and all(isinstance(name, str) for name in inner) for inner in found.values()
    ):
        raise InputError(f'{BLOCK}.{CONTAINS} is {found!r}, expected organs and those inside, {{"Eye_L": ["Lens_L"]}}.')
    for outer, inner in found.items():
        unknown = [name for name in (outer, *inner) if name not in organs]
        if unknown or outer in inner:
            what = f"{', '.join(unknown)}, which is no organ of it" if unknown else f"{outer} as a part of itself"
            raise InputError(f"{BLOCK}.{CONTAINS} names {what}; its organs are {', '.join(organs)}.")
    return {outer: tuple(inner) for outer, inner in found.items() if inner}


def read_present(path: Path) -> dict[str, Sequence[int]]:
    """Case to contoured labels; a case that is not listed counts as fully contoured.

    Raises:
        InputError: the file is missing, is not JSON, or has another form.
    """
    content = read_json(path)
    if not isinstance(content, dict) or not all(
        isinstance(labels, list) and all(isinstance(n, int) for n in labels) for labels in content.values()
    ):
        raise InputError(f'{path} must map each case to its contoured labels, as {{"case_01": [1, 2, 5]}}.')
    return content


def is_test_case(dataset: Path, case: str) -> bool:
    """Whether a raw dataset holds a case as a test case, by its image or its label map.

    Args:
        dataset: Raw folder.
        case: Identifier.
    """
    name = glob.escape(case)
    return any((dataset / "imagesTs").glob(f"{name}_[0-9][0-9][0-9][0-9].*")) or any(
        (dataset / "labelsTs").glob(f"{name}.*")
    )


def default_present(dataset_json: Path) -> Path | None:
    """present_labels.json beside dataset.json, if it is there."""
    path = dataset_json.parent / PRESENT_FILE
    return path if path.is_file() else None
