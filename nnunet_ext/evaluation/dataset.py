"""What is judged: organs from nnU-Net's dataset.json, and which of them were contoured in which case."""

from __future__ import annotations

import glob
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunet_ext.errors import InputError, some_of
from nnunet_ext.io.atomic import read_json
from nnunet_ext.labels import tg263_name

DATASET_FILE = "dataset.json"
PRESENT_FILE = "present_labels.json"
NOISE_FILE = "noise.json"
"""What ``nnunet-ext noise`` did to which training case of a raw dataset."""
BLOCK, CONTAINS = "nnunet_ext", "contains"


@dataclass(frozen=True)
class DatasetOrgans:
    """The foreground of a dataset.

    Args:
        organs: Organ name to label, or to the labels of a region.
        ignore: The ignore label, if there is one.
        contains: Organ to the organs inside it, which a label map can only draw over it.
        exported: Labels that nnU-Net writes for the regions, one each (``regions_class_order``); empty without regions.
    """

    organs: dict[str, int | tuple[int, ...]]
    ignore: int | None = None
    contains: dict[str, tuple[str, ...]] = field(default_factory=dict)
    exported: tuple[int, ...] = ()

    @property
    def own(self) -> dict[str, tuple[int, ...]]:
        """Organ to its own labels."""
        return {organ: (label,) if isinstance(label, int) else label for organ, label in self.organs.items()}

    @property
    def whole(self) -> dict[str, tuple[int, ...]]:
        """Organ to its own labels and those of the organs inside it, which are what it is judged by."""
        own = self.own
        return {
            organ: tuple(dict.fromkeys((*labels, *(n for inner in self.contains.get(organ, ()) for n in own[inner]))))
            for organ, labels in own.items()
        }

    @property
    def named(self) -> dict[str, str]:
        """Name to its labels as text, in ascending order; the ignore label included."""
        unjudged = {} if self.ignore is None else {"ignore": (self.ignore,)}
        return {name: ", ".join(map(str, sorted(labels))) for name, labels in {**self.own, **unjudged}.items()}

    @property
    def numbers(self) -> set[int]:
        """Every label that a map of the dataset may hold."""
        unjudged = () if self.ignore is None else (self.ignore,)
        return {0, *unjudged, *(label for labels in self.own.values() for label in labels)}


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
    order = content.get("regions_class_order")
    exported = tuple(n for n in order if isinstance(n, int)) if isinstance(order, list) else ()
    return DatasetOrgans(organs, ignore, contains, exported)


def check_same_labels(dataset_json: Path, trained: Path) -> None:
    """Refuse a dataset that names or numbers its organs otherwise than the one that a model was trained on.

    Spellings of one TG-263 name are one name.

    Args:
        dataset_json: Of the dataset.
        trained: dataset.json in the model's folder, which nnU-Net leaves there.

    Raises:
        InputError: it does, or a file is damaged or missing; what differs is named.
    """
    now, then = (read_organs(path).named for path in (dataset_json, trained))
    if all(len({*map(tg263_name, names)}) == len(names) for names in (now, then)):
        now, then = ({tg263_name(name): labels for name, labels in names.items()} for names in (now, then))
    other = [f"{name} ({now.get(name, 'none')} and {then.get(name, 'none')})" for name in {**now, **then}
             if now.get(name) != then.get(name)]  # fmt: skip
    if other:
        raise InputError(
            f"{dataset_json} and {trained} name or number {some_of(other)} differently, so the model's maps may not "
            "mean what the contours do; restore the names and labels that it was trained on."
        )


def read_description(path: Path) -> dict[str, Any]:
    """Content of a dataset.json, whatever is in it.

    Raises:
        InputError: the file is missing, or no JSON object.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(
            f"{path} is no JSON object (it holds a {type(content).__name__}, expected an object {{...}}); restore it."
        )
    return content


def read_first_channel(path: Path) -> str:
    """Name of the first channel in a dataset.json, by either of the two keys that nnU-Net v2 reads.

    Raises:
        InputError: the file is missing, no JSON object, or names none.
    """
    content = read_description(path)
    channels = content.get("channel_names", content.get("modality"))
    first = channels.get("0") if isinstance(channels, dict) else None
    if not isinstance(first, str):
        raise InputError(
            f'{path}: "channel_names" is {channels!r}, expected file number to name, {{"0": "CT"}}; correct it.'
        )
    return first


def read_file_ending(path: Path) -> str:
    """What the files of a dataset end in, as its dataset.json says.

    Raises:
        InputError: the file is missing, no JSON object, or does not say.
    """
    ending = read_description(path).get("file_ending")
    if not isinstance(ending, str):
        raise InputError(f'{path}: "file_ending" is {ending!r}, expected what the files end in, ".nii.gz"; correct it.')
    return ending


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
        isinstance(labels, list) and all(isinstance(n, int) and not isinstance(n, bool) for n in labels)
        for labels in content.values()
    ):
        raise InputError(f'{path} must map each case to its contoured labels, as {{"case_01": [1, 2, 5]}}.')
    return content


def check_present(
    path: Path, listed: Mapping[str, Collection[int]], numbers: Collection[int], cases: Collection[str] | None
) -> None:
    """Refuse a list of contoured labels that names what its dataset does not have: it would say nothing, unnoticed.

    Args:
        path: The list; test cases of the raw dataset that it lies in may be listed, too.
        listed: What it says.
        numbers: Every label of the dataset.
        cases: Every case beside the test cases; None where nobody knows them all.

    Raises:
        InputError: an unknown case, usually a misspelt one, or an unknown label.
    """
    beyond = [] if cases is None else sorted(set(listed) - set(cases))
    unknown = [case for case in beyond if not is_test_case(path.parent, case)]
    if unknown:
        raise InputError(
            f"{path} lists {', '.join(unknown)}, but the dataset has no such case; correct the name, or take it out of "
            "the list."
        )
    for case, contoured in listed.items():
        odd = sorted(set(contoured) - set(numbers))
        if odd:
            raise InputError(
                f"{path} lists label {', '.join(map(str, odd))} in {case}, but the dataset has "
                f"{', '.join(map(str, sorted(numbers)))}; correct the number."
            )


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
