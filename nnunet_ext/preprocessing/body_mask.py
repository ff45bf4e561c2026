"""The patient's body in a CT, and a CT without couch and thermoplastic mask."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from nnunet_ext.errors import InputError
from nnunet_ext.geometry import LEFT_RIGHT, Grid, body_axis
from nnunet_ext.preprocessing.images import (
    Mask,
    axial_axis,
    distance_mm,
    filled_per_slice,
    largest_component,
    opened,
    otsu_threshold,
)

OUTSIDE_HU = -1024.0
"""What lies outside the patient afterwards: the air of a 12-bit CT. Never 0, which is water, and where all channels
are 0 nnU-Net crops."""
CLIP_HU = (-1000.0, 300.0)
"""Range of Otsu's histogram: neither padding nor metal may draw the threshold."""
THRESHOLD_RANGE_HU = (-700.0, -200.0)
"""Where a threshold between air and soft tissue must lie."""
BALL_MM = 4.0
"""Radius of the opening: a mask shell is 2 to 3 mm thick, its contact points not much thicker."""
RIM_MM = 2.0
"""Our choice: air this close to the skin keeps its values, so that the blurred edge of skin, lid and cornea stays."""
MIN_KEPT = 0.3
"""The largest piece must be this fraction of all that is denser than air; below, it is a couch or a piece of a
patient. No upper limit (our choice): a CT that was cropped or cleaned before is nothing but patient."""
COUCH_WIDTH = 0.9
"""Our choice: a row of a slice that the body fills over this fraction of the image width is called a couch."""


@dataclass(frozen=True)
class Body:
    """The patient in a CT.

    Args:
        mask: (Z, Y, X) bool, holes (sinuses, airway, lungs) filled.
        dense: (Z, Y, X) bool, everything denser than the threshold: patient, couch, mask.
        threshold_hu: Otsu's threshold.
        kept: Fraction of ``dense`` that belongs to the patient, before holes are filled.
    """

    mask: Mask
    dense: Mask
    threshold_hu: float
    kept: float


def threshold_hu(image_hu: NDArray[np.floating]) -> float:
    """Otsu's threshold between air and tissue in a CT.

    Raises:
        InputError: the image is constant, or the threshold lies outside -700 to -200 HU.
    """
    low, high = THRESHOLD_RANGE_HU
    try:
        found = otsu_threshold(image_hu, *CLIP_HU)
    except ValueError as error:
        raise InputError(f"no body can be found, {error}") from error
    if not low <= found <= high:
        raise InputError(
            f"the threshold between air and tissue came out at {found:.0f} HU, expected {low:g} to {high:g}; "
            "the image shows almost no air or is not in Hounsfield units."
        )
    return found


def body_mask(image_hu: NDArray[np.floating], spacing_mm: tuple[float, float, float], axial: int = 0) -> Mask:
    """The patient without couch and thermoplastic mask; see ``find_body``.

    Shape:
        image_hu: (Z, Y, X) in HU.
        returns: (Z, Y, X) bool.

    Raises:
        InputError: as find_body.
    """
    return find_body(image_hu, spacing_mm, axial).mask


def find_body(image_hu: NDArray[np.floating], spacing_mm: tuple[float, float, float], axial: int = 0) -> Body:
    """The patient in a CT: threshold, opening, largest piece, skin given back, holes filled.

    Use for head and neck. Ears thinner than 8 mm come back only within 4 mm of the head; where a mask touches the skin
    a stub of it up to 4 mm stays.

    Source: Otsu's threshold; the chain around it is our choice. The skin comes back along paths
    through dense voxels, not by a plain dilation, which would bring back a mask shell 3 mm off the skin.

    Args:
        image_hu: CT.
        spacing_mm: Voxel size along (Z, Y, X) in mm.
        axial: Array axis from head to foot.

    Shape:
        image_hu: (Z, Y, X) in HU.

    Raises:
        InputError: no plausible threshold, or the largest piece is less than 30 % of what is denser than air.
    """
    threshold = threshold_hu(image_hu)
    dense = np.asarray(image_hu > threshold)
    core = largest_component(opened(dense, spacing_mm, BALL_MM))
    body = _grown_within(core, dense, spacing_mm, BALL_MM)
    kept = float(np.count_nonzero(body) / np.count_nonzero(dense))
    if kept < MIN_KEPT:
        raise InputError(
            f"the largest piece of the CT is {kept:.0%} of all that is denser than {threshold:.0f} HU, expected at "
            f"least {MIN_KEPT:.0%}; the patient is in pieces or smaller than the couch, keep the couch."
        )
    return Body(filled_per_slice(body, axial), dense, threshold, kept)


