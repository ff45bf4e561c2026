"""Loading a recipe: which models, channels, organs and preprocessing; and what is said of an image unlike training."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from nnunet_ext.cli.predict import command
from nnunet_ext.errors import InputError
from nnunet_ext.fusion.rules import FusionTable
from nnunet_ext.geometry import Grid
from nnunet_ext.io.nifti import read_image, read_labels, write_image
from nnunet_ext.preprocessing.steps import STEPS, Stepped
from nnunet_ext.recipe.composed import Composed, _common_steps, _learned
from nnunet_ext.recipe.predict import predict_image
from nnunet_ext.recipe.schema import Recipe
from nnunet_ext.roi.learned import Learned
from nnunet_ext.roi.prior import Landmark, Prior
from nnunet_ext.roi.region import Region
from tests.recipe.drawn import (
    AIR_HU,
    ORGANS,
    SHAPE,
    SPACING_MM,
    FakeModel,
    Read,
    composed,
    image_of,
    no_brainstem,
    nothing,
    only_brainstem,
    patient,
    run,
    write_cases,
)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    return write_cases(tmp_path)


# --- loading ----------------------------------------------------------------------------------------------------------


@dataclass
class World:
    """Results folders of a recipe as a training leaves them; the models in them are drawn ones.

    Args:
        results: nnUNet_results.
        models: Name to the model that is loaded.
        asked: Name to the folds that were asked for.
    """

    results: Path
    models: dict[str, FakeModel] = field(default_factory=dict)
    asked: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def add(
        self,
        name: str,
        dataset: str,
        channels: Sequence[str],
        note: dict[str, Any] | None = None,
        labels: dict[str, int] | None = None,
    ) -> FakeModel:
        """A trained model; its name is its configuration as well."""
        folder = self.results / dataset / f"nnUNetTrainerExtNoMirror__nnUNetPlansExt__{name}"
        folder.mkdir(parents=True)
        labels = labels or ({"Brainstem": 1} if name == "small" else ORGANS)
        described = {"nnunet_ext": note or {}, "labels": {"background": 0, **labels}}
        (folder / "dataset.json").write_text(json.dumps(described))
        self.models[name] = FakeModel(channels=channels)
        return self.models[name]

    def load(self, folder: Path, folds: Sequence[int], device: str) -> FakeModel:
        name = folder.name.split("__")[-1]
        self.asked[name] = tuple(folds)
        return self.models[name]

    def table(self, owner: dict[str, str], channels: Sequence[str] = ()) -> None:
        known = {name: {"Brainstem": 1} if name == "small" else ORGANS for name in self.models}
        table = FusionTable(ORGANS, owner, known, list(ORGANS), channels=tuple(channels))
        table.save(self.results / "recipes" / "drawn" / "fusion.json")


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    found = World(tmp_path / "results")
    monkeypatch.setattr("nnunet_ext.recipe.composed.load_model", found.load)
    return found


def drawn_recipe(**models: dict[str, Any]) -> Recipe:
    page = {"name": "drawn", "title": "Drawn.", "dataset": 11, "organs": list(ORGANS), "folds": [0, 1], "device": "cpu"}
    own = {name: {"dataset": 11, "configuration": name, **model} for name, model in models.items()}
    return Recipe.model_validate({**page, "models": own})


STEM = {"organs": ["Brainstem"], "from": "body", "size_vox": [5, 7, 9]}
LEARNED = Learned(Prior((0.5, 0.5, 0.5), body_error_mm=0.0), (10.0, 10.0, 10.0), (20.0, 20.0, 20.0))
NOTE = {"learned": {"both": LEARNED.as_dict()}}
ALL_FROM_2D = dict.fromkeys(ORGANS, "2d")


def test_the_page_says_which_folds_a_model_predicts_with(world: World) -> None:
    world.add("2d", "Dataset011_Drawn", ["CT"])
    world.add("3d", "Dataset011_Drawn", ["CT"])
    world.table({**ALL_FROM_2D, "Brainstem": "3d"}, ["CT"])
    recipe = drawn_recipe(**{"2d": {"folds": [1]}, "3d": {}})
    Composed.load(recipe)
    assert world.asked == {"2d": (1,), "3d": (0, 1)}
    Composed.load(recipe, folds=[0])
    assert world.asked == {"2d": (0,), "3d": (0,)}


def two_mr(world: World, channels: Sequence[str] = ("T1w", "T2w")) -> Recipe:
    """The model of the brainstem's region reads T2w only, and comes before the one that reads both."""
    world.add("small", "Dataset012_drawn_small", ["T2w"], NOTE)
    world.add("both", "Dataset013_drawn_both", ["T1w", "T2w"], NOTE)
    world.table({**dict.fromkeys(ORGANS, "both"), "Brainstem": "small"}, channels)
    rest = {"organs": list(ORGANS), "from": "body", "size_vox": [9, 20, 31]}
    return drawn_recipe(small={"dataset": 12, "region": STEM}, both={"dataset": 13, "region": rest})


