"""Out-of-fold predictions of a trained model, and the proof that they are out-of-fold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_ext.errors import InputError
from nnunet_ext.io.atomic import read_json, sha256_of
from nnunet_ext.locations import FILE_ENDING

CASES_FILE = "cases.json"
"""Written by our trainers into a fold's folder: the cases that this training really used."""
HELD_OUT_CSV = "quality_held_out.csv"
"""Written by our quality trainers into a fold's folder: what their QAM says of cases that it never saw."""


@dataclass(frozen=True)
class HeldOut:
    """A prediction for a case by a model that never saw it.

    Args:
        path: The predicted label map.
        fold: Fold whose model made it.
        checkpoint_sha256: Of that fold's weights.
        proven: Whether the training itself noted its cases; see ``unproven``.
    """

    path: Path
    fold: int
    checkpoint_sha256: str
    proven: bool = True


def held_out_predictions(
    model_folder: Path,
    splits: Sequence[Mapping[str, Sequence[str]]],
    cases: Sequence[str],
    validation: str = "validation",
    origins: Mapping[str, str] | None = None,
) -> dict[str, HeldOut]:
    """For every case the prediction of the fold that held it out.

    Args:
        model_folder: Trained model with ``fold_<k>/validation``.
        splits: The folds that the model was trained with.
        cases: Cases that need a prediction.
        validation: Folder of the predictions inside a fold's.
        origins: Name in the model's own dataset to the case that it was cut from, for models of regions.

    Raises:
        InputError: a case trained the only model that predicted it, or has no prediction; a fold that did not note its
            cases validated others than it holds out. All are named.
    """
    found: dict[str, HeldOut] = {}
    for fold, split in enumerate(splits):
        folder = model_folder / f"fold_{fold}"
        leaked = sorted(set(split["val"]) & _trained_on(folder, split, origins or {}))
        if leaked:
            raise InputError(
                f"fold {fold} of {model_folder.name} trained on its own validation cases: {', '.join(leaked)}; "
                "train it again with the folds that the dataset has now."
            )
        proven = (folder / CASES_FILE).exists()
        if split["val"] and not proven:
            _check_validated(folder, validation, split["val"])
        digest = ""
        for case in sorted(set(split["val"]) & set(cases)):
            path = folder / validation / f"{case}{FILE_ENDING}"
            if path.exists():
                digest = digest or sha256_of(folder / "checkpoint_final.pth", "finish training that fold first")
                found[case] = HeldOut(path, fold, digest, proven)
    missing = sorted(set(cases) - set(found))
    if missing:
        raise InputError(
            f"{model_folder} has no held-out prediction for {len(missing)} cases ({', '.join(missing[:5])}); "
            "train and validate all its folds first."
        )
    return found


def unproven(model_folder: Path, found: Mapping[str, HeldOut]) -> list[str]:
    """A sentence on the folds whose predictions cannot be proven to be out-of-fold; none where all can.

    Stock trainers note nowhere which cases they trained on; ours write ``cases.json``. What stock ones leave is the
    validation: it predicts what was held out when the training ended, which ``held_out_predictions`` compares.
    """
    folds = sorted({held.fold for held in found.values() if not held.proven})
    if not folds:
        return []
    return [
        f"{model_folder.name}, fold {', '.join(map(str, folds))}: out-of-fold not provable, trained by a trainer that "
        f"leaves no {CASES_FILE}; its validation predicted the cases that its folds hold out now"
    ]


def _check_validated(fold_folder: Path, validation: str, held_out: Sequence[str]) -> None:
    """Refuse predictions of cases that a fold does not hold out: its folds are not those of its training."""
    predicted = {path.name.removesuffix(FILE_ENDING) for path in (fold_folder / validation).glob(f"*{FILE_ENDING}")}
    others = sorted(predicted - set(held_out))
    if others:
        raise InputError(
            f"{fold_folder / validation} holds predictions of {', '.join(others[:5])}, which the fold does not hold "
            "out now, so the folds changed after its training; train it again, or restore its splits_final.json."
        )


def _trained_on(fold_folder: Path, split: Mapping[str, Sequence[str]], origins: Mapping[str, str]) -> set[str]:
    """Cases that a fold was trained on: what the training itself noted, else what the folds say."""
    noted = fold_folder / CASES_FILE
    names = read_json(noted)["train"] if noted.exists() else split["train"]
    return {origins.get(name, name) for name in names}


def label_numbers(dataset_json: Mapping[str, Any]) -> dict[str, int]:
    """Organ name to label number of a dataset.json, without background and ignore label.

    Raises:
        InputError: the dataset has region labels (lists), which a region cannot be located by.
    """
    labels = {name: value for name, value in dataset_json["labels"].items() if name not in ("background", "ignore")}
    lists = [name for name, value in labels.items() if not isinstance(value, int)]
    if lists:
        raise InputError(f"labels {', '.join(lists)} are lists of numbers; locate by a model with plain labels.")
    return {name: int(value) for name, value in labels.items()}


def ignore_number(dataset_json: Mapping[str, Any]) -> int | None:
    """Number of the ignore label, whose voxels nobody has judged; None where the dataset has none."""
    value = dataset_json["labels"].get("ignore")
    return None if value is None else int(value)
