"""Folds by patient: the same patients give the same folds on every machine."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping

from nnunet_ext.conversion.source import natural_key
from nnunet_ext.io.numbered import Split


def held_out_cases(patient_of: Mapping[str, str], share: float, seed: int) -> frozenset[str]:
    """The cases of a share of the patients, to be tested on and never trained on.

    Drawn as the folds are, by a seeded hash of the patients' names, and independent of them. The number of patients
    is rounded; at least two are left for training.

    Args:
        patient_of: Case to patient; all cases of a patient are set aside together.
        share: Part of the patients, 0 to 1.
        seed: Another seed draws others.
    """
    patients = set(patient_of.values())
    count = min(round(share * len(patients)), max(len(patients) - 2, 0))
    drawn = set(sorted(patients, key=lambda patient: _rank(f"{seed}:test:{patient}"))[:count])
    return frozenset(case for case, patient in patient_of.items() if patient in drawn)


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
    dealt = sorted(cases_of, key=lambda patient: _rank(f"{seed}:{patient}"))
    count = min(folds, len(dealt))
    return [_split(cases_of, set(dealt[fold::count])) for fold in range(count)]


def _rank(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _split(cases_of: Mapping[str, list[str]], held_out: set[str]) -> Split:
    split: Split = {"train": [], "val": []}
    for patient, cases in cases_of.items():
        split["val" if patient in held_out else "train"] += cases
    return {part: sorted(cases, key=natural_key) for part, cases in split.items()}
