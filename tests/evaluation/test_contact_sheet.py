from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from nnunet_ext.evaluation import contact_sheet
from nnunet_ext.evaluation.contact_sheet import DRAWN, FOUND, Tile, draw_contact_sheet, worst_slice
from nnunet_ext.geometry import Grid

SPACING_MM = (3.0, 1.0, 1.0)
GRID = Grid((10, 60, 80), SPACING_MM)
WINDOW = (-100.0, 200.0)


def block(z: slice, y: slice, x: slice) -> NDArray[np.bool_]:
    mask = np.zeros(GRID.shape, bool)
    mask[z, y, x] = True
    return mask


def tile() -> Tile:
    """An organ at the patient's left whose last slices, 6 and 7, nobody drew; in slice 7 the model sees it shorter.

    Every voxel of the image has a value of its own.
    """
    contour = block(slice(2, 6), slice(20, 30), slice(50, 60))
    prediction = block(slice(2, 7), slice(20, 30), slice(50, 60)) | block(slice(7, 8), slice(20, 25), slice(50, 60))
    image = np.arange(np.prod(GRID.shape), dtype=np.float32).reshape(GRID.shape)
    return Tile("case_1  Parotid_L", image, GRID, contour, prediction, WINDOW)


class Page:
    """What was drawn, tile by tile: the pixels with their spacing and window, and the outlines in their colours."""

    def __init__(self) -> None:
        self.slices: list[tuple[NDArray[Any], tuple[float, ...], tuple[float, float]]] = []
        self.outlines: list[tuple[NDArray[np.bool_], str, str]] = []

    def draw_slice(self, ax: Any, pixels: Any, spacing_mm: Any, window: Any) -> None:
        self.slices.append((pixels, tuple(spacing_mm), window))

    def draw_outline(self, ax: Any, mask: Any, colour: str, line: str) -> None:
        self.outlines.append((mask, colour, line))


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Page:
    page = Page()
    monkeypatch.setattr(contact_sheet, "draw_slice", page.draw_slice)
    monkeypatch.setattr(contact_sheet, "draw_outline", page.draw_outline)
    return page


def drawn(page: Page, tile: Tile, path: Path) -> Page:
    page.slices.clear()
    page.outlines.clear()
    draw_contact_sheet(path / "a.png", [tile], "Contours")
    return page


def test_the_slice_that_differs_most_is_drawn_with_a_margin(page: Page, tmp_path: Path) -> None:
    shown = tile()
    drawn(page, shown, tmp_path)
    (pixels, spacing_mm, window) = page.slices[0]
    assert np.array_equal(pixels, shown.image[6, 0:50, 30:80])  # 20 mm around rows 20 to 29, columns 50 to 59
    assert (spacing_mm, window) == (SPACING_MM, WINDOW)


def test_contour_and_prediction_have_their_own_colours_and_lines(page: Page, tmp_path: Path) -> None:
    shown = replace(tile(), contour=block(slice(2, 8), slice(20, 28), slice(50, 60)))
    drawn(page, shown, tmp_path)
    (contour, *look), (prediction, *other) = page.outlines
    assert (tuple(look), tuple(other)) == (DRAWN, FOUND)
    assert np.array_equal(contour, shown.contour[7, 0:48, 30:80])
    assert np.array_equal(prediction, shown.prediction[7, 0:48, 30:80])


def test_the_legend_names_them_rightly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *given, **options: figures.append(self))
    draw_contact_sheet(tmp_path / "a.png", [tile()], "Contours")
    handles = {line.get_label(): (line.get_color(), line.get_linestyle()) for line in figures[0].legends[0].get_lines()}
    assert handles == {"contour": DRAWN, "prediction": FOUND}
    assert figures[0].axes[0].get_title() == "case_1  Parotid_L\nslice 7 of 10"


def test_the_page_does_not_depend_on_how_the_voxels_are_stored(page: Page, tmp_path: Path) -> None:
    """The same patient stored from left to right, in sagittal slices."""
    shown = tile()
    end = GRID.points_mm([(0, 0, GRID.shape[2] - 1)])[0]
    direction = (0.0, 0.0, -1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0)  # index x along z, y along y, z along −x
    grid = Grid(GRID.shape[::-1], SPACING_MM[::-1], (float(end[0]), 0.0, 0.0), direction)
    arrays = (shown.image, shown.contour, shown.prediction)
    image, contour, prediction = (np.ascontiguousarray(a[:, :, ::-1].transpose(2, 1, 0)) for a in arrays)
    upright = drawn(page, shown, tmp_path)
    expected = [*upright.slices], [*upright.outlines]
    stored = drawn(page, Tile(shown.title, image, grid, contour, prediction, WINDOW), tmp_path)
    for before, after in zip(expected, (stored.slices, stored.outlines), strict=True):
        assert len(before) == len(after)
        for (a, *rest), (b, *others) in zip(before, after, strict=True):
            assert np.array_equal(a, b)
            assert rest == others


def test_specks_that_do_not_count_choose_neither_slice_nor_crop_but_are_drawn(page: Page, tmp_path: Path) -> None:
    """One in slice 0 is larger than what is missing anywhere; of two in slice 6 one lies beyond the margin."""
    shown = tile()
    specks = block(slice(0, 1), slice(40, 52), slice(2, 16)) | block(slice(6, 7), slice(20, 22), slice(66, 68))
    specks |= block(slice(6, 7), slice(55, 57), slice(4, 7))
    drawn(page, replace(shown, prediction=shown.prediction | specks), tmp_path)
    assert np.array_equal(page.slices[0][0], shown.image[6, 0:50, 30:80])
    assert np.array_equal(page.outlines[1][0], (shown.prediction | specks)[6, 0:50, 30:80])


def test_a_contour_without_prediction_and_one_without_a_contour_are_drawn(page: Page, tmp_path: Path) -> None:
    none, organ = block(slice(0), slice(0), slice(0)), block(slice(4, 6), slice(20, 30), slice(50, 60))
    for contour, prediction in ((organ, none), (none, organ)):
        drawn(page, replace(tile(), contour=contour, prediction=prediction), tmp_path)
        assert np.array_equal(page.slices[0][0], tile().image[4, 0:50, 30:80])


def test_the_middle_slice_is_drawn_where_both_agree() -> None:
    organ = block(slice(3, 8), slice(20, 30), slice(50, 60))
    assert worst_slice(organ, organ) == 5


def test_names_that_look_like_formulas_are_drawn_as_they_are(tmp_path: Path) -> None:
    draw_contact_sheet(tmp_path / "a.png", [replace(tile(), title=r"$\frac$ _^{ a$b$c")], r"$\frac$")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_a_page_without_a_tile_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one tile"):
        draw_contact_sheet(tmp_path / "a.png", [], "Contours")
