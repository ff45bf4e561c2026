"""Training on cases where some organs were never contoured, as their ``present_labels.json`` says."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_ext.errors import InputError
from nnunet_ext.evaluation.dataset import PRESENT_FILE, check_present, read_present
from nnunet_ext.losses.present import PresentOnly, erase_absent
from nnunet_ext.training.summary import count_contoured_only


def present_file(dataset: str, preprocessed: Path) -> Path | None:
    """The list of contoured labels of a dataset: the raw one, which people edit, else the copy that planning made.

    Args:
        dataset: Name of the dataset.
        preprocessed: Its preprocessed folder.
    """
    raw = os.environ.get("nnUNet_raw")
    files = [*([Path(raw, dataset, PRESENT_FILE)] if raw else []), preprocessed / PRESENT_FILE]
    return next((file for file in files if file.is_file()), None)


def absent_heads(contoured: Collection[int], labels: LabelManager) -> list[bool]:
    """Which heads of a network were not contoured in a case: the label, or any label of the region.

    Args:
        contoured: Label numbers that were contoured in the case.
        labels: Of the dataset.

    Returns:
        One entry per head, False for the background.
    """
    if labels.has_regions:
        parts = [(region,) if isinstance(region, int) else tuple(region) for region in labels.foreground_regions]
        return [not set(map(int, region)) <= set(contoured) for region in parts]
    return [label != 0 and int(label) not in contoured for label in labels.all_labels]


class PresentDataset:
    """A dataset of nnU-Net that knows no voxels of organs that were not contoured, so that none is looked for.

    Args:
        dataset: Of nnU-Net.
        absent: Case to labels, as tuples, or regions.
    """

    def __init__(self, dataset: Any, absent: Mapping[str, Collection[tuple[int, ...]]]) -> None:
        self.dataset, self.absent, self.identifiers = dataset, absent, dataset.identifiers

    def load_case(self, identifier: str) -> tuple[Any, Any, Any, dict[str, Any]]:
        """As the dataset, with empty lists of locations for absent organs."""
        data, labels, previous, properties = self.dataset.load_case(identifier)
        gone = self.absent.get(identifier, ())
        places = {key: [] if _as_tuple(key) in gone else found for key, found in properties["class_locations"].items()}
        return data, labels, previous, {**properties, "class_locations": places}


class PresentLabels(nnUNetTrainer):
    """Part of nnUNetTrainerExt: an organ that was not contoured in a case is neither foreground nor background there.

    Loss, running Dice and the summary of the final validation leave it out, case by case, and no patch is drawn for
    it; a batch without such a case is trained exactly as before.
    """

    network: Any
    cases: dict[str, list[str]] | None = None
    _contoured: dict[str, set[int]] | None = None
    _absent: dict[str, list[bool]] | None = None

    def contoured_in_cases(self) -> dict[str, set[int]]:
        """Case to labels that were contoured, for cases that are listed; read once.

        Raises:
            InputError: the list names a case or a label that the dataset does not have.
        """
        if self._contoured is None:
            path = present_file(self.plans_manager.dataset_name, Path(self.preprocessed_dataset_folder_base))
            self._contoured = self._read_contoured(path) if path and self.leaves_out_absent() else {}
        return self._contoured

    def absent_in_cases(self) -> dict[str, list[bool]]:
        """Case to heads that the training must not count, for cases with such heads; worked out once.

        Raises:
            InputError: as contoured_in_cases.
        """
        if self._absent is None:
            heads = {
                case: absent_heads(self.told_apart(contoured), self.label_manager)
                for case, contoured in self.contoured_in_cases().items()
            }
            self._absent = {case: absent for case, absent in heads.items() if any(absent)}
        return self._absent

    @property
    def head_names(self) -> list[str]:
        """What the network's heads are called, the background included where they share a softmax."""
        manager = self.label_manager
        names = {_as_tuple(value): name for name, value in self.dataset_json["labels"].items()}
        heads = manager.foreground_regions if manager.has_regions else manager.all_labels
        return [names[_as_tuple(head)] for head in heads]

    def absent_organs(self, heads: Mapping[str, list[bool]]) -> dict[str, set[tuple[int, ...]]]:
        """Case to its absent organs, each as a tuple of labels."""
        manager = self.label_manager
        organs = manager.foreground_regions if manager.has_regions else manager.all_labels
        return {case: {_as_tuple(organs[i]) for i, gone in enumerate(row) if gone} for case, row in heads.items()}

    def _read_contoured(self, path: Path) -> dict[str, set[int]]:
        """Raises InputError for what the dataset does not have, which would be trained as background unnoticed."""
        listed = read_present(path)
        dataset_class = self.dataset_class or infer_dataset_class(self.preprocessed_dataset_folder)
        cases = set(dataset_class.get_identifiers(self.preprocessed_dataset_folder))
        numbers = {n for value in self.dataset_json["labels"].values() for n in _as_tuple(value)}
        check_present(path, listed, numbers, cases)
        for case, contoured in listed.items():
            heads = absent_heads(self.told_apart(set(contoured)), self.label_manager)
            if self.label_manager.has_regions and contoured and all(heads):
                raise InputError(
                    f"{path}: in {case} no region has all of its labels, so nothing could be trained; list every label "
                    "of the regions that were contoured."
                )
        return {case: set(contoured) for case, contoured in listed.items() if case in cases}

    def leaves_out_absent(self) -> bool:
        """Whether the settings ask for it."""
        return True

    def told_apart(self, contoured: set[int]) -> set[int]:
        """Those of a case's contoured labels that augmentation cannot turn into labels that were not contoured."""
        return contoured

    @contextlib.contextmanager
    def present_only(self, batch: dict[str, Any]) -> Iterator[None]:
        """While a batch is handled, the network says nothing of organs that its cases lack, and its targets neither."""
        known = self.absent_in_cases()
        rows = [known.get(str(case)) for case in batch["keys"]] if known else []
        width = next((len(row) for row in rows if row), None)
        if width is None:
            yield
            return
        absent = torch.tensor([row or [False] * width for row in rows])
        regions = self.label_manager.has_regions
        batch["target"] = _each(batch["target"], absent, regions)
        network = self.network
        self.network = PresentOnly(network, absent.to(self.device), regions=regions)
        try:
            yield
        finally:
            self.network = network

    def get_tr_and_val_datasets(self) -> tuple[Any, Any]:
        """As stock, without places to draw patches for organs that were not contoured."""
        lists = self.absent_organs(self.absent_in_cases())
        train, val = super().get_tr_and_val_datasets()
        return (PresentDataset(train, lists), PresentDataset(val, lists)) if lists else (train, val)

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """As stock; the summary counts contoured organs only."""
        super().perform_actual_validation(save_probabilities)
        heads = {case: absent_heads(c, self.label_manager) for case, c in self.contoured_in_cases().items()}
        absent = {case: organs for case, organs in self.absent_organs(heads).items() if organs}
        if self.local_rank == 0 and absent:
            ending = self.dataset_json["file_ending"]
            dice = count_contoured_only(Path(self.output_folder, "validation", "summary.json"), absent, ending)
            self.print_to_log_file(f"Mean Validation Dice of contoured organs: {dice}")

    def on_train_start(self) -> None:
        """As stock; says how many cases lack which organs."""
        super().on_train_start()
        train = self.cases["train"] if self.cases else []
        known = self.absent_in_cases()
        lacking = Counter(i for case in train for i, gone in enumerate(known.get(case, [])) if gone)
        if lacking:
            names = self.head_names
            listed = ", ".join(f"{names[i]} in {count}" for i, count in sorted(lacking.items()))
            self.print_to_log_file(f"Not contoured, so not background either: {listed} of {len(train)} training cases.")


def _each(target: Any, absent: torch.Tensor, regions: bool) -> Any:
    if isinstance(target, list):
        return [_each(part, absent, regions) for part in target]
    return erase_absent(target, absent.to(target.device), regions=regions)


def _as_tuple(value: Any) -> tuple[int, ...]:
    return tuple(map(int, value)) if isinstance(value, (list, tuple)) else (int(value),)
