"""What to know of two folders of label maps before believing their scores: noise on purpose, overlaps that are lost."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np

from nnunet_ext.errors import InputError, some_of
from nnunet_ext.evaluation.dataset import NOISE_FILE, DatasetOrgans
from nnunet_ext.io.atomic import read_json
from nnunet_ext.io.nifti import read_labels

NOISY_LABELS, COPIED_LABELS = "labelsTr", "gt_segmentations"
"""``nnunet-ext noise`` corrupts the labels of training cases only, and lists them in a file beside their folder.

nnU-Net copies them into the preprocessed dataset.
"""


def noise_warning(labels: Path, cases: Collection[str]) -> list[str]:
    """A sentence if some of these cases were corrupted on purpose.

    Args:
        labels: Folder of label maps.
        cases: Those that are judged.

    Raises:
        InputError: the list of corrupted cases is damaged.
    """
    source, noisy = planted_noise(labels, cases)
    if not noisy:
        return []
    return [
        f"{labels}: {len(noisy)} of {len(cases)} cases were corrupted on purpose ({some_of(noisy)}); judge against "
        f"the labels of {source}, which are the true ones."
    ]


def planted_noise(labels: Path, cases: Collection[str]) -> tuple[str, list[str]]:
    """The dataset that holds the true labels, and which cases of a folder were corrupted on purpose; none in most.

    Args:
        labels: Folder of label maps.
        cases: Those that are judged.

    Raises:
        InputError: the list of corrupted cases is damaged.
    """
    folder, raw = labels.absolute(), os.environ.get("nnUNet_raw")
    places = {NOISY_LABELS: folder.parent, **({COPIED_LABELS: Path(raw, folder.parent.name)} if raw else {})}
    if folder.name not in places or not (path := places[folder.name] / NOISE_FILE).is_file():
        return "", []
    content = read_json(path)
    listed = content.get("cases") if isinstance(content, dict) else None
    if not isinstance(listed, dict):
        raise InputError(f'{path} has no "cases", expected what nnunet-ext noise writes; derive that dataset again.')
    return str(content.get("source", "its source")), sorted(case for case in cases if listed.get(case))


def lost_labels(dataset: DatasetOrgans) -> set[int]:
    """Labels of overlaps that an exported map cannot hold: no exported label lies in the same several regions.

    nnU-Net writes one label per region, the later ones over the earlier. Of nested regions nothing is lost, because the
    label of the inner one stands for all around it.
    """
    regions = {n: frozenset(o for o, own in dataset.own.items() if n in own) for n in dataset.numbers}
    held = {regions[n] for n in dataset.exported if n in regions}
    return {n for n, inside in regions.items() if len(inside) > 1 and inside not in held}


def lost_overlaps(files: Iterable[tuple[Path, Path]], labels: Collection[int]) -> list[int]:
    """Those of ``lost_labels`` that references hold where no prediction does; files that cannot be read are skipped.

    Args:
        files: Prediction and reference of every case.
        labels: What to look for; nothing is read where there is none.
    """
    used: set[int] = set()
    for pair in files if labels else ():
        try:
            predicted, drawn = (np.unique(read_labels(path)[0]) for path in pair)
        except (InputError, OSError):
            continue
        if not set(labels).isdisjoint(predicted.tolist()):
            return []
        used |= set(labels) & set(drawn.tolist())
    return sorted(used)


def overlap_warning(predictions: Path, files: Iterable[tuple[Path, Path]], dataset: DatasetOrgans) -> list[str]:
    """A sentence if label maps cannot hold what their references show; arguments as of the functions above."""
    lost = lost_overlaps(files, lost_labels(dataset))
    if not lost:
        return []
    return [
        f"{predictions}: an exported label map cannot hold the overlaps of the references (label "
        f"{', '.join(map(str, lost))}), so organs that overlap seem worse than they are; score from the probabilities."
    ]
