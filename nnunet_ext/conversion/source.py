"""What a converter says about its source: which files belong together and what the labels mean. Reads no
voxels.

Kept free of numpy and SimpleITK, so that ``nnunet-ext convert --help`` answers at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from nnunet_ext.errors import InputError

ENDINGS = (".nii.gz", ".nii")

Stored = Literal["hu", "plus1024", "auto"]
"""How a file stores the values of a CT."""
Empty = Literal["not-contoured", "absent"]
"""What an organ means whose contour was looked up and has no voxel: nobody drew it, or the patient has none."""


@dataclass(frozen=True)
class Option:
    """One option of a converter beyond the common ones; the command line builds its flag from it.

    Args:
        flag: Long flag, such as ``--labels``; the keyword is the same with underscores.
        help: One sentence for ``--help``.
        default: Text used when the flag is absent; None means not given; True or False make it a switch, such as
            ``--couch/--no-couch``.
        required: The conversion makes no sense without it.
        choices: Allowed texts; empty means any.
    """

    flag: str
    help: str
    default: str | bool | None = None
    required: bool = False
    choices: tuple[str, ...] = ()

    @property
    def keyword(self) -> str:
        """Name of the argument that carries the value."""
        return self.flag.partition("/")[0].removeprefix("--").replace("-", "_")


@dataclass(frozen=True)
class NiftiCase:
    """A case whose channels and label map are NIfTI files.

    Args:
        identifier: Name of the case in the dataset.
        images: One file per channel, in channel order.
        label: The label map; None (and no organs) makes it a test case (imagesTs).
        patient: Cases of one patient share a fold; empty means one patient per case.
        fault: What is wrong with the set of files, seen before any is read; the case is then reported, not
            read.
        organs: Organ name to its own 0/1 file, instead of a label map; an organ without a file was not
            contoured.
        guide: A 0/1 file that says where to crop; never written.
    """

    identifier: str
    images: tuple[Path, ...]
    label: Path | None = None
    patient: str = ""
    fault: str = ""
    organs: Mapping[str, Path] = field(default_factory=dict)
    guide: Path | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that belong to the case."""
        single = (path for path in (self.label, self.guide) if path)
        return (*self.images, *single, *self.organs.values())

    @property
    def has_labels(self) -> bool:
        """Whether somebody contoured it."""
        return bool(self.label or self.organs)


@dataclass(frozen=True)
class SparseCase:
    """A case in sparse CSV files: flat C-order index into a cube, and a value (see ``conversion.sparse``).

    Args:
        identifier: Name of the case in the dataset.
        image: CSV with index and CT value.
        spacing: CSV with the three voxel sizes in mm.
        structures: Organ name to CSV with indices; an organ without a file was not contoured.
        others: Further contours that are no organs (targets); only the leak check reads them.
        patient: Cases of one patient share a fold; empty means one patient per case.
        fault: As for NiftiCase.
    """

    identifier: str
    image: Path
    spacing: Path
    structures: Mapping[str, Path]
    others: tuple[Path, ...] = ()
    patient: str = ""
    fault: str = ""

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that belong to the case."""
        return (self.image, self.spacing, *self.structures.values(), *self.others)

    @property
    def has_labels(self) -> bool:
        """Whether somebody contoured it; always."""
        return True


@dataclass(frozen=True)
class Hdf5Case:
    """A case in one HDF5 file: an image and a label map as its data sets (see ``conversion.hdf5``).

    Args:
        identifier: Name of the case in the dataset.
        file: The HDF5 file.
        image_key: Name of the image's data set, such as ``image`` or ``scan/ct``.
        label_key: Name of the label map's; None makes it a test case (imagesTs).
        axes: Where the three array axes grow to, such as ``SPL``.
        spacing_mm: Voxel size along the array axes; None reads it from the image's attributes.
        patient: Cases of one patient share a fold; empty means one patient per case.
        fault: As for NiftiCase.
    """

    identifier: str
    file: Path
    image_key: str
    label_key: str | None
    axes: str = "SPL"
    spacing_mm: tuple[float, float, float] | None = None
    patient: str = ""
    fault: str = ""

    @property
    def files(self) -> tuple[Path, ...]:
        """The one file."""
        return (self.file,)

    @property
    def has_labels(self) -> bool:
        """Whether somebody contoured it."""
        return self.label_key is not None


@dataclass(frozen=True)
class RadiographCase:
    """A chest film: one picture, and one mask picture per structure (see ``conversion.radiograph``).

    Args:
        identifier: Name of the case in the dataset.
        image: Raw ``.IMG`` or PNG.
        masks: Structure to GIF or PNG.
        size: Edge of the written image in pixels.
        patient: Cases of one patient share a fold; empty means one patient per case.
        fault: As for NiftiCase.
    """

    identifier: str
    image: Path
    masks: Mapping[str, Path]
    size: int
    patient: str = ""
    fault: str = ""

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that belong to the case."""
        return (self.image, *self.masks.values())

    @property
    def has_labels(self) -> bool:
        """Whether somebody contoured it; always."""
        return True


Case = NiftiCase | SparseCase | Hdf5Case | RadiographCase


