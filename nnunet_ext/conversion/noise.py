"""A dataset whose training contours are wrong on purpose, derived from another: for studies of robustness."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_ext.conversion.workplace import Workplace
from nnunet_ext.errors import InputError, some_of
from nnunet_ext.evaluation.dataset import BLOCK, NOISE_FILE, default_present, read_description, read_organs
from nnunet_ext.io.atomic import atomic_path, read_json, write_json
from nnunet_ext.io.nifti import read_labels, write_labels
from nnunet_ext.io.numbered import check_elsewhere, check_name, taken_by
from nnunet_ext.io.orientation import from_lps, to_lps
from nnunet_ext.locations import FILE_ENDING
from nnunet_ext.preprocessing.label_noise import Direction, Displacement, Unit, corrupt_labels
from nnunet_ext.roi.raw_data import image_digests

IMAGES = ("imagesTr", "imagesTs")
"""Folders that are linked, file by file."""


@dataclass(frozen=True)
class Noise:
    """How many cases are corrupted, and how far.

    Args:
        ratio: Share of the cases, 0 to 1; exactly ``round(ratio · N)`` of N cases.
        low: Smallest displacement in ``unit``.
        high: Largest.
        unit: "voxels" draws whole numbers, "mm" real ones.
        seed: Another seed draws other cases, directions and amounts. With the same seed the cases of a smaller ratio
            are among those of a larger one.
        in_plane: Move contours within axial slices only.
    """

    ratio: float
    low: float
    high: float
    unit: Unit = "voxels"
    seed: int = 1
    in_plane: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn.

        Raises:
            InputError: a share outside 0 to 1, an empty, negative or endless range, part of a voxel, or a
                negative seed.
        """
        if not 0 <= self.ratio <= 1:
            raise InputError(f"the ratio of noisy cases is {self.ratio:g}, expected 0 to 1.")
        if not 0 < self.low <= self.high < math.inf:
            raise InputError(
                f"the range of the noise is {self.low:g} to {self.high:g} {self.unit}, expected two finite "
                "numbers above 0, the smaller first."
            )
        if self.unit == "voxels" and (self.low % 1 or self.high % 1):
            raise InputError(f"the range is {self.low:g} to {self.high:g} voxels; give whole voxels, or millimetres.")
        if self.seed < 0:
            raise InputError(f"the seed of the noise is {self.seed}, expected a whole number from 0.")

    def draw(self, cases: Collection[str]) -> dict[str, Displacement | None]:
        """What happens to every case: one direction and one amount, or None for a case that stays clean.

        Depends on names and seed alone, not on the order of cases or on any file.
        """
        ranked = sorted(cases, key=lambda case: hashlib.sha256(f"{self.seed}:noise:{case}".encode()).digest())
        noisy = set(ranked[: round(self.ratio * len(ranked))])
        return {case: self._displacement(case) if case in noisy else None for case in cases}

    def _displacement(self, case: str) -> Displacement:
        generator = np.random.default_rng([self.seed, zlib.crc32(case.encode())])
        direction: Direction = "erode" if generator.random() < 0.5 else "dilate"
        if self.unit == "voxels":
            amount = float(generator.integers(int(self.low), int(self.high), endpoint=True))
        else:
            amount = round(float(generator.uniform(self.low, self.high)), 4)
        return Displacement(direction, amount, self.unit, self.in_plane)


def read_clean_dataset(dataset: Path) -> dict[str, Any]:
    """Content of the dataset.json of a dataset whose contours can be taken as true.

    Args:
        dataset: Raw folder.

    Raises:
        InputError: it has no usable dataset.json, other files than NIfTI, or noise already.
    """
    path = dataset / "dataset.json"
    if not path.is_file():
        raise InputError(f"{path} does not exist; give a dataset that nnunet-ext convert has written to its end.")
    content = read_description(path)
    if content.get("file_ending") != FILE_ENDING:
        raise InputError(
            f"{path} has files {content.get('file_ending')!r}, expected {FILE_ENDING}; convert them first."
        )
    if not isinstance(content.get(BLOCK, {}), dict):
        given = json.dumps(content[BLOCK])
        raise InputError(f'{path} has "{BLOCK}": {given}, expected an object {{...}}; correct it or take it out.')
    if (dataset / NOISE_FILE).exists():
        raise InputError(
            f"{dataset.name} has noise already, so its contours are not the true ones; take {_source_of(dataset)}."
        )
    return content


