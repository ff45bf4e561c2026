"""One chest film from its picture files to checked arrays: raw 12-bit or 8-bit copies, and overlapping masks.

A film is written as one slice (Z = 1) whose rows and columns lie where an axial slice has them: columns run to the
patient's left, which is what left-right-safe training needs; rows run down the patient.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from nnunet_ext.conversion.loaded_case import LoadedCase
from nnunet_ext.conversion.overlap import overlap_labels
from nnunet_ext.errors import InputError
from nnunet_ext.geometry import Grid

if TYPE_CHECKING:
    from nnunet_ext.conversion.source import RadiographCase, Source

RAW_EDGE, RAW_BYTES, RAW_MAX = 2048, 8_388_608, 4095
"""JSRT's description: 2048×2048 unsigned 16-bit big-endian without a header, 12 bits used."""
COPY_EDGES = (512, 1024, 2048)
"""Sizes of the PNG copies in circulation."""
FIELD_MM = 358.4
"""Edge of a film: 2048 pixels of 0.175 mm."""
SLICE_MM = 10.0
"""Our choice: a flat picture has no slice distance; the largest edge makes nnU-Net take this axis as the slices'."""
FILM_VALUES = 8
"""Our choice: a mask has 2 grey values, a map of the five structures 6; 8 bits of a film hold some 200."""
MOST_OF_A_FILM = 0.5
"""Our choice: a lung is the largest structure and fills far less, what lies around it far more."""
LUNGS = ("Lung_L", "Lung_R")


def load_radiograph(case: RadiographCase, source: Source) -> LoadedCase:
    """Read, check, turn the grey scale if needed, and reduce one film.

    The image is the mean of square blocks, masks are sampled at the middle of theirs. Lungs become dark whatever the
    file's polarity, which is found by comparing them with the tissue between them.

    Raises:
        InputError: a wrong size, a damaged picture, more than 12 bits, a mask in place of the film, an empty or
            inverted mask, or left and right swapped.
    """
    pixels, notes = _read_film(case.image)
    masks = {organ: _read_mask(path, case.size) for organ, path in case.masks.items()}
    _check_sides(case, masks)
    image = _block_mean(pixels, case.size)
    if _lungs_are_bright(image, masks):
        image = np.float32(RAW_MAX if case.image.suffix.upper() == ".IMG" else 255) - image
        notes.append("bright lungs (a negative), grey scale turned")
    edge_mm = FIELD_MM / case.size
    labels = overlap_labels(masks, source.organs)
    return LoadedCase(
        images=(np.ascontiguousarray(image[None]),),
        grid=Grid((1, case.size, case.size), (SLICE_MM, edge_mm, edge_mm)),
        labels=labels[None],
        contoured=tuple(range(1, 2 ** len(source.organs))),
        orientation="LPS",
        notes=tuple(notes),
    )


def is_mask_picture(path: Path) -> bool:
    """Whether a picture has so few grey values that it is a mask or a label map; not if it cannot be read."""
    try:
        return len(_grey_values(_read_picture(path))) < FILM_VALUES
    except InputError:
        return False


def is_same_picture(first: Path, other: Path) -> bool:
    """Whether two pictures show the same, whatever their format and their two values if they are masks."""
    try:
        a, b = _read_picture(first), _read_picture(other)
    except InputError:
        return False
    values = _grey_values(a), _grey_values(b)
    if all(len(v) == 2 for v in values):
        a, b = a == values[0][1], b == values[1][1]
    return np.array_equal(a, b)


def _read_film(path: Path) -> tuple[NDArray[np.float32], list[str]]:
    if path.suffix.upper() == ".IMG":
        return _read_raw(path), []
    pixels = _read_picture(path)
    _check_edges(path, pixels, COPY_EDGES)
    count = len(_grey_values(pixels))
    if count < FILM_VALUES:
        raise InputError(
            f"{path} has only {count} grey value{'s' * (count > 1)}, so it is a mask and not the film; add the film, "
            "or leave the case out."
        )
    return pixels.astype(np.float32), [f"8-bit copy of {pixels.shape[0]}×{pixels.shape[1]} pixels"]


