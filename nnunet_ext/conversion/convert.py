"""A source folder to an ordinary nnU-Net dataset: the one way all converters go."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from nnunet_ext.conversion.extent import crop_case, with_slices
from nnunet_ext.conversion.loaded_case import LoadedCase
from nnunet_ext.conversion.loading import load_case
from nnunet_ext.conversion.overlap import overlap_regions, overlap_swap_pairs
from nnunet_ext.conversion.record import CaseRecord, record_of, stamp_of
from nnunet_ext.conversion.report import failures_as_text, report_of
from nnunet_ext.conversion.source import Case, Source
from nnunet_ext.conversion.splits import held_out_cases, patient_splits
from nnunet_ext.conversion.treatment import Say, facts_of, treat_case, treatment_as_json
from nnunet_ext.conversion.workplace import Workplace
from nnunet_ext.errors import InputError
from nnunet_ext.evaluation.dataset import PRESENT_FILE
from nnunet_ext.io.atomic import write_json
from nnunet_ext.io.nifti import write_labels, write_voxels
from nnunet_ext.io.numbered import check_elsewhere, check_name, taken_by
from nnunet_ext.labels import swap_pairs
from nnunet_ext.locations import FILE_ENDING

READER = "SimpleITKIOWithReorient"
"""nnU-Net's reader that looks at the orientation; its export is uint8, so at most 255 labels."""


@dataclass(frozen=True)
class Converted:
    """A finished dataset.

    Args:
        folder: Where it lies.
        report: The content of its conversion_report.json.
        failed: Refused cases and why, with full paths.
    """

    folder: Path
    report: dict[str, Any]
    failed: dict[str, str]


def convert(
    source: Source,
    raw: Path,
    number: int,
    name: str,
    *,
    overwrite: bool = False,
    seed: int = 12345,
    folds: int | None = None,
    quiet: bool = False,
    elsewhere: Sequence[Path] = (),
) -> Converted:
    """Write ``Dataset<number>_<name>``; good cases are converted, bad ones named in the result.

    Killed and run again, it keeps the finished cases and ends with the same files.

    Args:
        source: What the converter found.
        raw: The folder nnUNet_raw.
        number: Dataset number, 1 to 999.
        name: Letters, digits, ``_`` and ``-``.
        overwrite: Replace a dataset of the same number.
        seed: Of the folds, and of the test cases where the source sets some aside.
        folds: Number of folds; None is the source's own.
        quiet: No progress bar.
        elsewhere: nnU-Net's other folders (preprocessed, results); it fails where a number has two names.

    Raises:
        InputError: the name is not usable, the number is taken, or no case is usable; nothing is left then.
        BusyError: another process converts to the same dataset, or the disk is full.
    """
    check_name(number, name)
    _check_source(source)
    workplace = Workplace(raw, f"Dataset{number:03d}_{name}")
    taken = taken_by(raw, number)
    if taken and not overwrite:
        raise InputError(
            f"dataset number {number} is taken by {taken[0]}; choose another number or add --overwrite to replace it."
        )
    check_elsewhere(elsewhere, number, workplace.final.name)
    source = _with_test_cases(source, seed)
    with workplace.locked():
        workplace.prepare(_signature(source), overwrite=overwrite)
        records, failed = _convert_cases(source, workplace, quiet=quiet)
        if not any(not record.test for record in records):
            workplace.discard()
            causes = "\n" + failures_as_text(failed) if failed else ""
            raise InputError(f"{source.folder} has no usable training case for {source.name}.{causes}")
        report = _write_sidecars(source, workplace.folder, records, failed, seed=seed, folds=folds or source.folds)
        workplace.publish(taken)
    return Converted(workplace.final, report, failed)


def _check_source(source: Source) -> None:
    if sorted(source.organs.values()) != list(range(1, len(source.organs) + 1)):
        raise InputError(f"{source.name} numbers its organs {sorted(source.organs.values())}, expected 1 to n.")
    if len(source.organs) > 255:
        raise InputError(f"{source.name} has {len(source.organs)} organs; nnU-Net's {READER} writes at most 255.")
    names = [case.identifier for case in source.cases]
    double = sorted({name for name in names if names.count(name) > 1})
    if double:
        raise InputError(f"{source.folder} has several cases named {', '.join(double)}; rename them.")


def _with_test_cases(source: Source, seed: int) -> Source:
    """The source with its test cases drawn, before any file is read: which ones depends on names and seed alone."""
    if not source.test_share:
        return source
    usable = [case for case in source.cases if case.has_labels and not case.fault]
    drawn = held_out_cases({c.identifier: c.patient or c.identifier for c in usable}, source.test_share, seed)
    split = {"test_share": source.test_share, "seed": seed}
    return replace(source, held_out=drawn, facts={**source.facts, "split": split})


