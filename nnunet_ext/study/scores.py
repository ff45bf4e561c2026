"""What a trained network of a study is worth: Dice against the true contours, from probabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from numpy.typing import NDArray

from nnunet_ext.conversion.noise import structures_of
from nnunet_ext.evaluation.dataset import DATASET_FILE, read_organs
from nnunet_ext.evaluation.metrics import score_case
from nnunet_ext.locations import FILE_ENDING
from nnunet_ext.roi.raw_data import contoured_in
from nnunet_ext.study.world import World

STRUCTURE, IGNORE = 1, 2
"""Labels of the map in which one structure is judged."""


def judge(world: World, trainer: Any) -> dict[str, dict[str, float | None]]:
    """DSC of every structure of every test case; None where nobody drew it or both are empty.

    Voxels with the dataset's ignore label do not count. Regions are thresholded one by one, because a label map could
    not hold their overlap.
    """
    dataset = world.raw / world.clean
    structures = structures_of(dataset)
    ignore = read_organs(dataset / DATASET_FILE).ignore
    groups = world.study.structures or {name: (name,) for name in structures}
    contoured = contoured_in(dataset)
    trainer.set_deep_supervision_enabled(False)
    trainer.network.eval()
    predictor = _predictor(trainer)
    cases = trainer.dataset_class(trainer.preprocessed_dataset_folder, list(world.test))
    scores: dict[str, dict[str, float | None]] = {}
    for case in world.test:
        data, _, _, properties = cases.load_case(case)
        predicted = _predict(trainer, predictor, np.asarray(data[:]), properties, structures)
        truth = _truth(world, trainer, case)
        drawn = {
            name: np.isin(truth, numbers)
            for name, numbers in structures.items()
            if case not in contoured or set(numbers) <= set(contoured[case])
        }
        ignored = np.isin(truth, [] if ignore is None else [ignore])
        scores[case] = {name: _dice(predicted, drawn, organs, ignored) for name, organs in groups.items()}
    return scores


def _predictor(trainer: Any) -> nnUNetPredictor:
    predictor = nnUNetPredictor(use_mirroring=True, device=trainer.device, perform_everything_on_device=True,
                                allow_tqdm=False)  # fmt: skip
    predictor.manual_initialization(
        trainer.network, trainer.plans_manager, trainer.configuration_manager, None, trainer.dataset_json,
        type(trainer).__name__, trainer.inference_allowed_mirroring_axes,
    )  # fmt: skip
    return predictor


def _predict(
    trainer: Any,
    predictor: nnUNetPredictor,
    data: NDArray[np.float32],
    properties: Mapping[str, Any],
    structures: Mapping[str, Sequence[int]],
) -> dict[str, NDArray[np.bool_]]:
    """Structure to where the network sees it, on the case's own grid."""
    manager = trainer.label_manager
    logits = predictor.predict_sliding_window_return_logits(torch.from_numpy(data.copy())).cpu()
    labels, probabilities = convert_predicted_logits_to_segmentation_with_correct_shape(
        logits, trainer.plans_manager, trainer.configuration_manager, manager, dict(properties),
        return_probabilities=True, num_threads_torch=torch.get_num_threads(),
    )  # fmt: skip
    if manager.has_regions:
        return {name: np.asarray(p > 0.5) for name, p in zip(structures, probabilities, strict=True)}
    return {name: np.isin(labels, numbers) for name, numbers in structures.items()}


def _truth(world: World, trainer: Any, case: str) -> NDArray[np.integer]:
    """The clean label map in the frame of nnU-Net's reader, as the prediction."""
    reader = trainer.plans_manager.image_reader_writer_class()
    truth, _ = reader.read_seg(str(world.raw / world.clean / "labelsTr" / f"{case}{FILE_ENDING}"))
    return np.asarray(truth[0])


def _dice(
    predicted: Mapping[str, NDArray[np.bool_]],
    drawn: Mapping[str, NDArray[np.bool_]],
    organs: Sequence[str],
    ignored: NDArray[np.bool_],
) -> float | None:
    """DSC of organs joined to one structure, outside the ignored voxels."""
    if not set(organs) <= set(drawn):
        return None
    one, other = (np.any([masks[o] for o in organs], axis=0).astype(np.uint8) for masks in (predicted, drawn))
    other[ignored] = IGNORE
    organ = {"structure": STRUCTURE}
    dsc = score_case(one, other, organ, (1.0, 1.0, 1.0), distances=False, ignore=IGNORE)[0].dsc
    return None if np.isnan(dsc) else float(dsc)
