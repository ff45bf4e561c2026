"""What is done to a case's voxels beyond reading: registration, the check of the heads, preprocessing steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_ext.conversion.loaded_case import LoadedCase
from nnunet_ext.conversion.source import Case, Source, Treatment
from nnunet_ext.errors import InputError
from nnunet_ext.geometry import Grid
from nnunet_ext.preprocessing.body_mask import cut_as_text, labels_outside
from nnunet_ext.preprocessing.head_mask import overlap
from nnunet_ext.preprocessing.registration import register_rigid
from nnunet_ext.preprocessing.steps import treat

Image = NDArray[np.float32]
Say = Callable[[str], None]


def treatment_as_json(treatment: Treatment) -> dict[str, Any]:
    """Plain content, for the signature of a conversion and for dataset.json."""
    return {
        "steps": {channel: list(steps) for channel, steps in treatment.steps.items() if steps},
        "register": treatment.register,
        "min_overlap": treatment.min_overlap,
        "stored": treatment.stored,
        "crop": {} if treatment.crop is None else asdict(treatment.crop),
        "slices": treatment.slices,
    }


def move_onto(fixed: Image, fixed_grid: Grid, image: Image, grid: Grid, name: str) -> tuple[Image, Grid, list[str]]:
    """An MR moved rigidly onto the CT's grid, and how the heads agreed before and after.

    Shape:
        fixed: (Z, Y, X) in HU on ``fixed_grid``.
        image: (Z, Y, X) on ``grid``.
        returns: (Z, Y, X) on ``fixed_grid``.

    Raises:
        InputError: naming the file, where no head is found or the registration fails.
    """
    try:
        found = register_rigid(fixed, fixed_grid, image, grid)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    note = (
        f"registered rigidly, overlap of the heads {found.overlap_before:.3f} before, {found.overlap_after:.3f} after"
    )
    return found.image, fixed_grid, [note]


def facts_of(treatment: Treatment) -> dict[str, Any]:
    """What dataset.json says about the treatment, as far as there was one."""
    facts: dict[str, Any] = {}
    steps = treatment_as_json(treatment)["steps"]
    if steps:
        facts["preprocessing"] = steps
    if treatment.stored != "hu":
        facts["values"] = {"stored": treatment.stored, "written": "hu"}
    if treatment.slices:
        facts["fixed_slices"] = treatment.slices
    if treatment.crop:
        facts["crop"] = {"to": treatment.crop.name, "margin_mm": treatment.crop.margin_mm}
    return facts


def treat_case(loaded: LoadedCase, case: Case, source: Source, say: Say) -> LoadedCase:
    """The case after the check of its heads and its preprocessing steps.

    Args:
        loaded: As read, in the canonical frame.
        case: Its files, for messages.
        source: Carries the treatment.
        say: Called with the progress of the slow steps.

    Raises:
        InputError: the heads of CT and MR do not agree, a step cannot be done, or it would cut a contour.
    """
    treatment = source.treatment
    notes = list(loaded.notes)
    if treatment.min_overlap > 0:
        notes += _overlaps(loaded, case, source)
    if not treatment.steps:
        return replace(loaded, notes=tuple(notes))
    images = dict(zip(source.channels, loaded.images, strict=True))
    try:
        done, kept, found = treat(images, loaded.grid, treatment.steps, say=say)
    except InputError as error:
        raise InputError(f"case {case.identifier}, {error}") from error
    for mask in kept.values():
        _check_nothing_cut(loaded, mask, case, source)
    return replace(loaded, images=tuple(done.values()), notes=(*notes, *found))


def _overlaps(loaded: LoadedCase, case: Case, source: Source) -> list[str]:
    """One sentence per MR on how well its head agrees with the CT's."""
    notes = []
    ct = loaded.images[0]
    for path, channel, mr in zip(case.files[1:], source.channels[1:], loaded.images[1:], strict=False):
        try:
            found = overlap(ct, mr, loaded.grid)
        except InputError as error:
            raise InputError(f"case {case.identifier}, {source.channels[0]} and {channel}: {error}") from error
        if found < source.treatment.min_overlap:
            raise InputError(
                f"{path} does not lie on the {source.channels[0]}: overlap (Dice) of the heads {found:.3f}, expected "
                f"at least {source.treatment.min_overlap:g}; register the {channel}, or add --register rigid."
            )
        notes.append(f"{channel}: overlap of the heads {found:.3f}")
    return notes


def _check_nothing_cut(loaded: LoadedCase, kept: NDArray[np.bool_], case: Case, source: Source) -> None:
    cut = {} if loaded.labels is None else labels_outside(loaded.labels, kept)
    if cut:
        raise InputError(
            f"case {case.identifier}: removing couch and mask would cut {cut_as_text(cut, source.organs)}; correct "
            "the contours or convert with --no-couch."
        )