@dataclass(frozen=True)
class Crop:
    """What part of a scan is kept (see ``conversion.extent``).

    Args:
        to: ``body`` (found in the CT) or ``guide`` (the mask of every case).
        margin_mm: Kept around it.
        name: What messages and dataset.json call it, such as ``liver``.
    """

    to: Literal["body", "guide"]
    margin_mm: float
    name: str = "body"


@dataclass(frozen=True)
class Treatment:
    """What is done to the voxels beyond reading them (see ``conversion.treatment``).

    Args:
        steps: Channel name to the names of its preprocessing steps; new patients get the same.
        register: Move every further channel rigidly onto the first.
        min_overlap: Least Dice of the head in the first channel (a CT) and in each further one; 0 checks
            nothing.
        stored: How the files store a CT: ``hu``, ``plus1024`` (HU + 1024, without the intercept), or ``auto``, which
            decides for every case.
        crop: Part of the scan that is kept; None keeps all.
        slices: Every case is resampled to this number of axial slices; 0 keeps them.
    """

    steps: Mapping[str, Sequence[str]] = field(default_factory=dict)
    register: bool = False
    min_overlap: float = 0.0
    stored: Stored = "hu"
    crop: Crop | None = None
    slices: int = 0


@dataclass(frozen=True)
class Source:
    """A source dataset as its converter describes it.

    Args:
        name: The converter's verb, such as ``structseg-han``.
        folder: Where the user's copy lies; never written into the dataset.
        description: One sentence for dataset.json.
        licence: Licence of the data, for dataset.json.
        reference: What to cite, for dataset.json.
        organs: TG-263 name to label number, 1 to n.
        cases: All cases in a stable order.
        channels: Channel names in order; ``CT`` switches on the Hounsfield checks and nnU-Net's CT
            normalisation.
        label_values: Value in a label file to number in the dataset (0 = background); None means unchanged.
        unlisted_is_background: Values without an entry become background (recorded) instead of refusing the
            case.
        version: Raised when the converter would write something else for the same files.
        notes: What the report should say about the whole folder.
        treatment: Preprocessing and registration; the default changes no voxel.
        facts: Further entries of dataset.json's block ``nnunet_ext``, such as ``contains``.
        reading: Options that change how files are read, so that a conversion with others is not continued.
        folds: Folds of the cross-validation, unless the user wants another number.
        test_share: Share of the patients with labels that is set aside as test cases, 0 to 1.
        held_out: The cases set aside; ``convert`` fills them in.
        painting: Not empty where organs overlap: labels are written one bit per organ (``conversion.overlap``), and
            this is nnU-Net's ``regions_class_order``: the label that every organ is exported with, in their order.
        empty: What an organ without a voxel means in a label map, or in a file of its own.
    """

    name: str
    folder: Path
    description: str
    licence: str
    reference: str
    organs: Mapping[str, int]
    cases: Sequence[Case]
    channels: tuple[str, ...] = ("CT",)
    label_values: Mapping[int, int] | None = None
    unlisted_is_background: bool = False
    version: int = 1
    notes: Sequence[str] = field(default_factory=tuple)
    treatment: Treatment = field(default_factory=Treatment)
    facts: Mapping[str, Any] = field(default_factory=dict)
    reading: Mapping[str, str] = field(default_factory=dict)
    folds: int = 5
    test_share: float = 0.0
    held_out: frozenset[str] = frozenset()
    painting: tuple[int, ...] = ()
    empty: Empty = "not-contoured"

    @property
    def values(self) -> Mapping[int, int]:
        """Value in a label file to number in the dataset, background included."""
        table = {n: n for n in self.organs.values()} if self.label_values is None else self.label_values
        return {0: 0, **table}


def stem(path: Path) -> str:
    """File name without ``.nii`` or ``.nii.gz``."""
    return path.name.removesuffix(".gz").removesuffix(".nii")


def is_nifti(path: Path) -> bool:
    """Whether the name ends like a NIfTI file and is not hidden."""
    return path.name.endswith(ENDINGS) and not path.name.startswith(".")


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key that puts ``pt_2`` before ``pt_10``."""
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name) if part)


def in_order(cases: Iterable[Case]) -> tuple[Case, ...]:
    """Cases sorted by identifier, numbers as numbers."""
    return tuple(sorted(cases, key=lambda case: natural_key(case.identifier)))


AnyCase = TypeVar("AnyCase", NiftiCase, Hdf5Case)


def with_patient(case: AnyCase, pattern: str | None) -> AnyCase:
    """The case with the patient that a regular expression finds in its name; unchanged without one.

    Raises:
        InputError: the expression is none, or finds nothing.
    """
    if pattern is None:
        return case
    try:
        found = re.search(pattern, case.identifier)
    except re.error as error:
        raise InputError(f"--patient {pattern!r} is no regular expression ({error}).") from error
    if not found:
        raise InputError(f"--patient {pattern!r} finds nothing in the name of case {case.identifier}.")
    return replace(case, patient=found.group())


def number_from(flag: str, text: str, low: float, high: float) -> float:
    """The number given to an option.

    Raises:
        InputError: no number, or outside the range.
    """
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        raise InputError(f"{flag} {text!r} must be a number from {low:g} to {high:g}.")
    return value
