"""An ordinary nnU-Net dataset of regions, derived from another dataset, honestly out-of-fold."""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_ext.errors import InputError
from nnunet_ext.geometry import Grid, grid_difference
from nnunet_ext.io.atomic import read_json, write_json
from nnunet_ext.io.nifti import read_image, read_labels, write_image, write_labels
from nnunet_ext.roi.boxes import crop, kept_fraction, paste
from nnunet_ext.roi.centre import Centre, Located, centre_of, locate, relative_position
from nnunet_ext.roi.provenance import FILE_ENDING, HeldOut, held_out_predictions, label_numbers
from nnunet_ext.roi.region import CENTRE, TRUTH, Region, box_entry, box_from_entry

SIDECAR = "regions.json"


@dataclass(frozen=True)
class Locator:
    """A trained model that may find the centre of a region.

    Args:
        name: How recipes and reports call it.
        folder: Trained model.
        splits: Its folds.
        validation: Folder inside a fold's with held-out predictions on whole images.
    """

    name: str
    folder: Path
    splits: Sequence[Mapping[str, Sequence[str]]]
    validation: str = "validation"

    def labels(self) -> dict[str, int]:
        """Organ name to label number of its predictions."""
        return label_numbers(read_json(self.folder / "dataset.json"))


@dataclass
class Derived:
    """What a derivation did, case by case, for the sidecar and the report."""

    cases: dict[str, dict[str, Any]] = field(default_factory=dict)