def _signature(source: Source) -> dict[str, Any]:
    """What must be equal for a killed conversion to be continued; the folder only as a hash."""
    return {
        "source": source.name,
        "version": source.version,
        "folder": hashlib.sha256(str(source.folder.resolve()).encode()).hexdigest(),
        "organs": dict(source.organs),
        "channels": list(source.channels),
        "values": {str(k): v for k, v in source.values.items()},
        "unlisted_is_background": source.unlisted_is_background,
        "empty": source.empty,
        "treatment": treatment_as_json(source.treatment),
        "facts": {key: value for key, value in source.facts.items() if key != "split"},  # the cases' stamps know it
        "reading": dict(source.reading),
    }


def _convert_cases(source: Source, workplace: Workplace, *, quiet: bool) -> tuple[list[CaseRecord], dict[str, str]]:
    records: list[CaseRecord] = []
    failed: dict[str, str] = {}
    seen: dict[str, str] = {}
    workplace.keep_only({case.identifier for case in source.cases})
    bar = tqdm(source.cases, desc="convert", unit="case", disable=quiet)
    for case in bar:
        try:
            record = _convert_case(case, source, workplace, seen, bar.set_postfix_str)
        except InputError as error:
            workplace.forget(case.identifier)
            failed[case.identifier] = str(error)
            continue
        seen[record.voxel_hash] = case.identifier
        records.append(record)
    return records, failed


def _convert_case(case: Case, source: Source, workplace: Workplace, seen: dict[str, str], say: Say) -> CaseRecord:
    missing = [path for path in case.files if not path.is_file()]
    if missing:
        raise InputError(f"{missing[0]} does not exist.")
    done = workplace.finished(case.identifier, stamp_of(case, source))
    if done:
        _check_new(case, done, seen)
        return done
    workplace.forget(case.identifier)
    loaded = treat_case(load_case(case, source), case, source, say)
    loaded = crop_case(with_slices(loaded, source.treatment.slices), source)
    record = record_of(case, loaded, source)
    _check_new(case, record, seen)
    _write_case(workplace.folder, record, loaded)
    workplace.remember(record)
    return record


def _check_new(case: Case, record: CaseRecord, seen: dict[str, str]) -> None:
    twin = seen.get(record.voxel_hash)
    if twin:
        raise InputError(
            f"{case.files[0]} holds the same voxels as case {twin}; one scan under two names leaks between "
            "folds, remove one of them."
        )


def _write_case(folder: Path, record: CaseRecord, loaded: LoadedCase) -> None:
    images = folder / ("imagesTs" if record.test else "imagesTr")
    for channel, image in enumerate(loaded.images):
        path = images / f"{record.identifier}_{channel:04d}{FILE_ENDING}"
        write_voxels(path, _smallest_exact(image), loaded.grid)
    if loaded.labels is not None:
        labels = folder / ("labelsTs" if record.test else "labelsTr")
        write_labels(labels / f"{record.identifier}{FILE_ENDING}", loaded.labels, loaded.grid)


def _smallest_exact(image: NDArray[np.float32]) -> NDArray[np.generic]:
    """The image as int16 where that loses nothing: a third of the disk space for CT."""
    small = np.clip(image, -32768, 32767).astype(np.int16)
    return small if np.array_equal(small, image) else image


def _write_sidecars(
    source: Source,
    folder: Path,
    records: Sequence[CaseRecord],
    failed: dict[str, str],
    *,
    seed: int,
    folds: int,
) -> dict[str, Any]:
    """Everything beside the volumes; dataset.json last, so that a folder with it is whole."""
    training = [record for record in records if not record.test]
    splits = patient_splits({record.identifier: record.patient for record in training}, folds, seed)
    if splits:
        write_json(folder / "splits_final.json", splits)
    write_json(folder / PRESENT_FILE, {r.identifier: list(r.contoured) for r in records if r.has_labels})
    inside = {case: cause.replace(str(source.folder) + os.sep, "") for case, cause in failed.items()}
    report = report_of(source, records, inside, splits)
    write_json(folder / "conversion_report.json", report)
    write_json(folder / "dataset.json", dataset_json(source, len(training)))
    return report


def dataset_json(source: Source, training_cases: int) -> dict[str, Any]:
    """The content of nnU-Net's dataset.json, with our own block beside it."""
    overlap = {"regions_class_order": list(source.painting)} if source.painting else {}
    pairs = overlap_swap_pairs(source.organs) if source.painting else swap_pairs(source.organs)
    return {
        "channel_names": {str(i): channel for i, channel in enumerate(source.channels)},
        "labels": {"background": 0, **(overlap_regions(source.organs) if source.painting else source.organs)},
        **overlap,
        "numTraining": training_cases,
        "file_ending": FILE_ENDING,
        "overwrite_image_reader_writer": READER,
        "description": source.description,
        "reference": source.reference,
        "licence": source.licence,
        "nnunet_ext": {
            "source": source.name,
            "converter_version": source.version,
            "swap_pairs": [list(pair) for pair in pairs],
            **facts_of(source.treatment),
            **source.facts,
        },
    }