def _read_raw(path: Path) -> NDArray[np.float32]:
    size = path.stat().st_size
    if size != RAW_BYTES:
        raise InputError(
            f"{path} has {size} bytes, expected {RAW_BYTES} ({RAW_EDGE}×{RAW_EDGE} pixels of 16 bits); copy it again."
        )
    pixels = np.fromfile(path, dtype=">u2").reshape(RAW_EDGE, RAW_EDGE)
    if pixels.max() > RAW_MAX:
        raise InputError(
            f"{path} reaches {pixels.max()}, expected at most {RAW_MAX} (12 bits, big-endian); it was stored in "
            "another byte order or is no JSRT film."
        )
    return pixels.astype(np.float32)


def _read_mask(path: Path, size: int) -> NDArray[np.bool_]:
    pixels = _read_picture(path)
    _check_edges(path, pixels, COPY_EDGES)
    values = _grey_values(pixels)
    if len(values) != 2:
        what = "is empty or full" if len(values) < 2 else f"has {len(values)} grey values"
        raise InputError(f"{path} {what}, expected a mask of two values; export it again without smoothing.")
    step = pixels.shape[0] // size
    mask = np.asarray(pixels[step // 2 :: step, step // 2 :: step] == values[1])
    if mask.mean() > MOST_OF_A_FILM:
        raise InputError(
            f"{path} covers {mask.mean():.0%} of the picture, so it is inverted; turn its grey values, so that the "
            "structure is bright and the rest dark."
        )
    if not mask.any():
        raise InputError(f"{path} has no pixel left at {size}×{size}; it is no structure, copy the SCR mask again.")
    return mask


def _grey_values(pixels: NDArray[np.uint8]) -> NDArray[np.intp]:
    return np.flatnonzero(np.bincount(pixels.ravel(), minlength=256))


def _read_picture(path: Path) -> NDArray[np.uint8]:
    """Grey values as a viewer shows them (palettes applied)."""
    try:
        with Image.open(path) as picture:
            if picture.mode not in ("1", "L", "P", "RGB", "RGBA"):
                raise InputError(f"{path} has pixels of mode {picture.mode}, expected 8-bit grey; use the .IMG file.")
            return np.asarray(picture.convert("L"))
    except (OSError, SyntaxError, UnidentifiedImageError) as error:
        raise InputError(f"{path} is damaged or no picture ({error}); copy it again.") from error


def _check_edges(path: Path, pixels: NDArray[np.uint8], edges: tuple[int, ...]) -> None:
    height, width = pixels.shape
    if height != width or height not in edges:
        raise InputError(
            f"{path} has {height}×{width} pixels, expected a square of {', '.join(map(str, edges))}; "
            "use the original picture."
        )


def _block_mean(pixels: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    step = pixels.shape[0] // size
    return np.asarray(pixels.reshape(size, step, size, step).mean(axis=(1, 3)), dtype=np.float32)


def _check_sides(case: RadiographCase, masks: dict[str, NDArray[np.bool_]]) -> None:
    """The patient's left is on the right of a film."""
    columns = {organ: float(np.argwhere(mask)[:, 1].mean()) for organ, mask in masks.items()}
    for organ, column in columns.items():
        other = columns.get(f"{organ[:-2]}_R")
        if organ.endswith("_L") and other is not None and column <= other:
            raise InputError(
                f"{case.masks[organ]} lies left of {organ[:-2]}_R in the picture; the patient's left is on the right "
                "of a film, so the masks are swapped or mirrored: exchange the folders, or mirror film and masks."
            )


def _lungs_are_bright(image: NDArray[np.float32], masks: dict[str, NDArray[np.bool_]]) -> bool:
    """Whether the lungs are brighter than what lies between them, row by row."""
    left, right = (masks[organ] for organ in LUNGS)
    rows = np.flatnonzero(left.any(axis=1) & right.any(axis=1))
    between = np.zeros_like(left)
    for row in rows:
        between[row, np.flatnonzero(right[row])[-1] + 1 : np.flatnonzero(left[row])[0]] = True
    if not between.any():
        return False
    return bool(image[left | right].mean() > image[between].mean())
