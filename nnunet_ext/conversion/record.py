"""What is remembered of every converted case: for resuming, for the duplicate check and for the report."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from nnunet_ext.conversion.loaded_case import LoadedCase
from nnunet_ext.conversion.overlap import has_bit
from nnunet_ext.conversion.source import Case, Source


@dataclass(frozen=True)
class CaseRecord:
    """A converted case in numbers; holds no path and no name but the case's own.

    Args:
        identifier: Name of the case in the dataset.
        patient: Cases of one patient share a fold.
        test: Written to imagesTs: it has no labels, or was set aside (its labels are in labelsTs then).
        shape: Voxels along (Z, Y, X) as written.
        spacing_mm: Voxel size along (Z, Y, X).
        orientation: Axis codes of the source files.
        contoured: Numbers of the contoured organs.
        volumes_ml: Organ name to volume; only organs with voxels.
        kept: Organ name to the fraction that survived a crop.
        notes: Repairs and drops.
        doubts: What a person should look at, such as swapped sides.
        voxel_hash: Hash of the first channel, the same for the same scan stored in another orientation.
        stamp: Hash of the source files' sizes and times; a changed file is converted again.
        crop: Box that was kept, as ``start``, ``stop`` and the shape it was cut ``of``, in voxels (Z, Y, X) of the
            volume in LPS; empty where nothing was cropped.
        empty: Numbers of the organs whose contour was looked up and has no voxel.
    """

    identifier: str
    patient: str
    test: bool
    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    orientation: str
    contoured: tuple[int, ...]
    volumes_ml: dict[str, float]
    kept: dict[str, float]
    notes: tuple[str, ...]
    doubts: tuple[str, ...]
    voxel_hash: str
    stamp: str
    crop: dict[str, list[int]] = field(default_factory=dict)
    empty: tuple[int, ...] = ()

    @property
    def has_labels(self) -> bool:
        """Whether somebody contoured it; a test case need not have labels."""
        return not self.test or bool(self.contoured or self.empty)

    def as_json(self) -> dict[str, Any]:
        """Plain content for a JSON file."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> CaseRecord:
        """The record that ``as_json`` wrote."""
        lists = ("shape", "spacing_mm", "contoured", "notes", "doubts", "empty")
        return cls(**{**content, **{key: tuple(content[key]) for key in lists}})


def record_of(case: Case, loaded: LoadedCase, source: Source) -> CaseRecord:
    """Measure a loaded case."""
    volumes, centroids = _measure(loaded, source)
    return CaseRecord(
        identifier=case.identifier,
        patient=case.patient or case.identifier,
        test=loaded.labels is None or case.identifier in source.held_out,
        shape=loaded.grid.shape,
        spacing_mm=tuple(round(s, 6) for s in loaded.grid.spacing_mm),
        orientation=loaded.orientation,
        contoured=loaded.contoured,
        volumes_ml=volumes,
        kept=loaded.kept,
        notes=loaded.notes,
        doubts=tuple(_side_doubts(centroids)),
        voxel_hash=_voxel_hash(loaded),
        stamp=stamp_of(case, source),
        crop=loaded.crop,
        empty=loaded.empty,
    )


def stamp_of(case: Case, source: Source) -> str:
    """Hash of names, sizes and modification times of the case's source files, and of its part (training or test)."""
    parts = [case.identifier, case.fault, *(("test",) if case.identifier in source.held_out else ())]
    for path in case.files:
        status = path.stat()
        parts.append(f"{path.name}:{status.st_size}:{status.st_mtime_ns}")
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:32]


def _voxel_hash(loaded: LoadedCase) -> str:
    voxels = np.ascontiguousarray(loaded.images[0])
    digest = hashlib.sha256(repr(voxels.shape).encode())
    digest.update(voxels.data)
    return digest.hexdigest()[:32]


def _measure(loaded: LoadedCase, source: Source) -> tuple[dict[str, float], dict[str, float]]:
    """Volume in ml and patient-left coordinate of the centroid in mm, per organ that has voxels."""
    volumes: dict[str, float] = {}
    left_mm: dict[str, float] = {}
    if loaded.labels is None:
        return volumes, left_mm
    where = np.argwhere(loaded.labels)
    numbers = loaded.labels[tuple(where.T)]
    for organ, number in source.organs.items():
        voxels = where[has_bit(numbers, number) if source.painting else numbers == number]
        if len(voxels):
            volumes[organ] = round(len(voxels) * loaded.grid.voxel_ml, 4)
            left_mm[organ] = float(loaded.grid.points_mm([voxels.mean(axis=0)])[0, 0])
    return volumes, left_mm


def _side_doubts(left_mm: dict[str, float]) -> list[str]:
    """Pairs whose left organ lies not further left: a wrong label table or a mirrored export."""
    return [
        f"{name} lies {left_mm[name[:-2] + '_R'] - x:.1f} mm to the patient's right of {name[:-2]}_R"
        for name, x in left_mm.items()
        if name.endswith("_L") and name[:-2] + "_R" in left_mm and x <= left_mm[name[:-2] + "_R"]
    ]