def test_every_model_reads_the_channels_under_the_datasets_numbers_whatever_model_comes_first(world: World) -> None:
    seen: dict[str, list[float]] = {}

    def remember(name: str) -> Read:
        def read(images: NDArray[np.float32]) -> NDArray[np.integer]:
            seen[name] = [float(image.max()) for image in images]
            return nothing(images)

        return read

    composed_of_two = Composed.load(two_mr(world))
    for name, model in world.models.items():
        model.read = remember(name)
    assert list(composed_of_two.models) == ["small", "both"]
    assert composed_of_two.channels == ["T1w", "T2w"]
    images = np.stack([np.full(SHAPE, 1, np.float32), np.full(SHAPE, 2, np.float32)])
    composed_of_two.predict(images, Grid(SHAPE, SPACING_MM))
    assert seen == {"small": [2], "both": [1, 2]}


def test_the_body_is_looked_for_in_the_datasets_first_channel_though_no_model_reads_it(world: World) -> None:
    recipe = two_mr(world, ["CT", "T1w", "T2w"])
    model = Composed.load(recipe, organs=["Brainstem"])
    assert list(model.models) == ["small"]
    assert model.needed == {"CT": 0, "T2w": 2}
    body = np.full(SHAPE, AIR_HU, np.float32)
    body[:, 10:20, 20:31] = 0
    _, report = model.predict(np.stack([body, np.zeros(SHAPE, np.float32)]), Grid(SHAPE, SPACING_MM))
    region = report["regions"]["small"]
    middle = [(a + b) / 2 for a, b in zip(region["start"], region["stop"], strict=True)]
    assert middle == pytest.approx([4.5, 15, 25.5], abs=1.0)


def test_only_the_files_of_needed_channels_must_be_there(world: World, folders: tuple[Path, Path]) -> None:
    world.add("2d", "Dataset012_Other", ["T2w"])
    world.table(ALL_FROM_2D, ["T1w", "T2w"])
    model = Composed.load(drawn_recipe(**{"2d": {"dataset": 12}}))
    assert model.needed == {"T2w": 1}
    source, output = folders
    for path in source.glob("good_*_0000.nii.gz"):
        path.rename(path.with_name(path.name.replace("_0000", "_0001")))
    shutil.copy(source / "good_0_0001.nii.gz", source / "good_0_0000.nii.gz")  # there and not read
    run(folders, model)
    for i in range(3):
        truth, _ = read_labels(source.parent / "truth" / f"good_{i}.nii.gz")
        np.testing.assert_array_equal(read_labels(output / f"good_{i}.nii.gz")[0], truth)
    assert json.loads((output / "dataset.json").read_text())["channel_names"] == {"0": "T1w", "1": "T2w"}


def test_a_table_of_an_older_version_takes_the_channels_from_a_model_of_the_dataset_itself(world: World) -> None:
    world.add("2d", "Dataset011_Drawn", ["CT", "MR"])
    world.add("small", "Dataset012_drawn_small", ["MR"], NOTE)
    world.table({**ALL_FROM_2D, "Brainstem": "small"})
    recipe = drawn_recipe(small={"dataset": 12, "region": STEM}, **{"2d": {}})
    assert Composed.load(recipe).channels == ["CT", "MR"]


def test_a_table_of_an_older_version_is_refused_where_no_model_says_the_channels(world: World) -> None:
    with pytest.raises(InputError, match=r"older version .* which channel; run `nnunet-ext train` .*it only selects"):
        Composed.load(two_mr(world, ()))


@pytest.mark.parametrize("reads", [["MR"], ["CT", "CT"]])
def test_a_model_that_reads_what_the_dataset_does_not_have_is_refused(world: World, reads: list[str]) -> None:
    world.add("2d", "Dataset011_Drawn", reads)
    world.table(ALL_FROM_2D, ["CT"])
    with pytest.raises(InputError, match=f"model 2d reads {', '.join(reads)}, the dataset of recipe drawn has CT"):
        Composed.load(drawn_recipe(**{"2d": {}}))


