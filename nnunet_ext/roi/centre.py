"""Where a region lies: the centre of an organ in a label map, and what to do when the organ is not there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

MIN_VOXELS = 5
"""Our choice: fewer voxels are no organ, they are noise."""
NEIGHBOUR_MM = 40.0
"""Other components this close to the largest one belong to the same region (our choice, for paired small organs)."""
BODY_HU = -300.0
"""Between air and fat; our choice, only used for the box of the body."""

Centre = tuple[float, float, float]


@dataclass(frozen=True)
class Located:
    """A centre and how it was found.

    Args:
        centre: Voxel (z, y, x), float.
        rung: ``located``, ``fallback:<model>`` or ``fallback:body``.
    """

    centre: Centre
    rung: str


def centre_of(
    labels: NDArray[np.integer], wanted: Sequence[int], spacing_mm: Sequence[float] = (1.0, 1.0, 1.0)
) -> Centre | None:
    """Centroid of some organs, or None where they are missing.

    The largest connected component counts, with every other one whose centroid lies within 40 mm of its;
    specks far away do not pull the centre.

    Args:
        labels: (Z, Y, X) label map.
        wanted: Label numbers whose union is meant.
        spacing_mm: Voxel size (Z, Y, X).

    Returns:
        Voxel (z, y, x), float; None with fewer than 5 voxels.
    """
    mask = np.isin(labels, wanted)
    if np.count_nonzero(mask) < MIN_VOXELS:
        return None
    components, count = ndimage.label(mask, structure=np.ones((3, 3, 3)))
    numbers = np.arange(1, count + 1)
    sizes = np.bincount(components.ravel(), minlength=count + 1)[1:]
    centroids = np.array(ndimage.center_of_mass(mask, components, numbers)).reshape(-1, 3)
    main = int(np.argmax(sizes))
    if sizes[main] < MIN_VOXELS:
        return None
    distance_mm = np.linalg.norm((centroids - centroids[main]) * np.asarray(spacing_mm), axis=1)
    near = distance_mm <= NEIGHBOUR_MM
    z, y, x = np.average(centroids[near], axis=0, weights=sizes[near])
    return float(z), float(y), float(x)


def body_box(image: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """First and one-past-last voxel (z, y, x) of the patient: the largest connected part above −300 HU."""
    components, count = ndimage.label(image > BODY_HU)
    if count == 0:
        return np.zeros(3), np.asarray(image.shape, dtype=np.float64)
    largest = int(np.argmax(np.bincount(components.ravel())[1:])) + 1
    slices = ndimage.find_objects(components, max_label=largest)[largest - 1]
    return np.array([s.start for s in slices], dtype=np.float64), np.array([s.stop for s in slices], dtype=np.float64)


def relative_position(centre: Centre, image: NDArray[np.floating]) -> Centre:
    """Where a centre lies in the box of the body, 0 to 1 per axis (z, y, x)."""
    low, high = body_box(image)
    z, y, x = (np.asarray(centre) - low) / (high - low)
    return float(z), float(y), float(x)


def locate(
    image: NDArray[np.floating],
    found: Mapping[str, Centre | None],
    position_in_body: Sequence[float],
) -> Located:
    """A centre in any case: the first that was found, else the organ's usual place in the body.

    Args:
        image: (Z, Y, X) in HU.
        found: Rung name to centre or None, in the order to try.
        position_in_body: Mean relative position over the training cases, (z, y, x).
    """
    for rung, centre in found.items():
        if centre is not None:
            return Located(centre, rung)
    low, high = body_box(image)
    z, y, x = low + np.asarray(position_in_body) * (high - low)
    return Located((float(z), float(y), float(x)), "fallback:body")