def orphaned_copies(raw: Path, replaced: Collection[Path]) -> str:
    """What to say once datasets were replaced: noisy copies link to images that are other ones now, or gone.

    Args:
        raw: The folder nnUNet_raw.
        replaced: Raw folders, as they were before or as they are now.

    Returns:
        One sentence; empty where no dataset was derived from any of them.
    """
    names = {path.name for path in replaced}
    noisy = sorted(path.parent for path in raw.glob(f"Dataset*/{NOISE_FILE}"))
    sources = {path.name: source for path in noisy if (source := _source_of(path)) in names}
    if not sources:
        return ""
    return (
        f"{some_of(list(sources))} link{'s' * (len(sources) == 1)} to the images of "
        f"{', '.join(sorted(set(sources.values())))}, which was replaced; write the noise anew, too "
        "(nnunet-ext noise --overwrite)"
    )


def _source_of(noisy: Path) -> str:
    """Name of the dataset that a noisy one was derived from, as far as its noise.json still says so."""
    with contextlib.suppress(InputError):
        content = read_json(noisy / NOISE_FILE)
        if isinstance(content, dict) and isinstance(content.get("source"), str):
            return str(content["source"])
    return "the dataset that it was derived from"


def add_noise(
    source: Path,
    raw: Path,
    number: int,
    name: str,
    noise: Noise,
    *,
    cases: Collection[str] | None = None,
    splits: Sequence[Mapping[str, Sequence[str]]] | None = None,
    overwrite: bool = False,
    elsewhere: Sequence[Path] = (),
    progress: Callable[[Sequence[str]], Iterator[str]] = iter,
) -> tuple[Path, dict[str, Any]]:
    """Write ``Dataset<number>_<name>``: the source with corrupted training contours.

    Images are links to the source's files; every label map is a file of its own, so that nobody who saves one changes
    the truth. The true labels stay in the source, whose name is in noise.json and dataset.json: judge predictions
    against those.

    Args:
        source: Raw folder of the clean dataset.
        raw: The folder nnUNet_raw.
        number: Dataset number, 1 to 999.
        name: Letters, digits, ``_`` and ``-``.
        noise: How many cases, and how far.
        cases: Training cases that may be corrupted; None is all.
        splits: Folds to carry over; None where the source has none.
        overwrite: Replace a dataset of the same number.
        elsewhere: nnU-Net's other folders; it fails where a number has two names.
        progress: Wraps the list of cases, to show progress.

    Returns:
        The folder, and the content of its noise.json.

    Raises:
        InputError: the source is no dataset of NIfTI files or noisy itself, or the number is taken.
        BusyError: another process writes the same dataset, or the disk is full.
    """
    check_name(number, name)
    content = read_clean_dataset(source)
    workplace = Workplace(raw, f"Dataset{number:03d}_{name}")
    taken = taken_by(raw, number)
    if source in taken:
        raise InputError(f"{source} cannot be replaced by its own noisy copy; choose another number.")
    if taken and not overwrite:
        raise InputError(f"{taken[0]} has the number {number}; choose another one or add --overwrite to replace it.")
    check_elsewhere(elsewhere, number, workplace.final.name)
    training = _training_cases(source)
    eligible = training if cases is None else [case for case in training if case in set(cases)]
    drawn = noise.draw(eligible)
    structures = structures_of(source)
    with workplace.locked(), workplace.emptied():
        workplace.prepare({"noise": source.name}, overwrite=True)
        for folder in IMAGES:
            for path in sorted((source / folder).glob(f"*{FILE_ENDING}")):
                link(path, workplace.folder / folder / path.name)
        for path in sorted((source / "labelsTs").glob(f"*{FILE_ENDING}")):
            _copy(path, workplace.folder / "labelsTs" / path.name)
        entries = {}
        for case in progress(training):
            entries[case] = _write_case(source, workplace.folder, case, drawn.get(case), structures)
        sidecar = {**_sidecar(source, noise, entries, len(eligible)), "images": image_digests(workplace.folder)}
        _write_sidecars(source, workplace.folder, content, sidecar, splits)
        workplace.publish(taken)
    return workplace.final, sidecar


