"""nnU-Net's planner, with axial slices kept axial."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import SimpleITK as sitk  # noqa: N813 (the field's name for it)
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

from nnunet_ext.errors import InputError
from nnunet_ext.geometry import HEAD_FOOT, body_axis


class ExtPlanner(ExperimentPlanner):
    """Plans like nnU-Net, but with the head-foot axis first, so that 2D models read axial slices.

    Stock puts the coarsest axis first. On scans whose slices are finer than their pixels (OpenKBP: 2.5 mm slices,
    3.9 mm pixels) it then cuts "2D slices" coronally.

    Raises:
        InputError: the cases disagree on the head-foot axis, or the reader keeps no orientation.
    """

    default_plans_name = "nnUNetPlansExt"
    keep_axial = True

    def __init__(self, dataset_name_or_id: str | int, **kwargs: Any) -> None:
        kwargs.setdefault("plans_name", self.default_plans_name)
        super().__init__(dataset_name_or_id, **kwargs)

    def determine_transpose(self) -> tuple[list[int], list[int]]:
        """Head-foot first, the other two in their order; stock's choice without ``keep_axial``."""
        if not self.keep_axial or self.suppress_transpose:
            forward, backward = super().determine_transpose()
            return [int(i) for i in forward], [int(i) for i in backward]
        first = self._head_foot_axis()
        forward = [first, *(axis for axis in range(3) if axis != first)]
        return forward, [forward.index(axis) for axis in range(3)]

    def _head_foot_axis(self) -> int:
        found: dict[int, list[str]] = {}
        for case, files in self.dataset.items():
            direction = direction_read(Path(files["images"][0]), self.determine_reader_writer().__name__)
            found.setdefault(body_axis(direction, HEAD_FOOT)[0], []).append(case)
        if len(found) != 1:
            groups = "; ".join(f"axis {axis}: {', '.join(cases[:5])}" for axis, cases in sorted(found.items()))
            raise InputError(
                f"the cases of {self.dataset_name} disagree on the head-foot axis ({groups}); set "
                '"overwrite_image_reader_writer": "SimpleITKIOWithReorient" in dataset.json.'
            )
        return next(iter(found))


def direction_read(path: Path, reader: str) -> tuple[float, ...]:
    """Direction cosines of a file as nnU-Net's reader will see them, from the header alone.

    Args:
        path: Image file.
        reader: Class name of the reader; the reorienting ones turn every image to RAS first.
    """
    file = sitk.ImageFileReader()
    file.SetFileName(str(path))
    file.ReadImageInformation()
    if file.GetDimension() != 3:
        raise InputError(f"{path} is not a 3D volume, so it has no axial slices; plan with --no-axial.")
    tiny = sitk.Image([1, 1, 1], sitk.sitkUInt8)
    tiny.SetDirection(file.GetDirection())
    return tuple((sitk.DICOMOrient(tiny, "RAS") if "Reorient" in reader else tiny).GetDirection())