# --- the region that a model was trained on ---------------------------------------------------------------------------

PAROTIDS = {"organs": ["Parotid_L", "Parotid_R"], "from": "2d", "size_vox": [9, 20, 31]}


def load_with_region(world: World, trained: dict[str, Any] | None, asked: dict[str, Any]) -> Composed:
    """A region model whose dataset.json notes what it was trained on, and a page that asks for something."""
    for name in ("2d", "3d"):
        world.add(name, "Dataset011_Drawn", ["CT"])
    noted = Region.model_validate(trained).model_dump(mode="json", by_alias=True) if trained else None
    note = {"learned": {"both": LEARNED.as_dict()}, **({"region": noted} if noted else {})}
    world.add("small", "Dataset012_drawn_small", ["CT"], note, {"Parotid_L": 1, "Parotid_R": 2})
    known = {"2d": ORGANS, "3d": ORGANS, "small": {"Parotid_L": 1, "Parotid_R": 2}}
    owner = {"Brainstem": "2d", "Parotid_L": "small", "Parotid_R": "small"}
    FusionTable(ORGANS, owner, known, list(ORGANS), channels=("CT",)).save(
        world.results / "recipes" / "drawn" / "fusion.json"
    )
    return Composed.load(drawn_recipe(small={"dataset": 12, "region": asked}, **{"2d": {}, "3d": {}}))


@pytest.mark.parametrize(
    ("edited", "said"),
    [
        ({"organs": ["Parotid_R", "Parotid_L"]}, r'organs \["Parotid_L", "Parotid_R"\] there and \["Parotid_R"'),
        ({"flip_right": True}, "flip_right false there and true on the page"),
        ({"size_vox": [3, 5, 31]}, r"size_vox \[9, 20, 31\] there and \[3, 5, 31\]"),
        ({"from": "3d"}, 'from "2d" there and "3d"'),
        ({"pad_value": 0.0}, r"pad_value -1024\.0 there and 0\.0"),
    ],
)
def test_a_page_edited_after_training_is_refused_with_what_differs(
    world: World, edited: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=rf"small was trained on another region than .*{said}.*; restore the page"):
        load_with_region(world, PAROTIDS, {**PAROTIDS, **edited})


@pytest.mark.parametrize(
    "edited",
    [{"grow_at_most": 0}, {"fallback": ["3d"]}, {"plausible_mm": 30.0}, {"min_retention": 0.5},
     {"copies": 0, "jitter_vox": [0, 0, 0], "seed": 7}],
)  # fmt: skip
def test_where_a_region_is_looked_for_and_how_it_grows_can_be_changed_after_training(
    world: World, edited: dict[str, Any]
) -> None:
    assert load_with_region(world, PAROTIDS, {**PAROTIDS, **edited}).learned["small"]["both"] == LEARNED


def test_a_model_that_notes_no_region_is_taken_if_its_labels_fit(world: World) -> None:
    load_with_region(world, None, PAROTIDS)


def test_a_model_that_notes_no_region_is_refused_if_its_labels_do_not_fit(world: World) -> None:
    with pytest.raises(InputError, match=r'labels {"Parotid_L": 1, "Parotid_R": 2} there and {"Parotid_R": 1, "Paro'):
        load_with_region(world, None, {**PAROTIDS, "organs": ["Parotid_R", "Parotid_L"]})


def test_a_note_of_an_older_version_lacks_settings_that_are_new(world: World) -> None:
    composed_of_three = load_with_region(world, PAROTIDS, PAROTIDS)
    path = world.results / "Dataset012_drawn_small" / "nnUNetTrainerExtNoMirror__nnUNetPlansExt__small" / "dataset.json"
    described = json.loads(path.read_text())
    described["nnunet_ext"]["region"] = PAROTIDS
    path.write_text(json.dumps(described))
    assert Composed.load(composed_of_three.recipe).table == composed_of_three.table