def derive_dataset(
    source: Path,
    target: Path,
    region: Region,
    splits: Sequence[Mapping[str, Sequence[str]]],
    locators: Sequence[Locator] = (),
    progress: Callable[[Sequence[str]], Iterator[str]] = iter,
    channels: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Cut the region out of every training case of a dataset.

    Every case gives one unshifted region, which validates, and ``region.copies`` jittered ones, which only train.
    Folds are inherited case by case. Centres that come from a model come from the fold that held the case out; this is
    checked.

    Args:
        source: Raw folder of the source dataset.
        target: Raw folder to write; must not exist or be unfinished.
        region: What to cut.
        splits: Folds of the source dataset.
        locators: Trained models for ``region.source`` and ``region.fallback``, in that order.
        progress: Wraps the list of cases, to show progress.
        channels: Names of the channels to keep, in their new order; None is all.

    Returns:
        The content of ``regions.json``: boxes, rungs and kept fractions per case, retention per organ.

    Raises:
        InputError: unknown organ, a case that a locator trained on, or unequal grids.
    """
    if (target / "dataset.json").exists():
        raise InputError(f"{target} exists; choose another number or delete it.")
    if region.source not in (CENTRE, TRUTH) and len(locators) != 1 + len(region.fallback):
        raise ValueError(f"the region names {(region.source, *region.fallback)}, got {len(locators)} locators.")
    source_json = read_json(source / "dataset.json")
    labels = label_numbers(source_json)
    _require_organs(region.organs, labels, source)
    kept = _kept_channels(source_json, channels, source)
    cases = sorted(p.name.removesuffix(FILE_ENDING) for p in (source / "labelsTr").glob(f"*{FILE_ENDING}"))
    held_out = {loc.name: held_out_predictions(loc.folder, loc.splits, cases, loc.validation) for loc in locators}
    wanted = [labels[organ] for organ in region.organs]
    position = (0.5, 0.5, 0.5) if region.source == CENTRE else _mean_position(source, cases, wanted)
    for leftover in (target / "imagesTr", target / "labelsTr"):  # of an interrupted derivation
        shutil.rmtree(leftover, ignore_errors=True)
    derived = Derived()
    for case in progress(cases):
        _derive_case(source, target, case, kept, region, labels, _Finder(locators, held_out, position, wanted), derived)
    sidecar = {
        "source_dataset": source.name,
        "region": region.model_dump(by_alias=True),
        "label_map": {organ: i for i, organ in enumerate(region.organs, 1)},
        "position_in_body": list(position),
        "cases": derived.cases,
        "retention": _retention(derived.cases, region.organs),
    }
    write_json(target / SIDECAR, sidecar)
    write_json(target / "splits_final.json", inherited_splits(splits, derived.cases))
    write_json(target / "dataset.json", _dataset_json(source_json, sidecar, kept, len(derived.cases)))
    return sidecar


@dataclass(frozen=True)
class _Finder:
    """Finds the centre of one case: truth, the middle, or the chain of held-out predictions."""

    locators: Sequence[Locator]
    held_out: Mapping[str, Mapping[str, HeldOut]]
    position: Centre
    wanted: Sequence[int]

    def find(
        self, case: str, image: NDArray[np.float32], truth: NDArray[np.uint16], grid: Grid, region: Region
    ) -> tuple[Located, dict[str, Any]]:
        """The centre of a case, and which model of which fold found it."""
        if region.source == CENTRE:
            return Located(Region.middle(grid), CENTRE), {}
        if region.source == TRUTH:
            centre = centre_of(truth, self.wanted, grid.spacing_mm)
            return locate(image, {TRUTH: centre}, self.position), {}
        found: dict[str, Centre | None] = {}
        notes: dict[str, Any] = {}
        for i, locator in enumerate(self.locators):
            prediction = self.held_out[locator.name][case]
            predicted, other = read_labels(prediction.path)
            difference = grid_difference(grid, other)
            if difference:
                raise InputError(f"{prediction.path} lies on another grid than its image: {difference}.")
            own = locator.labels()
            numbers = [own[organ] for organ in region.organs if organ in own]
            rung = "located" if i == 0 else f"fallback:{locator.name}"
            found[rung] = centre_of(predicted, numbers, grid.spacing_mm)
            notes[rung] = {"model": locator.name, "fold": prediction.fold,
                           "checkpoint_sha256": prediction.checkpoint_sha256}  # fmt: skip
        located = locate(image, found, self.position)
        return located, notes.get(located.rung, {})


def _derive_case(
    source: Path,
    target: Path,
    case: str,
    channels: Mapping[int, str],
    region: Region,
    labels: Mapping[str, int],
    finder: _Finder,
    derived: Derived,
) -> None:
    truth, grid = read_labels(source / "labelsTr" / f"{case}{FILE_ENDING}")
    first = _first_channel(source, case)
    rest = {i: read_image(source / "imagesTr" / f"{case}_{i:04d}{FILE_ENDING}")[0] for i in channels if i}
    located, locator = finder.find(case, first, truth, grid, region)
    for name, shift in _shifts(case, region):
        centre = tuple(c + s for c, s in zip(located.centre, shift, strict=True))
        box = region.box(grid, (centre[0], centre[1], centre[2]))
        for new, (old, channel) in enumerate(channels.items()):
            part = crop(rest.get(old, first), box, region.padding(channel))
            write_image(target / "imagesTr" / f"{name}_{new:04d}{FILE_ENDING}", part, grid.cropped(box))
        inside = renumbered(crop(truth, box), {labels[o]: i for i, o in enumerate(region.organs, 1)})
        write_labels(target / "labelsTr" / f"{name}{FILE_ENDING}", inside, grid.cropped(box))
        derived.cases[name] = {
            "case": case,
            **box_entry(box),
            "source_shape": list(grid.shape),
            "rung": located.rung,
            "locator": locator,
            "kept": {organ: kept_fraction(truth, box, [labels[organ]]) for organ in region.organs},
        }


def _first_channel(source: Path, case: str) -> NDArray[np.float32]:
    path = source / "imagesTr" / f"{case}_0000{FILE_ENDING}"
    if not path.exists():
        raise InputError(f"{path.parent} has no image of case {case}; its labels alone are no training case.")
    return read_image(path)[0]


def _shifts(case: str, region: Region) -> list[tuple[str, tuple[float, ...]]]:
    """The unshifted region and its jittered copies, the same at every run and for every order of cases."""
    generator = np.random.default_rng([region.seed, zlib.crc32(case.encode())])
    shifts: list[tuple[str, tuple[float, ...]]] = [(case, (0.0, 0.0, 0.0))]
    for i in range(1, region.copies + 1 if region.source != CENTRE else 1):
        shifts.append((f"{case}_jitter{i}", tuple(generator.normal(0.0, region.jitter_vox).tolist())))
    return shifts


def renumbered(labels: NDArray[np.integer], numbers: Mapping[int, int]) -> NDArray[np.uint8]:
    """Label map with old numbers replaced by new ones; numbers that are not listed become background."""
    table = np.zeros(int(max([int(labels.max(initial=0)), *numbers])) + 1, dtype=np.uint8)
    for old, new in numbers.items():
        table[old] = new
    renumbered_labels: NDArray[np.uint8] = table[labels]
    return renumbered_labels


def paste_predictions(sidecar: Mapping[str, Any], validation: Path, grids: Path, target: Path) -> None:
    """Put the validation predictions of a region model back into whole images, on the grid of the source's labels.

    Args:
        sidecar: Content of ``regions.json``.
        validation: Folder with the predictions of one fold.
        grids: Folder with ``<case>.nii.gz`` of the source dataset, for their grids.
        target: Folder to write.
    """
    for path in sorted(validation.glob(f"*{FILE_ENDING}")):
        entry = sidecar["cases"][path.name.removesuffix(FILE_ENDING)]
        _, grid = read_labels(grids / f"{entry['case']}{FILE_ENDING}")
        part, _ = read_labels(path)
        whole = paste(np.zeros(grid.shape, dtype=np.uint8), part.astype(np.uint8), box_from_entry(entry))
        write_labels(target / path.name, whole, grid)


def inherited_splits(
    splits: Sequence[Mapping[str, Sequence[str]]], cases: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, list[str]]]:
    """Folds of the derived dataset: a case's regions follow it, jittered copies only train."""
    result = []
    for split in splits:
        train, val = set(split["train"]), set(split["val"])
        result.append(
            {
                "train": [name for name, entry in cases.items() if entry["case"] in train],
                "val": [name for name, entry in cases.items() if entry["case"] in val and name == entry["case"]],
            }
        )
    return result


def _mean_position(source: Path, cases: Sequence[str], wanted: Sequence[int]) -> Centre:
    """Mean relative position of the organs in the body over the cases that have them."""
    positions = []
    for case in cases:
        truth, grid = read_labels(source / "labelsTr" / f"{case}{FILE_ENDING}")
        centre = centre_of(truth, wanted, grid.spacing_mm)
        if centre is not None:
            positions.append(relative_position(centre, _first_channel(source, case)))
    if not positions:
        raise InputError(f"no case of {source} contains the organs of the region; choose other organs.")
    z, y, x = np.mean(positions, axis=0)
    return float(z), float(y), float(x)


def _retention(cases: Mapping[str, Mapping[str, Any]], organs: Sequence[str]) -> dict[str, Any]:
    """Per organ the share of truth voxels inside the unshifted boxes: mean, minimum, cases below 99 %."""
    result = {}
    for organ in organs:
        kept = {n: e["kept"][organ] for n, e in cases.items() if n == e["case"] and not np.isnan(e["kept"][organ])}
        values = list(kept.values()) or [float("nan")]
        result[organ] = {"mean": float(np.mean(values)), "min": float(np.min(values)),
                         "below_99_percent": sorted(n for n, v in kept.items() if v < 0.99)}  # fmt: skip
    return result


def _kept_channels(dataset_json: Mapping[str, Any], wanted: Sequence[str] | None, source: Path) -> dict[int, str]:
    """Number in the source to name of the channels to keep, in their new order."""
    names = {name: int(number) for number, name in dataset_json["channel_names"].items()}
    unknown = [name for name in wanted or () if name not in names]
    if unknown:
        raise InputError(f"{source.name} has no channel {', '.join(unknown)}; it has {', '.join(names)}.")
    return {names[name]: name for name in (wanted or sorted(names, key=lambda name: names[name]))}


def _dataset_json(
    source: Mapping[str, Any], sidecar: Mapping[str, Any], channels: Mapping[int, str], count: int
) -> dict[str, Any]:
    kept = {key: source[key] for key in ("file_ending", "overwrite_image_reader_writer") if key in source}
    summary = {key: sidecar[key] for key in ("source_dataset", "region", "label_map", "position_in_body")}
    return {
        **kept,
        "channel_names": {str(i): name for i, name in enumerate(channels.values())},
        "labels": {"background": 0, **sidecar["label_map"]},
        "numTraining": count,
        "nnunet_ext": {**summary, "swap_pairs": []},
    }


def _require_organs(organs: Sequence[str], labels: Mapping[str, int], source: Path) -> None:
    unknown = [organ for organ in organs if organ not in labels]
    if unknown:
        raise InputError(f"{source.name} has no organ {', '.join(unknown)}; it has {', '.join(labels)}.")
