"""Trained nnU-Net models, loaded once, without running code that their files bring along."""

from __future__ import annotations

import contextlib
import io
import pydoc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from numpy.typing import NDArray

from nnunet_ext.errors import InputError
from nnunet_ext.io.atomic import read_json, sha256_of
from nnunet_ext.locations import expose_trainers
from nnunet_ext.recipe.inference import CasePredictor, Preprocessed, PreprocessedCache
from nnunet_ext.roi.provenance import label_numbers
from nnunet_ext.training.checkpoint import DAMAGE, read_checkpoint

CHECKPOINT = "checkpoint_final.pth"
REORIENTING_READER = "SimpleITKIOWithReorient"
NETWORKS = ("dynamic_network_architectures.architectures.", "nnunet_ext.networks.")
IMPORTS = ("torch.nn.",)
"""What the plans of a model may name: any other callable could run code from the plans file."""
PLANS_KEYS = ("configurations", "image_reader_writer", "transpose_forward", "transpose_backward")
DATASET_KEYS = ("labels", "channel_names")
CHECKPOINT_KEYS = ("network_weights", "init_args", "trainer_name", "inference_allowed_mirroring_axes")
"""What nnU-Net writes into these files and is read here."""


@dataclass
class LoadedModel:
    """A model in memory, ready for any number of cases.

    Args:
        predictor: nnU-Net's predictor with the weights of all folds.
        labels: Organ to label number of its maps.
        digest: Of its checkpoints, plans and dataset.json, for manifests.
        channels: Names of the channels that it reads, in order.
    """

    predictor: CasePredictor
    labels: Mapping[str, int]
    digest: str
    channels: Sequence[str]

    def preprocessing(self, spacing_mm: Sequence[float]) -> str:
        """Key of an image's preprocessing: models with the same one can share a ``PreprocessedCache``."""
        return self.predictor.preprocessing(spacing_mm)

    def predict(
        self, images: NDArray[np.float32], spacing_mm: Sequence[float], shared: PreprocessedCache | None = None
    ) -> NDArray[np.integer]:
        """Label map of an image.

        Args:
            images: All channels of the model.
            spacing_mm: Voxel size (Z, Y, X).
            shared: Preprocessed arrays of the same image; None keeps nothing.

        Shape:
            images: (C, Z, Y, X), canonical LPS order.
            returns: (Z, Y, X), same order.
        """

        def preprocess() -> Preprocessed:
            # stock's reader hands RAS to the network: x and y run the other way than in LPS
            return self.predictor.preprocess(images[:, :, ::-1, ::-1], spacing_mm)

        with contextlib.redirect_stdout(io.StringIO()):  # stock prints where it falls back
            key = self.preprocessing(spacing_mm)
            data, properties = preprocess() if shared is None else shared.take(key, preprocess)
            logits = self.predictor.predict_logits_from_preprocessed_data(data).cpu()
            del data  # not needed beside the label map
            labels = self.predictor.labels(logits, properties)
        return np.ascontiguousarray(labels[:, ::-1, ::-1])


def load_model(folder: Path, folds: Sequence[int], device: str) -> LoadedModel:
    """Load the weights of some folds of a trained model.

    Raises:
        InputError: a file is missing or damaged, the plans name code that is not a network or describe one that
            cannot be built or that the weights do not fit, the device cannot be used, or the model was not trained on
            data in our canonical orientation.
    """
    _check_device(device)
    expose_trainers()
    plans = _description(folder / "plans.json", PLANS_KEYS)
    dataset_json = _description(folder / "dataset.json", DATASET_KEYS)
    contents = [_checkpoint(folder / f"fold_{fold}" / CHECKPOINT) for fold in folds]
    if plans["image_reader_writer"] != REORIENTING_READER:
        raise InputError(
            f"{folder} was trained with the reader {plans['image_reader_writer']}, expected {REORIENTING_READER}; "
            "convert the data with nnunet-ext and train again."
        )
    with contextlib.redirect_stdout(io.StringIO()):
        trainer = _trainer(contents[0]["trainer_name"], folder)
        predictor = CasePredictor(device=torch.device(device), allow_tqdm=False)
    manager = PlansManager(plans)
    try:
        configuration = manager.get_configuration(contents[0]["init_args"]["configuration"])
        _check_network(plans, contents[0]["init_args"]["configuration"], folder)
        network = trainer.build_network_architecture(
            manager,
            configuration,
            determine_num_input_channels(manager, configuration, dataset_json),
            manager.get_label_manager(dataset_json).num_segmentation_heads,
            enable_deep_supervision=False,
        )
    except (KeyError, ValueError, TypeError, RuntimeError) as error:  # what is said to keywords that cannot be used
        cause = f"{error} is missing" if isinstance(error, KeyError) else str(error).rstrip(".")
        raise InputError(
            f"{folder}/plans.json describes a network that cannot be built: {cause}; copy the model again, or plan and "
            "train it anew."
        ) from error
    weights = [content["network_weights"] for content in contents]
    for fold, state in reversed(list(zip(folds, weights, strict=True))):  # the first fold's stay
        _load_weights(network, state, folder / f"fold_{fold}" / CHECKPOINT)
    _move(network, device, folder)
    predictor.manual_initialization(network, manager, configuration, weights, dataset_json, contents[0]["trainer_name"],
                                    contents[0]["inference_allowed_mirroring_axes"])  # fmt: skip
    files = ["plans.json", "dataset.json", *(f"fold_{fold}/{CHECKPOINT}" for fold in folds)]
    digest = "-".join(sha256_of(folder / file)[:16] for file in files)
    names = dataset_json["channel_names"]
    channels = [names[number] for number in sorted(names, key=int)]
    return LoadedModel(predictor, label_numbers(dataset_json), digest, channels)


