"""Plans for machines without a GPU: networks and patches that learn within minutes on two cores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from dynamic_network_architectures.building_blocks.helper import convert_dim_to_conv_op, get_matching_instancenorm
from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props

from nnunet_ext.planning.axial import ExtPlanner
from nnunet_ext.settings import PLANS_BLOCK

TRAINING: dict[str, Any] = {
    "optimizer": "AdamW",
    "initial_lr": 2e-3,
    "lr_update": "iteration",
    "oversample_foreground_percent": 0.67,
    "deep_supervision": False,
    "num_epochs": 6,
    "num_iterations_per_epoch": 250,
    "num_val_iterations_per_epoch": 5,
    "save_every": 1,
    "mirror_at_prediction": False,
    "cpu_threads": 1,
}
"""Found in benchmarks/cpu_preset.py; few long epochs, because the end of an epoch costs 0.7 s whatever its length."""


SLAB = 0.5
"""Height of a 3D patch over its width, in mm: wide patches see both sides of the body at once."""


def patch_within(budget_vox: int, median_shape: Sequence[float], spacing: Sequence[float], step: int = 8) -> list[int]:
    """The largest patch within a voxel budget and the images: square in 2D, in 3D a slab half as high as wide, in mm.

    Args:
        budget_vox: Most voxels of the patch.
        median_shape: Median image size in voxels; no edge is longer than this, rounded up to ``step``.
        spacing: Voxel size in mm, same axis order, head-foot first in 3D.
        step: Every edge is a multiple of it (three poolings need 8).
    """
    sizes_mm, limit = np.asarray(spacing), np.ceil(np.asarray(median_shape) / step) * step
    shape = np.array([SLAB, 1.0, 1.0][-len(sizes_mm) :])
    best = np.full(len(limit), step)
    for width_mm in np.linspace(step * sizes_mm.min(), float((limit * sizes_mm / shape).max()), 400):
        patch = np.clip(np.floor(width_mm * shape / sizes_mm / step + 0.5) * step, step, limit)
        if best.prod() < patch.prod() <= budget_vox:
            best = patch.astype(int)
    return [int(n) for n in best]


class ExtPlannerCPU(ExtPlanner):
    """Small networks, patches that fit the data, and the training settings that learn fastest on two cores.

    Use it without a GPU, for a first result in minutes or to try a pipeline; with one use ``default``. How the numbers
    were found is in ``benchmarks/RESULTS.md`` ("CPU preset").
    """

    default_plans_name = "nnUNetPlansExtCPU"
    budget_vox = {2: 72 * 72, 3: 32 * 48 * 48}  # noqa: RUF012 (read only)
    base_features = {2: 16, 3: 16}  # noqa: RUF012 (read only)
    batch_size = {2: 8, 3: 2}  # noqa: RUF012 (read only)
    convolutions_per_stage = 1
    max_pools = 3

    def __init__(self, dataset_name_or_id: str | int, **kwargs: Any) -> None:
        super().__init__(dataset_name_or_id, **kwargs)
        self.lowres_creation_threshold = 0.0  # one 3D configuration is what a small machine trains

    def get_plans_for_configuration(
        self,
        spacing: Any,
        median_shape: Any,
        data_identifier: str,
        approximate_n_voxels_dataset: float,
        _cache: dict[str, Any],
    ) -> dict[str, Any]:
        """One configuration, in nnU-Net's own form, with the training settings in its ``nnunet_ext`` block."""
        dim = len(spacing)
        patch = patch_within(self.budget_vox[dim], median_shape[-dim:], spacing)
        _, strides, kernels, patch, _ = get_pool_and_conv_props(spacing, patch, 4, self.max_pools)
        resample_data, data_kwargs, resample_seg, seg_kwargs = self.determine_resampling()
        resample_softmax, softmax_kwargs = self.determine_segmentation_softmax_export_fn()
        schemes, masked = self.determine_normalization_scheme_and_whether_mask_is_used_for_norm()
        return {
            "data_identifier": data_identifier,
            "preprocessor_name": self.preprocessor_name,
            "batch_size": self.batch_size[dim],
            "patch_size": patch,
            "median_image_size_in_voxels": median_shape,
            "spacing": spacing,
            "normalization_schemes": schemes,
            "use_mask_for_norm": masked,
            "resampling_fn_data": resample_data.__name__,
            "resampling_fn_seg": resample_seg.__name__,
            "resampling_fn_data_kwargs": data_kwargs,
            "resampling_fn_seg_kwargs": seg_kwargs,
            "resampling_fn_probabilities": resample_softmax.__name__,
            "resampling_fn_probabilities_kwargs": softmax_kwargs,
            "architecture": self._architecture(dim, strides, kernels),
            PLANS_BLOCK: dict(TRAINING),
        }

    def save_plans(self, plans: dict[str, Any]) -> None:
        """As stock, with the Dice of the whole batch: of two small patches one often lacks an organ."""
        for configuration in plans["configurations"].values():
            configuration["batch_dice"] = True
        super().save_plans(plans)

    def _architecture(self, dim: int, strides: Sequence[Any], kernels: Sequence[Any]) -> dict[str, Any]:
        stages, conv = len(strides), convert_dim_to_conv_op(dim)
        norm = get_matching_instancenorm(conv)
        return {
            "network_class_name": self.UNet_class.__module__ + "." + self.UNet_class.__name__,
            "arch_kwargs": {
                "n_stages": stages,
                "features_per_stage": [self.base_features[dim] * 2**i for i in range(stages)],
                "conv_op": conv.__module__ + "." + conv.__name__,
                "kernel_sizes": kernels,
                "strides": strides,
                "n_conv_per_stage": [self.convolutions_per_stage] * stages,
                "n_conv_per_stage_decoder": [self.convolutions_per_stage] * (stages - 1),
                "conv_bias": True,
                "norm_op": norm.__module__ + "." + norm.__name__,
                "norm_op_kwargs": {"eps": 1e-5, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        }
