"""A picture of three axial slices with contours: what a reader looks at before any table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nnunet_ext.evaluation.axial import axes_upright, draw_outline, draw_slice, region_around, upright
from nnunet_ext.geometry import Grid
from nnunet_ext.io.atomic import atomic_path
from nnunet_ext.labels import colours

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WINDOW_HU = (-160.0, 240.0)
"""The usual soft-tissue window, level 40, width 400."""

Labels = NDArray[np.integer]


def draw_overlay(
    path: Path,
    image: NDArray[np.float32],
    grid: Grid,
    contours: Mapping[str, Labels],
    organs: Mapping[str, int],
    title: str,
    window_hu: tuple[float, float] = WINDOW_HU,
) -> None:
    """Write a PNG of three axial slices with one line per organ, whole or not at all.

    The slices go through the smallest organ and where most of the others are. The picture is in the
    radiological convention, whatever the orientation of the grid: the patient's right is on its left.

    Args:
        path: The PNG to write.
        image: The CT.
        grid: Grid of the image and of all label maps.
        contours: Name to label map; "reference" is drawn dashed, everything else solid.
        organs: Organ name to label; organs without a voxel are left out.
        title: One line above the slices, without anything that identifies a patient.
        window_hu: Values drawn black and white.

    Shape:
        image, contours: (Z, Y, X).

    Raises:
        ValueError: a label map has another shape than the image, or the grid is too oblique for axial slices.
    """
    from matplotlib.figure import Figure

    for name, labels in contours.items():
        if labels.shape != image.shape:
            raise ValueError(f"{name} {labels.shape} and image {image.shape} differ in shape.")
    order = axes_upright(grid)
    maps = {name: upright(labels, grid, order) for name, labels in contours.items()}
    spacing_mm = tuple(grid.spacing_mm[axis] for axis in order)
    shown = {name: value for name, value in organs.items() if any((m == value).any() for m in maps.values())}
    figure = Figure(figsize=(13.5, 5.4), layout="constrained", facecolor="white")
    _draw_slices(figure, upright(image, grid, order), maps, spacing_mm, shown, window_hu)
    _draw_legend(figure, shown, list(maps))
    figure.suptitle(title, parse_math=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def telling_slices(labels: Labels, organs: Mapping[str, int], count: int = 3) -> list[int]:
    """Axial slices that show the organs: one through the smallest, the others where most of the rest is.

    Args:
        labels: Label map.
        organs: Organ name to label.
        count: Number of slices wanted; fewer come back from a thinner volume.

    Shape:
        labels: (Z, Y, X), head-foot first.
        returns: slice numbers, falling (with z towards the head: head first).
    """
    found = [value for value in organs.values() if (labels == value).any()]
    areas = np.array([(labels == value).sum(axis=(1, 2)) for value in found], dtype=float)
    if not found:
        middle = np.linspace(0, len(labels) - 1, count + 2)[1:-1]
        return sorted({round(float(z)) for z in middle}, reverse=True)
    smallest = areas[areas.sum(axis=1).argmin()]
    chosen = [int(smallest.argmax())]
    cover = areas / areas.max(axis=1, keepdims=True)
    while len(chosen) < min(count, len(labels)):
        chosen.append(_next_slice(cover, chosen))
    return sorted(chosen, reverse=True)


def _next_slice(cover: NDArray[np.float64], chosen: Sequence[int]) -> int:
    """The slice that adds most: organs seen well already count little, slices already chosen not at all."""
    gain = np.maximum(cover - cover[:, chosen].max(axis=1, keepdims=True), 0).sum(axis=0) + 0.01 * cover.sum(axis=0)
    gain[list(chosen)] = -1
    return int(gain.argmax())


def _draw_slices(
    figure: Figure,
    image: NDArray[Any],
    maps: Mapping[str, Labels],
    spacing_mm: tuple[float, ...],
    organs: Mapping[str, int],
    window_hu: tuple[float, float],
) -> None:
    guide = maps.get("reference", next(iter(maps.values()), np.zeros(image.shape, dtype=np.uint8)))
    rows, columns = region_around(np.any([m > 0 for m in maps.values()], axis=0), spacing_mm)
    slices = telling_slices(guide, organs)
    for ax, z in zip(np.atleast_1d(figure.subplots(1, len(slices))), slices, strict=True):
        draw_slice(ax, image[z, rows, columns], spacing_mm, window_hu)
        for name, labels in maps.items():
            for organ, rgb in colours(organs).items():
                draw_outline(ax, labels[z, rows, columns] == organs[organ], rgb, _line(name))
        ax.set_title(f"slice {z + 1} of {len(image)}", fontsize=9)


def _draw_legend(figure: Figure, organs: Mapping[str, int], names: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=rgb, label=organ) for organ, rgb in colours(organs).items()]
    handles += [Line2D([], [], color="black", linestyle=_line(name), label=name) for name in names]
    legend = figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 8), fontsize=9)
    for text in legend.get_texts():
        text.set_parse_math(False)


def _line(name: str) -> str:
    return "--" if name == "reference" else "-"
