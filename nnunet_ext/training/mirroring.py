"""Trainers that know left from right: one never mirrors across, one mirrors and swaps the labels."""

from __future__ import annotations

import math
from typing import Any

from batchgenerators.utilities.file_and_folder_operations import join, load_pickle
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from nnunetv2.training.data_augmentation.compute_initial_patch_size import get_patch_size
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

from nnunet_ext.errors import InputError
from nnunet_ext.labels import partner, swap_pairs
from nnunet_ext.training.base import nnUNetTrainerExt
from nnunet_ext.training.laterality import direction_of, has_side, lateral_axis, legal_mirror_axes, rotated_plane
from nnunet_ext.transforms.mirror import MirrorSwapTransform

LIMITED_ROTATION_DEG = 15.0
"""nnU-Net's own limit for elongated 2D patches; far from the ±90° where a mirror turns into another one."""


class nnUNetTrainerExtNoMirror(nnUNetTrainerExt):
    """Trains without left-right mirroring, wherever left-right lies in the arrays.

    Use it when organs have a side. The left-right axis comes from the cases' direction cosines and the plans'
    transpose; the anterior-posterior mirror is dropped as well where in-plane rotation reaches ±90°
    (flip_y ∘ R180 = flip_x), unless ``limit_rotation`` keeps rotation at ±15°. The checkpoint carries the legal
    axes, so ``nnUNetv2_predict`` obeys. The setting ``mirror`` frees datasets whose only organ has no side.

    Source: Combined U-Net, StructSeg 2019 ("no x mirroring for 2D and 3D"); the ±90° rule is ours.

    Raises:
        InputError: a case without orientation, more than 20° oblique, or cases that disagree; all named. ``mirror``
            is "all" although the dataset has a left-right pair.
    """

    lateral: int | None = None

    def find_lateral_axis(self) -> int:
        """Left-right axis of the transposed 3D arrays; kept in the plans as ``lateral_axis``."""
        dataset_class = self.dataset_class or infer_dataset_class(self.preprocessed_dataset_folder)
        cases = dataset_class.get_identifiers(self.preprocessed_dataset_folder)
        directions = {
            case: direction_of(load_pickle(join(self.preprocessed_dataset_folder, case + ".pkl"))) for case in cases
        }
        axis = lateral_axis(directions, self.plans_manager.transpose_forward)
        self.plans_manager.plans["lateral_axis"] = axis
        return axis

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple[Any, ...]:  # noqa: N802
        """Stock's choice with the mirror axes restricted to the legal ones."""
        rotation, dummy_2d, initial_patch_size, every = (
            super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        )
        self.lateral = self.find_lateral_axis()
        patch_size = self.configuration_manager.patch_size
        dim = len(patch_size)
        limit = math.radians(LIMITED_ROTATION_DEG)
        if self.settings.limit_rotation and rotation[1] > limit and self.lateral in rotated_plane(dim, dummy_2d):
            rotation = (-limit, limit)
            initial_patch_size = get_patch_size(patch_size, rotation, rotation, rotation, (0.85, 1.25))
            if dummy_2d:
                initial_patch_size[0] = patch_size[0]
        legal = legal_mirror_axes(dim, self.lateral, dummy_2d, math.degrees(rotation[1]))
        if self.mirrors_freely():
            legal = tuple(every)
        self.store_prediction_axes(legal)
        self.print_to_log_file(
            f"left-right is axis {self.lateral} of the transposed array; rotation ±{math.degrees(rotation[1]):.0f}°; "
            f"mirror axes of the patch: {legal or 'none'}"
        )
        return rotation, dummy_2d, initial_patch_size, legal

    def mirrors_freely(self) -> bool:
        """Whether the setting ``mirror`` and the organs of the dataset allow to mirror across left-right."""
        organs = [name for name in self.dataset_json["labels"] if name not in ("background", "ignore")]
        if self.settings.mirror != "all":
            return self.settings.mirror == "auto" and len(organs) == 1 and not has_side(organs[0])
        pairs = [name for name in organs if partner(name) in organs]
        if pairs or self.dataset_json.get("nnunet_ext", {}).get("swap_pairs"):
            raise InputError(
                f'mirror is "all", but {self.plans_manager.dataset_name} has organs on both sides '
                f"({', '.join(pairs) or 'nnunet_ext.swap_pairs'}), which would be confused; "
                'use "legal", or train with nnUNetTrainerExtMirrorSwap.'
            )
        return True

    def checkpoint_content(self) -> dict[str, Any]:
        """As the base, with the left-right axis."""
        content = super().checkpoint_content()
        content["nnunet_ext"]["lateral_axis"] = self.lateral
        return content


class nnUNetTrainerExtMirrorSwap(nnUNetTrainerExtNoMirror):
    """Mirrors left-right and swaps the paired labels, so that both sides learn from each other.

    Use it with few cases and organs that come in pairs; not where the two sides truly differ (liver, heart). Pairs come
    from ``nnunet_ext.swap_pairs`` in dataset.json, else from TG-263 names ending in ``_L`` and ``_R``.

    Raises:
        InputError: the dataset names no pair.
    """

    def paired_labels(self) -> list[tuple[int, int]]:
        """Pairs (left, right) of label numbers of this dataset."""
        listed = self.dataset_json.get("nnunet_ext", {}).get("swap_pairs")
        if listed:
            return [(int(a), int(b)) for a, b in listed]
        names = {name: value for name, value in self.dataset_json["labels"].items() if isinstance(value, int)}
        pairs = swap_pairs(names)
        if not pairs:
            raise InputError(
                f"dataset.json of {self.plans_manager.dataset_name} has no label pair ending in _L and _R; "
                "rename the labels, list nnunet_ext.swap_pairs, or train with nnUNetTrainerExtNoMirror."
            )
        return pairs

    def told_apart(self, contoured: set[int]) -> set[int]:
        """Without labels whose partner was not contoured: nobody can tell afterwards which patch was mirrored."""
        pairs = self.paired_labels()
        partners = dict(pairs) | {b: a for a, b in pairs}
        return {label for label in contoured if partners.get(label, label) in contoured}

    def own_transforms(self) -> list[BasicTransform]:
        """The mirror with label swap, unless slices are cut along left-right."""
        offset = 3 - len(self.configuration_manager.patch_size)
        if self.lateral is None or self.lateral < offset:
            return []
        return [MirrorSwapTransform(self.lateral - offset, self.paired_labels())]
