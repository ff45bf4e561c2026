"""Region predictions back in whole images, in the region's organ numbers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_ext.geometry import Box
from nnunet_ext.io.nifti import read_labels, write_labels
from nnunet_ext.io.orientation import from_lps, to_lps
from nnunet_ext.locations import FILE_ENDING
from nnunet_ext.roi.boxes import crop, paste
from nnunet_ext.roi.region import Region, box_from_entry
from nnunet_ext.roi.sides import Part, frame_labels, parts_of


def renumbered(labels: NDArray[np.integer], numbers: Mapping[int, int]) -> NDArray[np.uint8]:
    """Label map with old numbers replaced by new ones; numbers that are not listed become background."""
    table = np.zeros(int(max([int(labels.max(initial=0)), *numbers])) + 1, dtype=np.uint8)
    for old, new in numbers.items():
        table[old] = new
    renumbered_labels: NDArray[np.uint8] = table[labels]
    return renumbered_labels


def pasted(
    whole: NDArray[np.uint8], labels: NDArray[np.integer], box: Box, part: Part, region: Region
) -> NDArray[np.uint8]:
    """A whole-image map with the network's map of one part put in its place.

    Only foreground is written: the region of the other side may overlap.

    Shape:
        whole: (Z, Y, X); labels: box.shape, as the network gave it (the right side mirrored).
        returns: as whole, in ``frame_labels``.
    """
    numbers = frame_labels(region)
    mine = renumbered(part.seen(labels), {part.organs[organ]: numbers[organ] for organ in part.organs})
    before = crop(whole, box)
    return paste(whole, np.where(mine > 0, mine, before), box)


def paste_predictions(sidecar: Mapping[str, Any], validation: Path, grids: Path, target: Path) -> None:
    """Put the validation predictions of a region model back into whole images, on the grid of the source's labels.

    Args:
        sidecar: Content of ``regions.json``.
        validation: Folder with the predictions of one fold.
        grids: Folder with ``<case>.nii.gz`` of the source dataset, for their grids.
        target: Folder to write.
    """
    region = Region.model_validate(sidecar["region"])
    parts = {part.name: part for part in parts_of(region)}
    files: dict[str, list[tuple[Path, Mapping[str, Any]]]] = {}
    for path in sorted(validation.glob(f"*{FILE_ENDING}")):
        entry = sidecar["cases"][path.name.removesuffix(FILE_ENDING)]
        files.setdefault(entry["case"], []).append((path, entry))
    for case, found in files.items():
        truth, grid = read_labels(grids / f"{case}{FILE_ENDING}")
        whole = np.zeros(to_lps(truth, grid)[0].shape, dtype=np.uint8)
        for path, entry in found:
            whole = pasted(whole, read_labels(path)[0], box_from_entry(entry), parts[entry["part"]], region)
        write_labels(target / f"{case}{FILE_ENDING}", from_lps(whole, grid), grid)
