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
from nnunet_ext.evaluation.dataset import PRESENT_FILE
from nnunet_ext.geometry import Grid
from nnunet_ext.io.atomic import read_json, write_json
from nnunet_ext.io.nifti import read_image, read_labels, write_image, write_labels
from nnunet_ext.io.orientation import to_lps
from nnunet_ext.locations import FILE_ENDING
from nnunet_ext.roi.boxes import crop, kept_fraction, overlaps
from nnunet_ext.roi.chain import Chain, Located, chain_of
from nnunet_ext.roi.learned import Learned
from nnunet_ext.roi.pasting import renumbered
from nnunet_ext.roi.provenance import HeldOut, held_out_predictions, ignore_number, label_numbers, unproven
from nnunet_ext.roi.raw_data import case_digests, contoured_in
from nnunet_ext.roi.region import CENTRE, NO_MODEL, TRUTH, Region, box_entry
from nnunet_ext.roi.retention import retention
from nnunet_ext.roi.sides import Part, network_labels, parts_of
from nnunet_ext.roi.survey import Locator, Survey, learn, survey_case

SIDECAR = "regions.json"
Splits = Sequence[Mapping[str, Sequence[str]]]


@dataclass(frozen=True)
class _Case:
    """One case in the canonical frame: its truth, and the channels to keep by name."""

    name: str
    truth: NDArray[np.uint16]
    grid: Grid
    images: Mapping[str, NDArray[np.float32]]


@dataclass
class _Source:
    """The dataset that regions are cut from.

    Args:
        folder: Its raw folder.
        channels: Number to name of the channels to keep, in their new order.
        labels: Organ to label number.
        cases: Its training cases.
        ignore: Its ignore label; None where it has none.
    """

    folder: Path
    channels: Mapping[int, str]
    labels: Mapping[str, int]
    cases: Sequence[str] = field(default_factory=list)
    ignore: int | None = None

    def read(self, case: str) -> _Case:
        """Everything that is cut from a case."""
        truth, grid = self.truth(case)
        return _Case(case, truth, grid, {name: self.channel(case, n) for n, name in self.channels.items()})

    def truth(self, case: str) -> tuple[NDArray[np.uint16], Grid]:
        """Label map in the canonical frame, and its Grid."""
        return to_lps(*read_labels(self.folder / "labelsTr" / f"{case}{FILE_ENDING}"))

    def channel(self, case: str, number: int) -> NDArray[np.float32]:
        """One channel in the canonical frame."""
        path = self.folder / "imagesTr" / f"{case}_{number:04d}{FILE_ENDING}"
        if not path.exists():
            raise InputError(f"{path.parent} has no image of case {case}; its labels alone are no training case.")
        return to_lps(*read_image(path))[0]


