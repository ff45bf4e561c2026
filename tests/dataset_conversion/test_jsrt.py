"""The layout of JSRT and SCR, drawn: the films themselves may not be redistributed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from dataset_conversion.jsrt import ORGANS, PAINTING, open_source
from nnunet_ext.cli.convert import command
from nnunet_ext.conversion.convert import convert
from nnunet_ext.conversion.loading import load_case
from nnunet_ext.conversion.overlap import has_bit
from nnunet_ext.errors import CasesFailedError, InputError
from nnunet_ext.evaluation.dataset import read_organs
from nnunet_ext.io.nifti import read_image, read_labels

EDGE = 1024
FOLDERS = {"Lung_L": "left lung", "Lung_R": "right lung", "Heart": "heart", "Clavicle_L": "left clavicle",
           "Clavicle_R": "right clavicle"}  # fmt: skip
PICTURE = {
    "Lung_R": (slice(200, 800), slice(200, 440)),
    "Lung_L": (slice(200, 800), slice(600, 840)),  # the patient's left is on the right of a film
    "Heart": (slice(520, 760), slice(460, 640)),
    "Clavicle_R": (slice(180, 240), slice(240, 480)),
    "Clavicle_L": (slice(180, 240), slice(560, 800)),
}


def draw_masks() -> dict[str, np.ndarray]:
    masks = {organ: np.zeros((EDGE, EDGE), bool) for organ in ORGANS}
    for organ, place in PICTURE.items():
        masks[organ][place] = True
    return masks


def draw_film(seed: int = 0) -> np.ndarray:
    """12 bits at 2048 pixels, as JSRT stores them: a dark (air-filled) lung has a high value."""
    film = np.full((EDGE, EDGE), 1000)
    masks = draw_masks()
    film[masks["Lung_L"] | masks["Lung_R"]] = 3000
    film = film + np.random.default_rng(seed).integers(0, 100, film.shape)
    return np.kron(film, np.ones((2, 2))).astype(np.uint16)


def save_masks(folder: Path, name: str, ending: str = ".gif", underscore: bool = False) -> None:
    for organ, mask in draw_masks().items():
        structure = FOLDERS[organ].replace(" ", "_") if underscore else FOLDERS[organ]
        path = folder / structure / f"{name}{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((mask * 255).astype(np.uint8)).save(path)


def save_film(folder: Path, name: str, seed: int = 0) -> Path:
    path = folder / "All247images" / f"{name}.IMG"
    path.parent.mkdir(parents=True, exist_ok=True)
    draw_film(seed).astype(">u2").tofile(path)
    return path


def save_copy(folder: Path, name: str, edge: int, film: np.ndarray, inverted_palette: bool = False) -> Path:
    step = len(film) // edge
    pixels = (film[::step, ::step] / 16).astype(np.uint8)
    picture = Image.fromarray(pixels)
    if inverted_palette:
        picture = Image.fromarray(255 - pixels).convert("P")
        picture.putpalette([value for grey in range(255, -1, -1) for value in (grey,) * 3])
    path = folder / "jsrt_images" / "images" / f"{name}.IMG.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
    return path


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three raw films in the official layout."""
    source = tmp_path_factory.mktemp("jsrt")
    for i, name in enumerate(("JPCLN001", "JPCLN002", "JPCNN001")):
        save_film(source, name, seed=i)
        save_masks(source / "scratch" / f"fold{1 + i % 2}" / "masks", name)
    return source


@pytest.fixture
def folder(drawn: Path, tmp_path: Path) -> Path:
    """A copy of them that a test may damage."""
    return Path(shutil.copytree(drawn, tmp_path / "source"))


def converted(folder: Path, tmp_path: Path, size: str = "256") -> tuple[Path, dict]:
    done = convert(open_source(folder, size), tmp_path / "raw", 301, "Jsrt", quiet=True)
    assert not done.failed
    return done.folder, done.report


def refused(folder: Path, tmp_path: Path) -> dict[str, str]:
    return convert(open_source(folder), tmp_path / "raw", 301, "Jsrt", quiet=True).failed


def case_files(folder: Path, name: str) -> tuple[Path, Path]:
    """Image and labels, wherever the split put them."""
    (image,) = folder.glob(f"images*/{name}_0000.nii.gz")
    (labels,) = folder.glob(f"labels*/{name}.nii.gz")
    return image, labels


