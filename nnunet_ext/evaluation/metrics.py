"""DSC, HD95, ASSD and RVE of every organ of one case, with the empty cases decided first.

The definitions are data (``DEFINITIONS``) and are printed with every table, because other tools give other numbers
under the same names.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from nnunet_ext.evaluation.surfaces import foreground_extent, surface_distances, surface_points

Status = Literal["scored", "missed", "spurious", "both_empty", "not_contoured"]
Organs = Mapping[str, int | Sequence[int]]
"""Organ name to its label, or to the labels that together make up its region."""
Contains = Mapping[str, Sequence[str]]
"""Organ name to the organs that lie inside it and are drawn over it, such as the lens over the eye."""

_Surfaces = tuple[NDArray[np.float64], NDArray[np.float64]]
MAX_LABEL = 65535
METRICS = ("dsc", "hd95_mm", "assd_mm", "rve")
DEFINITIONS = (
    "DSC = 2|A∩B| / (|A|+|B|); 0 where one of the two is empty, not a number where both are.",
    "Surface: voxels that erosion with the 6 face neighbours removes; beyond the image is background; "
    "distances between voxel centres in mm.",
    "HD95: 95th percentile (linear) of the directed surface distances, maximum of the two directions.",
    "ASSD: mean of the distances of all surface voxels of both surfaces.",
    "RVE = (V_prediction - V_reference) / V_reference, signed; not a number where the reference is empty.",
    "missed (reference only) and spurious (prediction only) count as DSC 0; they have no distance and are "
    "counted, never averaged as 0 mm; not contoured and both empty are left out of every mean.",
)


@dataclass(frozen=True)
class OrganScore:
    """One organ of one case.

    Args:
        label: Label number; of a region, its first.
        organ: Organ name.
        status: ``scored``, ``missed`` (reference only), ``spurious`` (prediction only), ``both_empty``, or
            ``not_contoured`` (nobody drew the organ in this case, so nothing can be said).
        dsc: Dice similarity coefficient, 0 to 1.
        hd95_mm: 95 % Hausdorff distance.
        assd_mm: Average symmetric surface distance.
        rve: Relative volume error, signed.
    """

    label: int
    organ: str
    status: Status
    dsc: float = float("nan")
    hd95_mm: float = float("nan")
    assd_mm: float = float("nan")
    rve: float = float("nan")


def score_case(
    prediction: NDArray[np.integer],
    reference: NDArray[np.integer],
    organs: Organs,
    spacing_mm: Sequence[float],
    contoured: Collection[int] | None = None,
    distances: bool = True,
    ignore: int | None = None,
    inside: Mapping[str, Sequence[int]] | None = None,
) -> list[OrganScore]:
    """Scores of all organs of one case, in the order of ``organs``.

    All overlaps come from one joint histogram, all surfaces from one pass, all distances from k-d trees:
    22 organs in a fraction of a second, whatever lies far away.

    Args:
        prediction: The label map to judge.
        reference: The label map to believe.
        organs: Organ name to label, or to a list of labels for a region.
        spacing_mm: Voxel size (Z, Y, X) in mm.
        contoured: Labels that somebody drew in this case; None means all. A region needs all of its labels.
        distances: False leaves HD95 and ASSD out (NaN).
        ignore: Reference label whose voxels do not count.
        inside: Organ name to labels drawn over it (``inner_labels``), whose voxels are the organ's as well, in both
            maps. Whether somebody drew them does not matter: where nobody drew the lens, the eye has no hole.

    Shape:
        prediction, reference: (Z, Y, X), whole numbers from 0 to 65535.

    Raises:
        ValueError: the shapes differ or labels are negative.
    """
    if prediction.shape != reference.shape:
        raise ValueError(f"prediction {prediction.shape} and reference {reference.shape} differ in shape.")
    for labels in (prediction, reference):
        _check_range(labels)
    if ignore is not None:
        prediction = np.where(reference == ignore, 0, prediction)
    groups = [(label,) if isinstance(label, int) else tuple(label) for label in organs.values()]
    whole = groups
    if inside:
        whole = [tuple(dict.fromkeys((*g, *inside.get(o, ())))) for o, g in zip(organs, groups, strict=True)]
    codes = {label: code for code, label in enumerate(sorted(set().union(*whole)), start=1)}
    coded = [[codes[label] for label in group] for group in whole]
    extent = foreground_extent(prediction, reference)
    a, b = _encode(prediction[extent], codes), _encode(reference[extent], codes)
    histogram = _joint_histogram(a, b, len(codes) + 1)
    surfaces: list[_Surfaces | None] = [None] * len(groups)
    if distances:
        surfaces = list(zip(surface_points(a, coded, spacing_mm), surface_points(b, coded, spacing_mm), strict=True))
    return [
        _score(OrganScore(group[0], organ, "not_contoured"), _volumes(histogram, code), pair)
        if contoured is None or set(group) <= set(contoured)
        else OrganScore(group[0], organ, "not_contoured")
        for organ, group, code, pair in zip(organs, groups, coded, surfaces, strict=True)
    ]


def inner_labels(contains: Contains, organs: Organs) -> dict[str, tuple[int, ...]]:
    """For ``score_case``: organ name to the labels of the organs inside it, as far as they have one.

    Args:
        contains: Organ to the organs inside it.
        organs: Organ name to label or labels.
    """
    groups = {organ: (label,) if isinstance(label, int) else tuple(label) for organ, label in organs.items()}
    return {
        organ: tuple(label for name in inner for label in groups.get(name, ())) for organ, inner in contains.items()
    }


def _score(blank: OrganScore, volumes: tuple[int, int, int], surfaces: _Surfaces | None) -> OrganScore:
    common, predicted, drawn = volumes
    if not predicted and not drawn:
        return replace(blank, status="both_empty")
    if not predicted or not drawn:
        return replace(blank, status="missed" if drawn else "spurious", dsc=0.0, rve=-1.0 if drawn else float("nan"))
    hd95_mm, assd_mm = (float("nan"),) * 2 if surfaces is None else _hd95_and_assd_mm(*surfaces)
    return replace(
        blank,
        status="scored",
        dsc=2 * common / (predicted + drawn),
        hd95_mm=hd95_mm,
        assd_mm=assd_mm,
        rve=(predicted - drawn) / drawn,
    )


def _hd95_and_assd_mm(a_mm: NDArray[np.float64], b_mm: NDArray[np.float64]) -> tuple[float, float]:
    there, back = surface_distances(a_mm, b_mm)
    hd95 = max(float(np.percentile(there, 95)), float(np.percentile(back, 95)))
    return hd95, float(there.sum() + back.sum()) / (len(there) + len(back))


def _check_range(labels: NDArray[np.integer]) -> None:
    if labels.dtype in (np.uint8, np.uint16) or not labels.size:
        return
    if labels.min() < 0 or labels.max() > MAX_LABEL:
        raise ValueError(f"labels from {labels.min()} to {labels.max()}, expected 0 to {MAX_LABEL}.")


def _encode(labels: NDArray[np.integer], codes: Mapping[int, int]) -> NDArray[np.integer]:
    """Labels as small consecutive codes, 0 for everything that is not asked for."""
    table = np.zeros(MAX_LABEL + 1, dtype=np.uint8 if len(codes) < 256 else np.uint16)
    table[list(codes)] = list(codes.values())
    return np.asarray(table[labels])


def _joint_histogram(a: NDArray[np.integer], b: NDArray[np.integer], size: int) -> NDArray[np.int64]:
    """Voxels with code i in A and j in B; slice by slice, because index arrays take 8 bytes a voxel."""
    counts = np.zeros(size * size, dtype=np.int64)
    for slice_a, slice_b in zip(a, b, strict=True):
        counts += np.bincount((slice_a.astype(np.intp) * size + slice_b).ravel(), minlength=size * size)
    return counts.reshape(size, size)


def _volumes(histogram: NDArray[np.int64], codes: Sequence[int]) -> tuple[int, int, int]:
    """Voxels in both, in A and in B of the organ that these codes make up."""
    return (
        int(histogram[np.ix_(codes, codes)].sum()),
        int(histogram[codes, :].sum()),
        int(histogram[:, codes].sum()),
    )