def derive_dataset(
    source: Path,
    target: Path,
    region: Region,
    splits: Splits,
    locators: Sequence[Locator] = (),
    progress: Callable[[Sequence[str]], Iterator[str]] = iter,
    channels: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Cut the region out of every training case of a dataset.

    Every case gives one unshifted region (two with ``region.flip_right``), which validates, and ``region.copies``
    jittered ones, which only train. Folds are inherited case by case. Centres that come from a model come from the
    fold that held the case out, which is checked, and the usual place of its organs from the cases of that training.
    The regions are written in the canonical frame LPS, whatever the orientation of the source.

    Args:
        source: Raw folder of the source dataset.
        target: Raw folder to write; must not exist or be unfinished.
        region: What to cut.
        splits: Folds of the source dataset.
        locators: Trained models for ``region.source`` and ``region.fallback``, in that order.
        progress: Wraps the list of cases, to show progress.
        channels: Names of the channels to keep, in their new order; None is all.

    Returns:
        The content of ``regions.json``: boxes, rungs and kept fractions per case, retention per organ, and what the
        source held (``made_from``), and ``warnings``.

    Raises:
        InputError: unknown organ, two locators of one name, a case that a locator trained on, or unequal grids.
    """
    if (target / "dataset.json").exists():
        raise InputError(f"{target} exists; choose another number or delete it.")
    if region.source not in NO_MODEL and len(locators) != 1 + len(region.fallback):
        raise ValueError(f"the region names {(region.source, *region.fallback)}, got {len(locators)} locators.")
    twice = sorted({loc.name for loc in locators if sum(other.name == loc.name for other in locators) > 1})
    if twice:
        raise InputError(
            f"two locating models are named {', '.join(twice)}; give every model once, each by its own name."
        )
    source_json = read_json(source / "dataset.json")
    data = _open_source(source, source_json, region, channels)
    made_from = case_digests(source)
    parts = parts_of(region)
    held_out = {
        loc.name: held_out_predictions(loc.folder, loc.splits, data.cases, loc.validation, loc.origins)
        for loc in locators
    }
    surveys = _survey(data, parts, region, locators, held_out)
    learned = _learned(surveys, parts, region, data)
    for leftover in (target / "imagesTr", target / "labelsTr"):  # of an interrupted derivation
        shutil.rmtree(leftover, ignore_errors=True)
    entries: dict[str, dict[str, Any]] = {}
    for case in progress(data.cases):
        known = [surveys[name] for name in _trained_beside(case, splits) if name in surveys]
        content = data.read(case)
        for part in parts:
            own = (learn(known, part, region) if known else None) or learned.get(part.name)
            _cut(data, content, target, part, region, surveys.get(case), own, entries)
    sidecar = {
        "source_dataset": source.name,
        "made_from": made_from,
        "warnings": [line for loc in locators for line in unproven(loc.folder, held_out[loc.name])],
        "region": region.model_dump(by_alias=True),
        "label_map": network_labels(region),
        "learned": {name: values.as_dict() for name, values in learned.items()},
        "cases": entries,
        "retention": retention(entries, region.organs),
    }
    write_json(target / SIDECAR, sidecar)
    write_json(target / "splits_final.json", inherited_splits(splits, entries))
    present = _contoured(source, entries, parts, data.labels)
    if present:
        write_json(target / PRESENT_FILE, present)
    write_json(target / "dataset.json", _dataset_json(source_json, sidecar, data.channels, len(entries)))
    return sidecar


def _open_source(
    folder: Path, source_json: Mapping[str, Any], region: Region, channels: Sequence[str] | None
) -> _Source:
    labels = label_numbers(source_json)
    unknown = [organ for organ in region.organs if organ not in labels]
    if unknown:
        raise InputError(f"{folder.name} has no organ {', '.join(unknown)}; it has {', '.join(labels)}.")
    cases = sorted(p.name.removesuffix(FILE_ENDING) for p in (folder / "labelsTr").glob(f"*{FILE_ENDING}"))
    return _Source(folder, _kept_channels(source_json, channels, folder), labels, cases, ignore_number(source_json))


def _survey(
    data: _Source,
    parts: Sequence[Part],
    region: Region,
    locators: Sequence[Locator],
    held_out: Mapping[str, Mapping[str, HeldOut]],
) -> dict[str, Survey]:
    """Every case as it is known before cutting; nothing is needed for the middle of the image."""
    if region.source == CENTRE:
        return {}
    return {
        case: survey_case(
            data.channel(case, 0), *data.truth(case), parts, data.labels,
            {name: found[case] for name, found in held_out.items()}, locators,
        )
        for case in data.cases
    }  # fmt: skip


def _learned(surveys: Mapping[str, Survey], parts: Sequence[Part], region: Region, data: _Source) -> dict[str, Learned]:
    """What all training cases teach, for new patients."""
    if region.source == CENTRE:
        return {}
    found = {part.name: learn(list(surveys.values()), part, region) for part in parts}
    missing = [", ".join(part.organs) for part in parts if found[part.name] is None]
    if missing:
        raise InputError(f"no case of {data.folder} contains {'; '.join(missing)}; choose other organs.")
    return {name: values for name, values in found.items() if values is not None}


def _trained_beside(case: str, splits: Splits) -> Sequence[str]:
    """Training cases of the fold that holds a case out."""
    return next((split["train"] for split in splits if case in split["val"]), [])


def _chain(part: Part, region: Region, survey: Survey, learned: Learned) -> Chain:
    found = survey.found[part.name]
    if region.source == TRUTH:
        truth = survey.truth[part.name]
        found = {TRUTH: [] if truth is None else [truth]}
    return chain_of(
        found, learned.prior, survey.others(part, seen=True), survey.body, survey.grid.spacing_mm,
        float("inf") if region.source == TRUTH else region.plausible_mm,
        lambda located: region.is_in(survey.grid, located, learned),
    )  # fmt: skip


def _cut(
    data: _Source,
    content: _Case,
    target: Path,
    part: Part,
    region: Region,
    survey: Survey | None,
    learned: Learned | None,
    entries: dict[str, dict[str, Any]],
) -> None:
    """Write the region of one part of a case, and its jittered copies."""
    case, truth, grid = content.name, content.truth, content.grid
    numbers = {data.labels[organ]: number for organ, number in part.organs.items()}
    if data.ignore is not None:
        numbers[data.ignore] = _ignore_after(network_labels(region))
    if survey is None or learned is None:
        chain = Chain([Located(Region.middle(grid), CENTRE)])
    else:
        chain = _chain(part, region, survey, learned)
    if not chain.rungs:
        raise InputError(
            f"{data.folder.name}, case {case}: no place for the region of {', '.join(part.organs)} lies in the image "
            f"({'; '.join(chain.refused.values())}); leave the case out."
        )
    best = chain.rungs[0]
    unshifted = region.box(grid, best, learned)
    for name, shift in _shifts(f"{case}{part.suffix}", region):
        box = unshifted.shifted(shift)
        if not overlaps(box, grid.shape):  # a jittered copy at the very edge
            continue
        for new, (channel, image) in enumerate(content.images.items()):
            cut = part.seen(crop(image, box, region.padding(channel)))
            write_image(target / "imagesTr" / f"{name}_{new:04d}{FILE_ENDING}", cut, grid.cropped(box))
        inside = renumbered(crop(truth, box), numbers)
        write_labels(target / "labelsTr" / f"{name}{FILE_ENDING}", part.seen(inside), grid.cropped(box))
        entries[name] = {
            "case": case,
            "part": part.name,
            "shifted": name != f"{case}{part.suffix}",
            **box_entry(box),
            "source_shape": list(grid.shape),
            "rung": best.rung,
            "refused": chain.refused,
            "locator": dict(survey.models.get(best.rung, {})) if survey else {},
            "kept": {organ: kept_fraction(truth, box, [data.labels[organ]]) for organ in part.organs},
        }


def _ignore_after(labels: Mapping[str, int]) -> int:
    """Number of the ignore label, which nnU-Net wants to be the highest."""
    return 1 + max(labels.values())


def _shifts(name: str, region: Region) -> list[tuple[str, tuple[int, ...]]]:
    """The unshifted region and its jittered copies, the same at every run and for every order of cases."""
    generator = np.random.default_rng([region.seed, zlib.crc32(name.encode())])
    shifts: list[tuple[str, tuple[int, ...]]] = [(name, (0, 0, 0))]
    for i in range(1, region.copies + 1 if region.source != CENTRE else 1):
        drawn = np.rint(generator.normal(0.0, region.jitter_vox)).astype(int)
        shifts.append((f"{name}_jitter{i}", tuple(drawn.tolist())))
    return shifts


def inherited_splits(splits: Splits, entries: Mapping[str, Mapping[str, Any]]) -> list[dict[str, list[str]]]:
    """Folds of the derived dataset: a case's regions follow it, jittered copies only train."""
    result = []
    for split in splits:
        train, val = set(split["train"]), set(split["val"])
        result.append(
            {
                "train": [name for name, entry in entries.items() if entry["case"] in train],
                "val": [name for name, entry in entries.items() if entry["case"] in val and not entry["shifted"]],
            }
        )
    return result


def _contoured(
    source: Path, entries: Mapping[str, Mapping[str, Any]], parts: Sequence[Part], labels: Mapping[str, int]
) -> dict[str, list[int]]:
    """Region to its contoured labels, for cases whose contoured labels the source lists."""
    listed = contoured_in(source)
    organs = {part.name: part.organs for part in parts}
    return {
        name: [number for organ, number in organs[entry["part"]].items() if labels[organ] in listed[entry["case"]]]
        for name, entry in entries.items()
        if entry["case"] in listed
    }


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
    source_facts = source.get("nnunet_ext", {})
    treated = {key: source_facts[key] for key in ("preprocessing", "crop", "fixed_slices") if source_facts.get(key)}
    labels = {"background": 0, **sidecar["label_map"]}
    if ignore_number(source) is not None:
        labels["ignore"] = _ignore_after(sidecar["label_map"])
    summary = {key: sidecar[key] for key in ("source_dataset", "region", "label_map", "learned")}
    return {
        **kept,
        "channel_names": {str(i): name for i, name in enumerate(channels.values())},
        "labels": labels,
        "numTraining": count,
        "nnunet_ext": {**summary, "swap_pairs": [], **treated},
    }