class TestFilm:
    def test_lungs_are_dark_and_left_lies_at_larger_x(self, folder, tmp_path):
        dataset, report = converted(folder, tmp_path)
        image, labels = case_files(dataset, "JPCLN001")
        pixels, grid = read_image(image)
        codes, label_grid = read_labels(labels)
        assert grid == label_grid
        assert grid.shape == (1, 256, 256)
        assert grid.spacing_mm[1:] == pytest.approx((1.4, 1.4))
        assert grid.spacing_mm[0] > grid.spacing_mm[1]  # nnU-Net takes the largest edge as the slice axis
        lung = pixels[has_bit(codes, 1) | has_bit(codes, 2)]
        assert lung.mean() == pytest.approx(4095 - 3049.5, abs=2)
        assert np.argwhere(has_bit(codes, 1))[:, 2].mean() > np.argwhere(has_bit(codes, 2))[:, 2].mean()
        assert list(report["cases"]["JPCLN001"]["notes"]) == ["bright lungs (a negative), grey scale turned"]

    def test_a_positive_is_left_as_it_is(self, folder, tmp_path):
        (4095 - draw_film()).astype(">u2").tofile(folder / "All247images" / "JPCLN001.IMG")
        dataset, report = converted(folder, tmp_path)
        codes, _ = read_labels(case_files(dataset, "JPCLN001")[1])
        lung = read_image(case_files(dataset, "JPCLN001")[0])[0][has_bit(codes, 1)]
        assert lung.mean() == pytest.approx(4095 - 3049.5, abs=2)
        assert not report["cases"]["JPCLN001"]["notes"]

    def test_every_structure_survives_its_overlaps(self, folder, tmp_path):
        dataset, _ = converted(folder, tmp_path)
        codes, _ = read_labels(case_files(dataset, "JPCNN001")[1])
        for organ, mask in draw_masks().items():
            assert np.array_equal(has_bit(codes[0], ORGANS[organ]), mask[2::4, 2::4]), organ

    @pytest.mark.parametrize(("size", "step"), [("128", 8), ("512", 2)])
    def test_other_sizes(self, folder, tmp_path, size, step):
        dataset, _ = converted(folder, tmp_path, size)
        codes, grid = read_labels(case_files(dataset, "JPCNN001")[1])
        assert grid.spacing_mm[1] == pytest.approx(0.175 * 2048 / int(size))
        assert np.array_equal(has_bit(codes[0], 3), draw_masks()["Heart"][step // 2 :: step, step // 2 :: step])


class TestDatasetJson:
    def test_regions_say_what_the_codes_mean(self, folder, tmp_path):
        dataset, _ = converted(folder, tmp_path)
        content = json.loads((dataset / "dataset.json").read_text())
        assert content["regions_class_order"] == list(PAINTING)
        organs = read_organs(dataset / "dataset.json").organs
        codes, _ = read_labels(case_files(dataset, "JPCLN002")[1])
        for organ, number in ORGANS.items():
            assert np.array_equal(np.isin(codes, organs[organ]), has_bit(codes, number))

    def test_probabilities_hold_every_overlap_and_the_exported_map_the_clavicles(self, folder, tmp_path):
        from nnunetv2.utilities.label_handling.label_handling import LabelManager

        dataset, _ = converted(folder, tmp_path)
        content = json.loads((dataset / "dataset.json").read_text())
        manager = LabelManager(content["labels"], content["regions_class_order"])
        codes, _ = read_labels(case_files(dataset, "JPCLN002")[1])
        perfect = np.stack([np.isin(codes, region) for region in manager.foreground_regions]).astype(np.float32)
        assert perfect.shape[0] == 5
        exported = manager.convert_probabilities_to_segmentation(perfect)
        for probability, number in zip(perfect, ORGANS.values(), strict=True):
            assert np.array_equal(probability > 0.5, has_bit(codes, number))  # what scores are made from
        for organ in ("Clavicle_L", "Clavicle_R"):
            assert np.array_equal(has_bit(exported, ORGANS[organ]), has_bit(codes, ORGANS[organ]))
        assert not np.array_equal(exported, codes)  # why the exported map is not what is scored

    def test_mirroring_swaps_every_code(self, folder, tmp_path):
        dataset, _ = converted(folder, tmp_path)
        pairs = json.loads((dataset / "dataset.json").read_text())["nnunet_ext"]["swap_pairs"]
        swapped = dict(pairs) | {b: a for a, b in pairs}
        for code in range(1, 32):
            l, r, h, cl, cr = (code >> bit & 1 for bit in range(5))  # noqa: E741
            assert swapped.get(code, code) == r + 2 * l + 4 * h + 8 * cr + 16 * cl
        assert len(swapped) == 2 * len(pairs)

    def test_all_structures_count_as_contoured(self, folder, tmp_path):
        dataset, _ = converted(folder, tmp_path)
        present = json.loads((dataset / "present_labels.json").read_text())
        assert all(set(codes) == set(range(1, 32)) for codes in present.values())

    def test_a_third_of_the_films_is_set_aside(self, folder):
        source = open_source(folder)
        assert round(source.test_share * 247) == 82

    def test_test_films_keep_their_labels(self, folder, tmp_path):
        dataset, report = converted(folder, tmp_path)
        assert (report["training_cases"], report["test_cases"]) == (2, 1)
        assert len(list((dataset / "labelsTs").iterdir())) == 1


class TestCopies:
    @pytest.mark.parametrize("edge", [1024, 512])
    @pytest.mark.parametrize("inverted", [False, True])
    def test_png_copies_are_read_and_flagged(self, tmp_path, edge, inverted):
        for i, name in enumerate(("JPCLN001", "JPCLN002")):
            save_copy(tmp_path / "source" / "JSRT", name, edge, draw_film(i), inverted)
            save_masks(tmp_path / "source" / "JSRT" / "masks" / "masks", name, ".png", underscore=True)
        dataset, report = converted(tmp_path / "source", tmp_path)
        assert report["warnings"][0] == "2 of 2 films are 8-bit PNG copies, not the 12-bit originals"
        assert f"8-bit copy of {edge}×{edge} pixels" in report["cases"]["JPCLN001"]["notes"]
        assert json.loads((dataset / "dataset.json").read_text())["nnunet_ext"]["films"]["png_8_bit"] == 2
        codes, _ = read_labels(case_files(dataset, "JPCLN001")[1])
        pixels, _ = read_image(case_files(dataset, "JPCLN001")[0])
        assert pixels[has_bit(codes, 1)].mean() == pytest.approx(255 - 3049.5 / 16, abs=2)

    def test_the_raw_film_is_preferred(self, folder):
        save_copy(folder, "JPCLN001", 1024, draw_film())
        assert all(case.image.suffix == ".IMG" for case in open_source(folder).cases)


@pytest.fixture
def copies(tmp_path: Path) -> Path:
    """Two PNG films with GIF masks."""
    for i, name in enumerate(("JPCLN001", "JPCLN002")):
        save_copy(tmp_path / "source", name, 512, draw_film(i))
        save_masks(tmp_path / "source" / "fold1" / "masks", name)
    return tmp_path / "source"


def film_of(folder: Path, name: str = "JPCLN001") -> Path:
    return folder / "jsrt_images" / "images" / f"{name}.IMG.png"


def save_lungs(path: Path, *, smoothed: bool = False) -> None:
    """A mask that belongs to no known structure."""
    masks = draw_masks()
    pixels = (masks["Lung_L"] | masks["Lung_R"])[::2, ::2] * 255.0
    if smoothed:
        pixels = sum(np.roll(pixels, shift, axis=1) for shift in range(10)) / 10
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


class TestSeveralPicturesOfOneName:
    def test_a_name_that_goes_on_is_another_picture(self, copies):
        save_lungs(film_of(copies, "JPCLN001-lungs"))
        assert [case.image for case in open_source(copies).cases] == [film_of(copies), film_of(copies, "JPCLN002")]

    @pytest.mark.parametrize("place", ["Masks/both", "both", "Lungs"])
    def test_a_mask_of_no_known_structure_is_no_film(self, copies, place):
        save_lungs(copies / place / "JPCLN001.png")
        case = open_source(copies).cases[0]
        assert (case.image, case.fault) == (film_of(copies), "")

    def test_nor_is_it_one_where_the_film_is_missing(self, copies, tmp_path):
        film_of(copies).unlink()
        save_lungs(copies / "both" / "JPCLN001.png")
        assert "JPCLN001.png has only 2 grey values, so it is a mask" in str(error_of(copies, 0))
        shutil.move(copies / "both", copies / "masks" / "both")
        assert [case.identifier for case in open_source(copies).cases] == ["JPCLN002"]

    def test_a_smoothed_mask_beside_the_film_is_refused(self, copies):
        save_lungs(copies / "both" / "JPCLN001.png", smoothed=True)
        assert "both could be the film" in open_source(copies).cases[0].fault

    def test_two_films_that_differ_are_both_named(self, copies, tmp_path):
        other = copies / "BSE_JSRT" / "JPCLN001.png"
        other.parent.mkdir()
        Image.open(film_of(copies)).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(other)
        first, second = open_source(copies).cases
        assert (
            first.fault == f"{other} and {film_of(copies)} differ, and both could be the film; leave one of them there."
        )
        assert not second.fault

    def test_equal_files_are_one(self, copies):
        (copies / "again" / "heart").mkdir(parents=True)
        shutil.copy(film_of(copies), copies / "again" / "JPCLN001.png")
        shutil.copy(copies / "fold1" / "masks" / "heart" / "JPCLN001.gif", copies / "again" / "heart")
        assert not any(case.fault for case in open_source(copies).cases)

    def test_the_same_picture_in_another_format_is_one(self, copies):
        """The official GIFs and a tree of PNG copies; a film that was saved once more."""
        for gif in sorted((copies / "fold1" / "masks").rglob("*.gif")):
            png = copies / "masks_png" / gif.parent.name / f"{gif.stem}.png"
            png.parent.mkdir(parents=True, exist_ok=True)
            with Image.open(gif) as picture:
                Image.fromarray(np.asarray(picture.convert("L")) // 255).save(png)
        (copies / "again").mkdir()
        with Image.open(film_of(copies)) as picture:
            picture.save(copies / "again" / "JPCLN001.png", compress_level=0)
        assert [case.fault for case in open_source(copies).cases] == ["", ""]

    def test_masks_of_two_observers_are_not_chosen_between(self, copies):
        shutil.copytree(copies / "fold1" / "masks", copies / "observer2")
        heart = copies / "observer2" / "heart" / "JPCLN002.gif"
        Image.fromarray(np.roll(draw_masks()["Heart"], 9, axis=0)).save(heart)
        first, second = open_source(copies).cases
        assert not first.fault
        assert second.fault == (
            f"{copies / 'fold1' / 'masks' / 'heart' / heart.name} and {heart} differ, and both could be the mask of "
            "Heart; leave one of them there."
        )

    def test_the_png_copy_beside_a_gif_is_no_other_mask(self, copies):
        masks = copies / "fold1" / "masks"
        save_masks(masks, "JPCLN001", ".png")
        (masks / "heart_png").mkdir()
        (masks / "heart" / "JPCLN001.png").rename(masks / "heart_png" / "JPCLN001.png")
        case = open_source(copies).cases[0]
        assert not case.fault
        assert {path.suffix for path in case.masks.values()} == {".gif"}

    @pytest.mark.parametrize("name", ["jpcln001.IMG", "JPCLN001.img", "Jpcln001.Img"])
    def test_names_in_any_case(self, folder, tmp_path, name):
        film = folder / "All247images" / "JPCLN001.IMG"
        film.rename(film.with_name(name))
        heart = folder / "scratch" / "fold1" / "masks" / "heart"
        (heart / "JPCLN001.gif").rename(heart / "jpcln001.GIF")
        dataset, report = converted(folder, tmp_path)
        assert set(report["cases"]) == {"JPCLN001", "JPCLN002", "JPCNN001"}
        assert json.loads((dataset / "dataset.json").read_text())["nnunet_ext"]["films"]["raw_12_bit"] == 3


def error_of(folder: Path, case: int) -> InputError:
    source = open_source(folder)
    with pytest.raises(InputError) as caught:
        load_case(source.cases[case], source)
    return caught.value


class TestFaults:
    def test_a_film_of_another_size(self, folder, tmp_path):
        path = folder / "All247images" / "JPCLN001.IMG"
        path.write_bytes(path.read_bytes()[:-2])
        assert "8388606 bytes, expected 8388608" in refused(folder, tmp_path)["JPCLN001"]

    def test_a_film_in_another_byte_order(self, folder, tmp_path):
        draw_film().astype("<u2").tofile(folder / "All247images" / "JPCLN001.IMG")
        assert "byte order" in refused(folder, tmp_path)["JPCLN001"]

    def test_missing_masks_are_named(self, folder, tmp_path):
        (folder / "scratch" / "fold1" / "masks" / "heart" / "JPCLN001.gif").unlink()
        assert "has no mask of Heart" in refused(folder, tmp_path)["JPCLN001"]

    def test_swapped_sides_are_named(self, folder, tmp_path):
        masks = folder / "scratch" / "fold1" / "masks"
        left, right = (masks / f"{side} lung" / "JPCLN001.gif" for side in ("left", "right"))
        content = left.read_bytes()
        left.write_bytes(right.read_bytes())
        right.write_bytes(content)
        cause = refused(folder, tmp_path)["JPCLN001"]
        assert cause.endswith("swapped or mirrored: exchange the folders, or mirror film and masks.")

    @pytest.mark.parametrize("structures", [list(FOLDERS.values()), ["heart"], ["left lung", "right lung"]])
    def test_inverted_masks_are_named_whatever_their_sides_look_like(self, copies, structures):
        for structure in structures:
            path = copies / "fold1" / "masks" / structure / "JPCLN001.gif"
            organ = next(organ for organ, name in FOLDERS.items() if name == structure)
            Image.fromarray(~draw_masks()[organ]).save(path)
        cause = str(error_of(copies, 0))
        assert "of the picture, so it is inverted; turn its grey values" in cause
        assert f"{structures[0]}/JPCLN001.gif covers" in cause

    def test_a_speck_is_no_mask(self, copies):
        speck = np.zeros((EDGE, EDGE), bool)
        speck[3, 3] = True
        Image.fromarray(speck).save(copies / "fold1" / "masks" / "heart" / "JPCLN001.gif")
        assert "JPCLN001.gif has no pixel left at 256×256" in str(error_of(copies, 0))

    def test_a_mask_of_another_size_an_empty_and_a_smoothed_one(self, folder, tmp_path):
        heart = folder / "scratch" / "fold1" / "masks" / "heart"
        Image.fromarray(np.eye(300, dtype=np.uint8) * 255).save(heart / "JPCLN001.gif")
        Image.fromarray(np.zeros((EDGE, EDGE), np.uint8)).save(heart / "JPCNN001.gif")
        grey = np.linspace(0, 255, EDGE * EDGE).reshape(EDGE, EDGE).astype(np.uint8)
        Image.fromarray(grey).save(folder / "scratch" / "fold2" / "masks" / "heart" / "JPCLN002.gif")
        source = open_source(folder)
        for case, part in zip(source.cases, ("300×300 pixels", "256 grey values", "empty or full"), strict=True):
            with pytest.raises(InputError, match=part):
                load_case(case, source)

    def test_a_damaged_picture(self, folder, tmp_path):
        path = folder / "scratch" / "fold1" / "masks" / "heart" / "JPCLN001.gif"
        path.write_bytes(b"GIF89a")
        assert "damaged" in refused(folder, tmp_path)["JPCLN001"]

    def test_a_folder_without_films_or_without_masks(self, folder, tmp_path):
        with pytest.raises(InputError, match="no SCR mask"):
            open_source(folder / "All247images")
        with pytest.raises(InputError, match="no film"):
            open_source(folder / "scratch")


def test_the_command_converts_and_names_bad_films(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    (folder / "scratch" / "fold1" / "masks" / "heart" / "JPCLN001.gif").unlink()
    result = CliRunner().invoke(command, ["jsrt", str(folder), "-d", "301"])
    assert isinstance(result.exception, CasesFailedError)
    assert "Lung_L" in result.output
    assert "JPCLN001" in str(result.exception)
    assert (tmp_path / "raw" / "Dataset301_Jsrt" / "dataset.json").exists()


def test_the_command_has_no_option_for_what_cannot_be(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    result = CliRunner().invoke(command, ["jsrt", str(folder), "-d", "301", "--empty", "absent"])
    assert result.exit_code == 2
    assert "No such option" in result.output
    assert "so there is no ``--empty`` here" in " ".join(CliRunner().invoke(command, ["jsrt", "--help"]).output.split())