def test_results_of_another_version_of_this_package_are_not_kept(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(folders)
    assert all("kept" in line for line in run(folders))
    monkeypatch.setattr("nnunet_ext.recipe.composed.__version__", "0.0.1")
    assert not any("kept" in line for line in run(folders))


# --- some organs ------------------------------------------------------------------------------------------------------


def three_models(world: World) -> Recipe:
    """2d owns the parotids and locates the brainstem's region; 3d owns nothing."""
    for name in ("2d", "3d"):
        world.add(name, "Dataset011_Drawn", ["CT"])
    world.add("small", "Dataset012_drawn_small", ["CT"], NOTE).read = only_brainstem
    world.table({**ALL_FROM_2D, "Brainstem": "small"}, ["CT"])
    return drawn_recipe(small={"dataset": 12, "region": {**STEM, "from": "3d"}}, **{"2d": {}, "3d": {}})


@pytest.mark.parametrize(
    ("organs", "models"), [(["Parotid_R"], ["2d"]), (["Brainstem"], ["3d", "small"]), (None, ["2d", "3d", "small"])]
)
def test_only_the_models_that_the_asked_organs_need_are_loaded(
    world: World, organs: list[str] | None, models: list[str]
) -> None:
    composed_of_three = Composed.load(three_models(world), organs=organs)
    assert sorted(world.asked) == sorted(composed_of_three.models) == models


def test_only_the_asked_organs_are_written_under_their_usual_numbers(world: World, folders: tuple[Path, Path]) -> None:
    run(folders, Composed.load(three_models(world), organs=["Parotid_R"]))
    labels, _ = read_labels(folders[1] / "good_0.nii.gz")
    truth, _ = read_labels(folders[0].parent / "truth" / "good_0.nii.gz")
    np.testing.assert_array_equal(labels, np.where(truth == 3, 3, 0))
    report = json.loads((folders[1] / "good_0.json").read_text())
    assert report["organs"] == ["Parotid_R"]
    assert set(report["volumes_ml"]) == {"Parotid_R"}
    assert (report["missing_organs"], report["warnings"]) == ([], [])
    assert json.loads((folders[1] / "dataset.json").read_text())["labels"] == {"background": 0, "Parotid_R": 3}


@pytest.mark.parametrize("organs", [["Parotid_L", "Parotid_R"], ["Parotid_L"], None])
def test_other_organs_need_another_folder(world: World, folders: tuple[Path, Path], organs: list[str] | None) -> None:
    recipe = three_models(world)
    run(folders, Composed.load(recipe, organs=["Parotid_R"]))
    with pytest.raises(InputError, match=r"with other organs or numbers \(.*\); choose another folder"):
        run(folders, Composed.load(recipe, organs=organs))
    assert all("kept" in line for line in run(folders, Composed.load(recipe, organs=["Parotid_R"])))


def test_an_organ_that_the_recipe_does_not_have_is_refused_with_those_it_has(world: World) -> None:
    with pytest.raises(InputError, match=r"^Cord is no organ to contour; known are Brainstem, Parotid_L, Parotid_R"):
        Composed.load(three_models(world), organs=["Cord"])
    assert world.asked == {}


# --- one image from Python --------------------------------------------------------------------------------------------


def without_times(report: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in json.loads(json.dumps(report)).items() if key != "stages"}


@pytest.mark.parametrize("form", ["path", "list", "by name", "array"])
def test_a_recipe_predicts_one_image_as_the_command_does(world: World, folders: tuple[Path, Path], form: str) -> None:
    recipe, (source, output) = three_models(world), folders
    path = source / "good_2_0000.nii.gz"
    image, grid = read_image(path)
    image[0, 0] = -3024  # repaired
    write_image(path, image, grid)
    image, grid = read_image(path)  # the header rounds
    result = CliRunner().invoke(command, [str(page_file(recipe, source.parent)), "-i", str(source), "-o", str(output)])
    assert result.exit_code == 0, result.output
    given: dict[str, Any] = {"path": path, "list": [str(path)], "by name": {"CT": path}, "array": image}
    labels, report = recipe.predict(given[form], *([grid] if form == "array" else []))
    np.testing.assert_array_equal(labels, read_labels(output / "good_2.nii.gz")[0])
    written = json.loads((output / "good_2.json").read_text())
    of_the_file = {key: written.pop(key) for key in ("case", "models", "inputs", "output_sha256")}
    assert len(of_the_file) == 4
    assert len(report["repairs"]) == 1
    assert without_times(report) == without_times(written)


@pytest.mark.parametrize("form", ["all", "needed", "all as an array", "needed as an array"])
def test_a_recipe_takes_all_channels_of_its_dataset_or_those_that_its_models_read(
    world: World, tmp_path: Path, form: str
) -> None:
    world.add("2d", "Dataset012_Other", ["T2w"])
    world.table(ALL_FROM_2D, ["T1w", "T2w"])
    truth = patient()
    images = np.stack([np.full(SHAPE, -5.0, np.float32), image_of(truth)])
    paths = [tmp_path / f"a_{i:04d}.nii.gz" for i in range(2)]
    for path, image in zip(paths, images, strict=True):
        write_image(path, image, Grid(SHAPE, SPACING_MM))
    given = {"all": paths, "needed": paths[1:], "all as an array": images, "needed as an array": images[1:]}[form]
    grid = Grid(SHAPE, SPACING_MM) if isinstance(given, np.ndarray) else None
    labels, _ = drawn_recipe(**{"2d": {"dataset": 12}}).predict(given, grid)
    np.testing.assert_array_equal(labels, truth)


def page_file(recipe: Recipe, folder: Path) -> Path:
    path = folder / "drawn.yaml"
    path.write_text(recipe.model_dump_json(by_alias=True))
    return path


@pytest.mark.parametrize(
    "line", [["--organs", "Parotid_R", "Brainstem"], ["--organs", "Parotid_R", "--organs", "Brainstem"]]
)
def test_the_command_takes_several_organs_and_folds_after_one_option(
    world: World, folders: tuple[Path, Path], line: list[str]
) -> None:
    page = page_file(three_models(world), folders[0].parent)
    options = ["-i", str(folders[0]), *line, "-o", str(folders[1]), "-f", "0", "1"]
    result = CliRunner().invoke(command, [str(page), *options])
    assert result.exit_code == 0, result.output
    assert json.loads((folders[1] / "good_0.json").read_text())["organs"] == ["Brainstem", "Parotid_R"]
    assert world.asked == dict.fromkeys(["2d", "3d", "small"], (0, 1))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("a_0000.nii.gz", r"1 files are given, channel CT, MR is missing or cannot be told; give one .* best by name"),
        ({"MR": "a_0001.nii.gz", "PET": "b"}, "2 files are given, channel CT is missing"),
    ],
)
def test_a_channel_that_is_not_given_is_named(image: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        predict_image(composed(channels=("CT", "MR")), image)


def test_an_array_must_have_the_channels_and_their_grid() -> None:
    image = image_of(patient())
    with pytest.raises(ValueError, match="its grid is not given"):
        predict_image(composed(), image)
    with pytest.raises(ValueError, match="expected the channels CT, MR along the first axis"):
        predict_image(composed(channels=("CT", "MR")), image, Grid(SHAPE, SPACING_MM))
    image[4, 5, 6] = np.nan
    with pytest.raises(InputError, match="CT has 1 NaN"):
        predict_image(composed(), image, Grid(SHAPE, SPACING_MM))


# --- scans that were cropped or resampled before training -------------------------------------------------------------

LIVER = {"crop": {"to": "liver", "margin_mm": 10.0}}


def cropped(world: World, note: dict[str, Any], median_shape: Sequence[int] | None = None) -> list[str]:
    """Warnings about an image of 27 × 20 × 31 mm."""
    model = world.add("2d", "Dataset011_Drawn", ["CT"], note)
    model.median_shape = median_shape
    world.add("small", "Dataset012_drawn_small", ["CT"], {**NOTE, **note})
    world.table({**ALL_FROM_2D, "Brainstem": "small"}, ["CT"])
    recipe = drawn_recipe(small={"dataset": 12, "region": {**STEM, "from": "2d"}}, **{"2d": {}})
    world.models["small"].read = only_brainstem
    report = Composed.load(recipe).predict(image_of(patient())[None], Grid(SHAPE, SPACING_MM))[1]
    assert report["missing_organs"] == []
    return list(report["warnings"])


@pytest.mark.parametrize("median_shape", [(9, 15, 31), None], ids=["longer than usual", "usual extent not known"])
def test_a_scan_that_is_not_cropped_as_in_training_is_reported_once(
    world: World, median_shape: Sequence[int] | None
) -> None:
    (warning,) = cropped(world, LIVER, median_shape)
    assert warning.startswith(
        "2d was trained on scans cropped to the liver and 10 mm around it; this one spans 27×20×31"
    )
    assert "crop it alike" in warning
    assert ("those mostly 27×15×31" in warning) == (median_shape is not None)


def test_a_scan_that_is_as_small_as_those_in_training_needs_no_warning(world: World) -> None:
    assert cropped(world, LIVER, (8, 17, 28)) == []


def test_a_crop_to_the_body_cuts_nothing_off_that_a_network_sees(world: World) -> None:
    assert cropped(world, {"crop": {"to": "body", "margin_mm": 10.0}}, (1, 1, 1)) == []


@pytest.mark.parametrize(("slices", "count"), [(72, 1), (9, 0)])
def test_a_scan_of_another_number_of_slices_than_all_in_training_is_reported(
    world: World, slices: int, count: int
) -> None:
    warnings = cropped(world, {"fixed_slices": slices})
    assert len(warnings) == count
    assert all("resampled to 72 axial slices, this one has 9: resample it alike" in line for line in warnings)


def test_what_is_unlike_training_is_said_on_screen(world: World, folders: tuple[Path, Path]) -> None:
    world.add("2d", "Dataset011_Drawn", ["CT"], LIVER)
    world.table(ALL_FROM_2D, ["CT"])
    said = run(folders, Composed.load(drawn_recipe(**{"2d": {}})))
    assert all("cropped to the liver" in line for line in said)


# --- an organ outside the field of view -------------------------------------------------------------------------------


def test_an_organ_outside_the_image_does_not_take_the_others_with_it(folders: tuple[Path, Path]) -> None:
    model = composed(**{"2d": FakeModel(no_brainstem), "3d": FakeModel(no_brainstem)})
    far = Prior((5.0, 0.5, 0.5), 0.0, {"Parotid_L": Landmark((300.0, 0.0, 0.0), 1.0)}, 0.0)
    model.learned["small"]["both"] = Learned(far, (10.0, 10.0, 10.0), (20.0, 20.0, 20.0))
    said = run(folders, model)
    for i in range(3):
        labels, _ = read_labels(folders[1] / f"good_{i}.nii.gz")
        truth, _ = read_labels(folders[0].parent / "truth" / f"good_{i}.nii.gz")
        np.testing.assert_array_equal(labels, np.where(truth == 1, 0, truth))
        assert "Brainstem was not found" in said[i]
        assert "fallback:landmark: the region there lies outside the image" in said[i]


# --- the same preprocessing as in training ----------------------------------------------------------------------------


def test_new_images_get_the_preprocessing_of_the_training_images(monkeypatch: pytest.MonkeyPatch) -> None:
    def treat(images: Any, grid: Grid, steps: Any, *, say: Any) -> Any:
        assert steps == {"CT": ["remove_couch"]}
        say("CT: remove_couch 0 %")
        return {name: image + 500 for name, image in images.items()}, ["CT: couch removed"]

    monkeypatch.setattr("nnunet_ext.recipe.composed.apply_steps", treat)
    model = composed()
    model.steps = {"CT": ["remove_couch"]}
    labels = patient()
    said: list[str] = []
    found, report = model.predict(image_of(labels)[None] - 500, Grid(SHAPE, SPACING_MM), said.append)
    np.testing.assert_array_equal(found, labels)
    assert report["preprocessing"] == ["CT: couch removed"]
    assert said == ["CT: remove_couch 0 %"]


def test_the_progress_of_a_slow_step_is_said_with_the_name_of_its_case(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(STEPS, "remove_couch", lambda image, grid, progress: Stepped(image, []))
    model = composed()
    model.steps = {"CT": ["remove_couch"]}
    assert "good_1, CT: remove_couch 0%" in run(folders, model)


COUCH: dict[str, Any] = {"preprocessing": {"CT": ["remove_couch"]}}


@pytest.mark.parametrize("notes", [{"a": COUCH, "b": {}}, {"b": {}, "a": COUCH}], ids=["with first", "without first"])
def test_models_trained_on_differently_prepared_images_do_not_go_together(notes: dict[str, dict[str, Any]]) -> None:
    second = list(notes)[1]
    reads = {"a": ["CT"], "b": ["CT", "MR"]}
    with pytest.raises(InputError, match=rf"model {second} was trained on CT after (nothing|remove_couch), another"):
        _common_steps(notes, reads)
    assert _common_steps({"a": COUCH, "b": {}}, {"a": ["CT"], "b": ["MR"]}) == {"CT": ["remove_couch"]}
    assert _common_steps({"a": COUCH, "b": COUCH}, reads) == {"CT": ["remove_couch"]}


def test_a_region_model_of_an_older_version_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Trainer__Plans__3d .* older version, .* run `nnunet-ext train` again"):
        _learned({"position_in_body": [0.5, 0.5, 0.5]}, tmp_path / "Trainer__Plans__3d")
