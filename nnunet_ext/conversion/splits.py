"""Folds by patient: the same patients give the same folds on every machine."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping

from nnunet_ext.conversion.source import natural_key

Split = dict[str, list[str]]


def patient_splits(patient_of: Mapping[str, str], folds: int, seed: int) -> list[Split]:
    """Cross-validation folds in the form of nnU-Net's ``splits_final.json``.

    Patients are ordered by a seeded hash of their name and dealt out in turn, so fold sizes differ by at most
    one patient and no random generator's version matters. With fewer patients than folds there are as many
    folds as patients.

    Args:
        patient_of: Case to patient; all cases of a patient land in one fold.
        folds: Wanted number of folds, at least 2.
        seed: Another seed gives other folds.

    Returns:
        One ``{"train": [...], "val": [...]}`` per fold; empty where there are fewer than two patients.

    Raises:
        ValueError: fewer than 2 folds were asked for.
    """
    if folds < 2:
        raise ValueError(f"cross-validation needs at least 2 folds, got {folds}.")
    cases_of: dict[str, list[str]] = defaultdict(list)
    for case, patient in patient_of.items():
        cases_of[patient].append(case)
    if len(cases_of) < 2:
        return []
    dealt = sorted(cases_of, key=lambda patient: hashlib.sha256(f"{seed}:{patient}".encode()).digest())
    count = min(folds, len(dealt))
    return [_split(cases_of, set(dealt[fold::count])) for fold in range(count)]


def _split(cases_of: Mapping[str, list[str]], held_out: set[str]) -> Split:
    split: Split = {"train": [], "val": []}
    for patient, cases in cases_of.items():
        split["val" if patient in held_out else "train"] += cases
    return {part: sorted(cases, key=natural_key) for part, cases in split.items()}