def _check_device(device: str) -> None:
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # no driver; a torch built without that device
        raise InputError(
            f"device {device} cannot be used here ({_first_line(error)}); predict with -device cpu, or mend the driver."
        ) from error


def _load_weights(network: torch.nn.Module, weights: Mapping[str, Any], path: Path) -> None:
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(
            f"{path} does not fit the network that plans.json and dataset.json beside it describe "
            f"({str(error).splitlines()[-1].strip().rstrip('.')}); copy the whole model again."
        ) from error


def _move(network: torch.nn.Module, device: str, folder: Path) -> None:
    try:
        network.to(device)
    except RuntimeError as error:  # no memory left
        raise InputError(
            f"{folder} does not fit on device {device} ({_first_line(error)}); free it, or predict with -device cpu."
        ) from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__


def _description(path: Path, keys: Sequence[str]) -> dict[str, Any]:
    try:
        content = dict(read_json(path))
    except (InputError, ValueError, TypeError) as error:
        raise InputError(f"{path} is missing or damaged ({error}); copy the model again.") from error
    _check_keys(content, keys, path)
    return content


def _checkpoint(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise InputError(f"{path} is missing; train that fold or name other folds.")
    try:
        content = read_checkpoint(path)
    except DAMAGE as error:
        raise InputError(f"{path} is damaged or needs code to load ({type(error).__name__}); copy it again.") from error
    _check_keys(content, CHECKPOINT_KEYS, path)
    return content


def _check_keys(content: Any, keys: Sequence[str], path: Path) -> None:
    missing = [key for key in keys if not isinstance(content, dict) or key not in content]
    if missing:
        raise InputError(f"{path} has no {', '.join(missing)}, so nnU-Net did not write it; copy the model again.")


def _check_network(plans: Mapping[str, Any], configuration: str, folder: Path) -> None:
    name = configuration
    while "architecture" not in plans["configurations"][name]:
        name = plans["configurations"][name]["inherits_from"]
    architecture = plans["configurations"][name]["architecture"]
    network, arguments = architecture["network_class_name"], architecture["arch_kwargs"]
    imported = [arguments[key] for key in architecture["_kw_requires_import"] if arguments.get(key) is not None]
    strange = [n for n in imported if not _is_network(n, IMPORTS)]
    if not _is_network(network, NETWORKS) or strange:
        raise InputError(
            f"{folder}/plans.json names {', '.join([network, *strange])}, which is no known network; refused."
        )


def _is_network(name: str, prefixes: tuple[str, ...]) -> bool:
    """Whether a name is a network class of an allowed package.

    The prefix alone would let ``<allowed module>.torch.hub.load`` through; nothing outside the prefix is imported.
    """
    if not str(name).startswith(prefixes):
        return False
    found = pydoc.locate(name)
    return isinstance(found, type) and issubclass(found, torch.nn.Module) and found.__module__.startswith(prefixes)


def _trainer(name: str, folder: Path) -> Any:
    try:
        return recursive_find_trainer_class_by_name(name)
    except RuntimeError as error:
        raise InputError(
            f"{folder} was trained by {name}, which is not installed; add it to nnUNet_extTrainer."
        ) from error
