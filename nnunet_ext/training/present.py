"""Training on cases where some organs were never contoured, as their ``present_labels.json`` says."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_ext.evaluation.dataset import PRESENT_FILE, read_present
from nnunet_ext.losses.present import PresentOnly, erase_absent


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

    Loss and running Dice leave it out, case by case, and no patch is drawn for it; a batch without such a case is
    trained exactly as before. The final validation of nnU-Net counts every organ in every case; ``nnunet-ext evaluate``
    and ``select`` count contoured ones.
    """

    network: Any
    _absent: dict[str, list[bool]] | None = None

    def absent_in_cases(self) -> dict[str, list[bool]]:
        """Case to heads that were not contoured, for cases with such heads; read once."""
        if self._absent is None:
            path = present_file(self.plans_manager.dataset_name, Path(self.preprocessed_dataset_folder_base))
            listed: Mapping[str, Sequence[int]] = read_present(path) if path and self.leaves_out_absent() else {}
            known = {case: self.told_apart(set(contoured)) for case, contoured in listed.items()}
            heads = {case: absent_heads(contoured, self.label_manager) for case, contoured in known.items()}
            self._absent = {case: absent for case, absent in heads.items() if any(absent)}
        return self._absent

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
        rows = [known.get(str(case)) for case in batch["keys"]]
        width = next((len(row) for row in rows if row), None)
        if width is None:
            yield
            return
        absent = torch.tensor([row or [False] * width for row in rows], device=self.device)
        regions = self.label_manager.has_regions
        batch["target"] = _each(batch["target"], absent.cpu(), regions)
        network = self.network
        self.network = PresentOnly(network, absent, regions=regions)
        try:
            yield
        finally:
            self.network = network

    def get_tr_and_val_datasets(self) -> tuple[Any, Any]:
        """As stock, without places to draw patches for organs that were not contoured."""
        heads = (
            self.label_manager.foreground_regions if self.label_manager.has_regions else self.label_manager.all_labels
        )
        lists = {
            case: {_as_tuple(heads[i]) for i, gone in enumerate(absent) if gone}
            for case, absent in self.absent_in_cases().items()
        }
        train, val = super().get_tr_and_val_datasets()
        return (PresentDataset(train, lists), PresentDataset(val, lists)) if lists else (train, val)

    def on_train_start(self) -> None:
        """As stock; says how many cases lack which organs."""
        super().on_train_start()
        lacking = Counter(i for absent in self.absent_in_cases().values() for i, gone in enumerate(absent) if gone)
        if lacking:
            names = {_as_tuple(value): name for name, value in self.dataset_json["labels"].items()}
            heads = self.label_manager.foreground_regions if self.label_manager.has_regions else (
                self.label_manager.all_labels
            )  # fmt: skip
            listed = ", ".join(f"{names[_as_tuple(heads[i])]} in {count}" for i, count in sorted(lacking.items()))
            self.print_to_log_file(f"Not contoured, so not background either: {listed} cases.")


def _each(target: Any, absent: torch.Tensor, regions: bool) -> Any:
    if isinstance(target, list):
        return [_each(part, absent, regions) for part in target]
    return erase_absent(target, absent.to(target.device), regions=regions)


def _as_tuple(value: Any) -> tuple[int, ...]:
    return tuple(map(int, value)) if isinstance(value, (list, tuple)) else (int(value),)