def link(path: Path, target: Path) -> None:
    """A symbolic link to a file, or a copy where the file system has none.

    Relative, so that the folder that holds both may be moved.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.symlink_to(os.path.relpath(path.resolve(), target.parent.resolve()))
    except FileExistsError:  # a copy would follow the link that is there and overwrite another file
        raise
    except OSError:
        shutil.copy2(path, target)


def _copy(path: Path, target: Path) -> None:
    with atomic_path(target) as temporary:
        shutil.copyfile(path, temporary)


def structures_of(dataset: Path) -> dict[str, tuple[int, ...]]:
    """Structure to all labels that belong to it: regions, and an organ together with the organs inside it."""
    return read_organs(dataset / "dataset.json").whole


def lines_of(sidecar: Mapping[str, Any]) -> list[str]:
    """The report for the terminal."""
    noisy = {case: entry for case, entry in sidecar["cases"].items() if entry is not None}
    counts = Counter(entry["direction"] for entry in noisy.values())
    low, high = sidecar["range"]
    lines = [
        f"{len(noisy)} of {sidecar['eligible']} training cases corrupted by {low:g} to {high:g} {sidecar['unit']}: "
        f"{counts['erode']} eroded, {counts['dilate']} dilated."
    ]
    for structure, erased in sidecar["erased"].items():
        lines.append(f"erased: {structure} in {len(erased)} case{'s' * (len(erased) > 1)} ({some_of(erased)})")
    lost = sum(entry["lost_voxels"] for entry in noisy.values())
    if lost:
        lines.append(f"{lost} voxels where structures meet in a way that no label says: the old or the nearest stays.")
    return lines


def _training_cases(source: Path) -> list[str]:
    cases = sorted(p.name.removesuffix(FILE_ENDING) for p in (source / "labelsTr").glob(f"*{FILE_ENDING}"))
    if not cases:
        raise InputError(f"{source / 'labelsTr'} holds no {FILE_ENDING} file, so there is nothing to corrupt.")
    return cases


def _write_case(
    source: Path, target: Path, case: str, move: Displacement | None, structures: Mapping[str, Sequence[int]]
) -> dict[str, Any] | None:
    """Write the labels of a case, and say what was done to them; None for a clean case."""
    clean, written = (folder / "labelsTr" / f"{case}{FILE_ENDING}" for folder in (source, target))
    if move is None:
        _copy(clean, written)
        return None
    labels, grid = read_labels(clean)
    upright, lps = to_lps(labels, grid)
    done = corrupt_labels(upright, structures, move, lps.spacing_mm)
    write_labels(written, from_lps(done.labels, grid), grid)
    return {
        "direction": move.direction,
        "amount": int(move.amount) if move.unit == "voxels" else move.amount,
        "voxels": {name: {"before": a, "after": b} for name, (a, b) in done.voxels.items()},
        "lost_voxels": done.lost,
    }


def _sidecar(source: Path, noise: Noise, entries: Mapping[str, dict[str, Any] | None], eligible: int) -> dict[str, Any]:
    erased: dict[str, list[str]] = {}
    for case, entry in entries.items():
        for structure, count in (entry or {"voxels": {}})["voxels"].items():
            if count["before"] and not count["after"]:
                erased.setdefault(structure, []).append(case)
    return {
        "source": source.name,
        "seed": noise.seed,
        "ratio": noise.ratio,
        "unit": noise.unit,
        "range": [noise.low, noise.high],
        "in_plane": noise.in_plane,
        "eligible": eligible,
        "erased": erased,
        "cases": dict(entries),
    }


def _write_sidecars(
    source: Path,
    target: Path,
    content: dict[str, Any],
    sidecar: Mapping[str, Any],
    splits: Sequence[Mapping[str, Sequence[str]]] | None,
) -> None:
    """Everything beside the volumes; dataset.json last, so that a folder with it is whole."""
    present = default_present(source / "dataset.json")
    if present is not None:
        shutil.copyfile(present, target / present.name)  # a list that people edit
    if splits is not None:
        write_json(target / "splits_final.json", splits)
    write_json(target / NOISE_FILE, sidecar)
    summary = {key: sidecar[key] for key in ("source", "seed", "ratio", "unit", "range", "in_plane")}
    block = {**content.get(BLOCK, {}), "noise": summary}
    write_json(target / "dataset.json", {**content, BLOCK: block})
