"""One case through one network in one process: stock's numbers, without its threads, pools and detours."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.inference.sliding_window_prediction import compute_gaussian
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from numpy.typing import NDArray

from nnunet_ext.recipe.export import labels_from_logits

INFINITE = (
    "Encountered inf in predicted array. A logit times the Gaussian exceeds half precision: the network was trained "
    "with exploding weights; train it again."
)


class Preprocessed(NamedTuple):
    """An image as a network reads it, and what it takes to come back to the image's grid."""

    data: torch.Tensor
    properties: dict[str, Any]


class PreprocessedCache:
    """Preprocessed arrays of one image, each kept until the last model that needs it has run.

    Make one per image, for the models that see the whole of it: models with the same spacing and normalisation then
    share one preprocessing. Not for regions: their images differ.

    Args:
        keys: ``LoadedModel.preprocessing`` for this image of every model that will ask, once per model.
    """

    def __init__(self, keys: Iterable[str]) -> None:
        self._awaited = Counter(keys)
        self._kept: dict[str, Preprocessed] = {}

    def take(self, key: str, make: Callable[[], Preprocessed]) -> Preprocessed:
        """The array of a key, made where it is not there yet, dropped when nobody else waits for it."""
        found = self._kept.pop(key, None) or make()
        self._awaited[key] -= 1
        if self._awaited[key] > 0:
            self._kept[key] = found
        return found

    def __len__(self) -> int:
        return len(self._kept)


class CasePredictor(nnUNetPredictor):
    """nnU-Net's predictor for one case after the other in this process.

    Tiles, Gaussian, mirroring, averaging of folds and the network are stock's. On a CPU the sum over tiles is stock's
    to the last bit, in a faster order of casts; elsewhere stock's own code runs.
    """

    def preprocessing(self, spacing_mm: Sequence[float]) -> str:
        """Everything beside the image that decides its preprocessed array; equal texts give equal arrays.

        A 2D model leaves the slices where they are: it agrees with a 3D model whose slices are as thick as the image's.
        """
        plans, configuration = self.plans_manager.plans, self.configuration_manager.configuration
        transpose, target = plans["transpose_forward"], list(configuration["spacing"])
        if len(target) < len(transpose):
            target = [spacing_mm[transpose[0]], *target]
        decisive = ["preprocessor_name", "normalization_schemes", "use_mask_for_norm"]
        decisive += ["resampling_fn_data", "resampling_fn_data_kwargs"]
        content = [configuration[name] for name in decisive]
        content += [transpose, [float(mm) for mm in target], self.dataset_json["channel_names"]]
        content += [plans["foreground_intensity_properties_per_channel"]]
        return json.dumps(content, sort_keys=True)

    def preprocess(self, images: NDArray[np.float32], spacing_mm: Sequence[float]) -> Preprocessed:
        """Transposed, cropped, normalised and resampled by the model's own preprocessor.

        Shape:
            images: (C, Z, Y, X) in the orientation that the network was trained in; unchanged.
        """
        preprocessor = self.configuration_manager.preprocessor_class(verbose=False)
        data, _, properties = preprocessor.run_case_npy(
            images, None, {"spacing": list(spacing_mm)}, self.plans_manager, self._for_images, self.dataset_json
        )
        return Preprocessed(torch.from_numpy(data), properties)

    @cached_property
    def _for_images(self) -> ConfigurationManager:
        """The configuration for a preprocessor that resamples no mask: prediction would throw it away."""
        if self.configuration_manager.preprocessor_class is not DefaultPreprocessor:
            return self.configuration_manager
        unchanged = {"resampling_fn_seg": "no_resampling_hack", "resampling_fn_seg_kwargs": {}}
        return ConfigurationManager({**self.configuration_manager.configuration, **unchanged})

    def labels(self, logits: torch.Tensor, properties: dict[str, Any]) -> NDArray[np.integer]:
        """(Z, Y, X) label map on the grid of the image."""
        return labels_from_logits(
            logits, self.plans_manager, self.configuration_manager, self.label_manager, properties
        )

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def _internal_predict_sliding_window_return_logits(
        self, data: torch.Tensor, slicers: Sequence[tuple[Any, ...]], do_on_device: bool = True
    ) -> torch.Tensor:
        """Mean of the tiles, as stock sums it on a CPU.

        Stock adds a single-precision tile to a half-precision sum: both are widened, added and rounded to half again.
        Widening first gives the same bits and spares torch its slow loop over mixed types.

        Raises:
            RuntimeError: a logit leaves the range of half precision.
        """
        if self.device.type != "cpu" or not self.use_gaussian:
            return super()._internal_predict_sliding_window_return_logits(data, slicers, do_on_device)
        logits = torch.zeros((self.label_manager.num_segmentation_heads, *data.shape[1:]), dtype=torch.half)
        weights = torch.zeros(data.shape[1:], dtype=torch.half)
        patch = tuple(self.configuration_manager.patch_size)
        gaussian = compute_gaussian(patch, sigma_scale=1.0 / 8, value_scaling_factor=10, device=self.device)
        wide = gaussian.float()
        for tile in slicers:
            workon = torch.clone(data[tile][None], memory_format=torch.contiguous_format)
            prediction = self._internal_maybe_mirror_and_predict(workon)[0]
            prediction *= wide
            prediction += logits[tile]
            logits[tile] = prediction
            weights[tile[1:]] += gaussian
        for head in logits:  # one at a time: no second array of all heads
            torch.div(head, weights, out=head)
            if torch.isinf(head).any():
                raise RuntimeError(INFINITE)
        return logits