def region_to_keep(body: Body, spacing_mm: tuple[float, float, float]) -> Mask:
    """The body and the thin layer of air on its skin; dense voxels that are not the body's are left out."""
    near = distance_mm(body.mask, spacing_mm) <= RIM_MM
    return np.asarray(body.mask | (near & ~body.dense))


def remove_outside(image_hu: NDArray[np.float32], keep: Mask) -> NDArray[np.float32]:
    """The image with -1024 HU outside the mask; inside every value stays bit for bit, the size stays.

    Shape:
        image_hu, keep: (Z, Y, X).
        returns: (Z, Y, X), a new array.
    """
    return np.where(keep, image_hu, np.float32(OUTSIDE_HU)).astype(image_hu.dtype, copy=False)


def remove_couch(image_hu: NDArray[np.float32], grid: Grid) -> tuple[NDArray[np.float32], Mask, list[str]]:
    """A CT without couch and thermoplastic mask, what was kept, and what was done in words.

    Shape:
        image_hu: (Z, Y, X) in HU, on ``grid``.
        returns: image and mask (Z, Y, X), notes.

    Raises:
        InputError: as find_body.
    """
    axial = axial_axis(grid)
    body = find_body(image_hu, grid.spacing_mm, axial)
    keep = region_to_keep(body, grid.spacing_mm)
    removed_ml = (np.count_nonzero(body.dense) - np.count_nonzero(body.dense & keep)) * grid.voxel_ml
    notes = [f"couch and mask: {removed_ml:.0f} ml denser than {body.threshold_hu:.0f} HU removed"]
    if _fills_a_row(body.mask, grid):
        notes.append("the body fills the whole width of the image in some rows; look whether a couch hangs on it")
    return remove_outside(image_hu, keep), keep, notes


def labels_outside(labels: NDArray[np.integer], keep: Mask) -> dict[int, int]:
    """Label number to its voxels outside the mask; only labels that have some.

    Shape:
        labels, keep: (Z, Y, X).
    """
    numbers, counts = np.unique(labels[~keep], return_counts=True)
    return {int(n): int(c) for n, c in zip(numbers, counts, strict=True) if n}


def cut_as_text(cut: Mapping[int, int], organs: Mapping[str, int]) -> str:
    """``Eye_L (12 voxels), Lens_L (3 voxels)`` for a message."""
    return ", ".join(f"{organ} ({cut[number]} voxels)" for organ, number in organs.items() if number in cut)


def _grown_within(core: Mask, dense: Mask, spacing_mm: tuple[float, float, float], reach_mm: float) -> Mask:
    """The core and all dense voxels that a path through dense voxels joins to it, up to a length.

    One step is the finest voxel size; an axis takes part once its own voxel size has been walked. Steps to 4 and to 8
    neighbours take turns, so the reach is an octagon, not a diamond.
    """
    step = min(spacing_mm)
    grown = core
    for k in range(1, round(reach_mm / step) + 1):
        moves = tuple(int(k * step / s + 1e-6) > int((k - 1) * step / s + 1e-6) for s in spacing_mm)
        structure = ndimage.generate_binary_structure(3, 1 + k % 2)
        for axis in (axis for axis in range(3) if not moves[axis]):
            edges = [slice(None)] * 3
            edges[axis] = slice(None, None, 2)
            structure[tuple(edges)] = False
        grown = ndimage.binary_dilation(grown, structure) & dense
    return np.asarray(grown)


def _fills_a_row(mask: Mask, grid: Grid) -> bool:
    """Whether some row of an axial slice is body from the left side of the image to its right side."""
    lateral, _ = body_axis(grid.direction, LEFT_RIGHT)
    return bool(mask.mean(axis=lateral).max() > COUCH_WIDTH)
