"""The audit of a trained model and of a recipe, on drawn results."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from scipy.spatial.transform import Rotation

from nnunet_ext.cli.audit import command
from nnunet_ext.errors import InputError
from nnunet_ext.evaluation.contact_sheet import Tile
from nnunet_ext.evaluation.overlay import WINDOW_HU
from nnunet_ext.evaluation.suspicion import not_contoured
from nnunet_ext.geometry import Grid
from nnunet_ext.io.atomic import read_json, write_json
from nnunet_ext.io.nifti import read_image, read_labels, write_image, write_labels
from nnunet_ext.recipe.audit import audit, forgotten, forgotten_lines
from nnunet_ext.roi.provenance import held_out_predictions

DATASET = "Dataset701_Drawn"
MODEL = "nnUNetTrainerExtNoMirror__nnUNetPlansExt__3d_fullres"
GRID = Grid((16, 40, 40), (3.0, 1.5, 1.5))
CASES = [f"case_{i:02d}" for i in range(10)]
SPLITS = [{"train": CASES[5:], "val": CASES[:5]}, {"train": CASES[:5], "val": CASES[5:]}]
ORGANS = {"Parotid_L": 1, "Parotid_R": 2}


def drawn(seed: int) -> np.ndarray:
    labels = np.zeros(GRID.shape, np.uint8)
    y = 12 + seed % 4
    labels[4:12, y : y + 12, 24:36] = 1
    labels[4:12, y : y + 12, 4:16] = 2
    return labels


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ten cases, two finished folds whose predictions are right, and one planted error: case_07's left is too small."""
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    raw, folder = tmp_path / "raw" / DATASET, tmp_path / "results" / DATASET / MODEL
    rng = np.random.default_rng(0)
    for seed, case in enumerate(CASES):
        truth = drawn(seed)
        write_image(raw / "imagesTr" / f"{case}_0000.nii.gz", rng.normal(0, 20, GRID.shape).astype(np.float32), GRID)
        fold = next(i for i, split in enumerate(SPLITS) if case in split["val"])
        found = np.roll(truth, seed % 2, axis=2)  # no model is perfect
        write_labels(folder / f"fold_{fold}" / "validation" / f"{case}.nii.gz", found, GRID)
        if case == "case_07":
            truth[(truth == 1) & ~np.pad(truth[4:12] == 1, ((4, 4), (0, 0), (0, 0)))] = 0
            truth[:, :, 30:36] = 0
        write_labels(raw / "labelsTr" / f"{case}.nii.gz", truth, GRID)
    for fold in (0, 1):
        (folder / f"fold_{fold}" / "checkpoint_final.pth").touch()
    described = {"channel_names": {"0": "CT"}, "labels": {"background": 0, **ORGANS}, "file_ending": ".nii.gz"}
    for path in (raw, folder):  # nnU-Net leaves one in the model's folder
        write_json(path / "dataset.json", {**described, "numTraining": 10})
    write_json(tmp_path / "preprocessed" / DATASET / "splits_final.json", SPLITS)
    return folder


def describe(world: Path, tmp_path: Path, **changes: object) -> None:
    """Both dataset.json with other entries."""
    for folder in (tmp_path / "raw" / DATASET, world):
        write_json(folder / "dataset.json", {**read_json(folder / "dataset.json"), **changes})


def lines(folder: Path) -> list[dict[str, str]]:
    with (folder / "audit.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_the_planted_error_is_first_and_the_page_is_there(world, capsys):
    command.main([str(world)], standalone_mode=False)
    first = lines(world / "audit")[0]
    assert (first["case"], first["organ"], first["fold"], first["rank"]) == ("case_07", "Parotid_L", "1", "1")
    assert first["kind"] in ("smaller", "missing part")
    assert float(first["signed_mm"]) < 0
    assert len(lines(world / "audit")) == 20
    assert (world / "audit" / "audit.png").read_bytes().startswith(b"\x89PNG")
    said = capsys.readouterr().out.splitlines()
    assert "fold 0, 1: out-of-fold not provable" in said[0]  # no cases.json: a stock trainer
    assert "case_07" in said[3]


def test_organs_that_were_not_contoured_are_not_judged(world, tmp_path):
    present = {"case_07": [2], "case_01": [1]}
    write_json(tmp_path / "raw" / DATASET / "present_labels.json", present)
    rows = audit(str(world), tmp_path / "out", print)
    assert len(rows) == 18
    assert not {("case_07", "Parotid_L"), ("case_01", "Parotid_R")} & {(row.case, row.organ) for row in rows}


def test_an_organ_that_nobody_contoured_though_the_model_sees_it_is_said(world, tmp_path):
    write_json(tmp_path / "raw" / DATASET / "present_labels.json", {"case_07": [2], "case_01": [2], "case_02": [1]})
    predicted = world / "fold_0" / "validation" / "case_01.nii.gz"
    labels, grid = read_labels(predicted)
    labels[(labels == 1) & (np.indices(labels.shape)[0] > 4)] = 0  # an eighth of it is no organ
    write_labels(predicted, labels, grid)
    said: list[str] = []
    audit(str(world), tmp_path / "out", said.append)
    assert [line for line in said if "sees it" in line] == [
        "not contoured, but the model sees it: Parotid_L in 1 of 2 cases without a contour (case_07)",
        "not contoured, but the model sees it: Parotid_R in 1 of 1 cases without a contour (case_02)",
    ]


def test_empty_contours_make_no_organ_usually_small():
    lacking = [not_contoured("case_1", "Larynx", 0, ml) for ml in (9.9, 10.0)]
    assert forgotten({"Larynx": [0.0, 0.0, 0.0, 20.0, 20.0]}, lacking) == lacking[1:]
    assert forgotten({"Larynx": [0.0]}, lacking) == forgotten({}, lacking) == []


def test_many_forgotten_contours_are_counted_and_the_first_named():
    lacking = [not_contoured(f"case_{i}", "Larynx", 0, 10.0) for i in range(8)]
    lost = forgotten({"Larynx": [0.0, 11.0, 9.0]}, [*lacking, not_contoured("case_1", "Unknown", 0, 5.0)])
    assert lost == lacking
    assert forgotten_lines(lost, lacking) == [
        "not contoured, but the model sees it: Larynx in 8 of 8 cases without a contour "
        "(case_0, case_1, case_2, case_3, case_4 and 3 more)"
    ]


def test_every_forgotten_contour_is_a_line_of_the_table_behind_all_contours(world, tmp_path):
    write_json(tmp_path / "raw" / DATASET / "present_labels.json", {case: [2] for case in CASES[:7]})
    said: list[str] = []
    rows = audit(str(world), tmp_path / "out", said.append)
    table = lines(tmp_path / "out")
    assert len(rows) == 13
    assert [row["rank"] for row in table] == [str(i + 1) for i in range(20)]
    assert [(row["case"], row["organ"]) for row in table[:13]] == [(row.case, row.organ) for row in rows]
    assert [(row["case"], row["organ"], row["kind"]) for row in table[13:]] == [
        (case, "Parotid_L", "not contoured") for case in CASES[:7]
    ]
    assert {row["fold"] for row in table[13:18]} == {"0"}
    assert {row["predicted_ml"] for row in table} == {"7.776"}  # 8 × 12 × 12 voxels of 3 × 1.5 × 1.5 mm
    assert {row[name] for row in table[13:] for name in ("suspicion", "assd_mm", "dsc")} == {"nan"}
    assert [line for line in said if "sees it" in line and "and 2 more" in line]


@pytest.mark.parametrize(
    ("listed", "named"),
    [
        ({"case_07": [2, 33]}, "label 33 in case_07"),
        ({"case_07": [-1]}, "label -1 in case_07"),
        ({"case_07": [True]}, "must map each case"),
        ({"case_O7": [2]}, "lists case_O7, but"),
    ],
)
def test_a_wrong_list_of_contoured_labels_hides_no_contour(world, tmp_path, listed, named):
    path = tmp_path / "raw" / DATASET / "present_labels.json"
    write_json(path, listed)
    with pytest.raises(InputError, match=named) as caught:
        audit(str(world), tmp_path / "out", print)
    assert str(path) in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_test_case_may_be_listed(world, tmp_path):
    raw = tmp_path / "raw" / DATASET
    write_json(raw / "present_labels.json", {"new": [1], "case_07": [1, 2]})
    write_labels(raw / "labelsTs" / "new.nii.gz", drawn(0), GRID)
    assert len(audit(str(world), tmp_path / "out", print)) == 20


class TestTheLabelsOfTheModel:
    def refused(self, world: Path, tmp_path: Path) -> str:
        with pytest.raises(InputError) as caught:
            audit(str(world), tmp_path / "out", print)
        for folder in (tmp_path / "raw" / DATASET, world):
            assert str(folder / "dataset.json") in str(caught.value)
        assert not (tmp_path / "out").exists()
        return str(caught.value)

    @pytest.mark.parametrize(
        ("labels", "named"),
        [
            ({"Parotid_L": 2, "Parotid_R": 1}, "Parotid_L (2 and 1), Parotid_R (1 and 2)"),
            ({**ORGANS, "Larynx": 3}, "Larynx (3 and none)"),
            ({"Parotid_L": 1}, "Parotid_R (none and 2)"),
            ({"Parotid_L": 1, "Larynx": 2}, "Larynx (2 and none)"),
            ({"LeftParotid": 2, "RightParotid": 1}, "Parotid_L (2 and 1)"),
            ({"Parotid_L": 1, "ignore": 2}, "ignore (2 and none)"),
            ({**ORGANS, "ignore": 3}, "ignore (3 and none)"),
            ({"Parotid_L": [1, 2], "Parotid_R": 2}, "Parotid_L (1, 2 and 1)"),
        ],
    )
    def test_a_dataset_with_other_labels_than_the_model_is_refused(self, world, tmp_path, labels, named):
        path = tmp_path / "raw" / DATASET / "dataset.json"
        write_json(path, {**read_json(path), "labels": {"background": 0, **labels}})
        assert named in self.refused(world, tmp_path)

    def test_another_spelling_of_the_same_names_is_no_other_name(self, world, tmp_path):
        path = tmp_path / "raw" / DATASET / "dataset.json"
        write_json(path, {**read_json(path), "labels": {"background": 0, "LeftParotid": 1, "Parotid R": 2}})
        assert {row.organ for row in audit(str(world), tmp_path / "out", print)} == {"LeftParotid", "Parotid R"}

    def test_the_order_of_the_labels_and_of_a_regions_numbers_does_not_count(self, world, tmp_path):
        describe(world, tmp_path, labels={"background": 0, "both": [1, 2], "right": 2}, regions_class_order=[1, 2])
        write_json(
            world / "dataset.json",
            {**read_json(world / "dataset.json"), "labels": {"right": [2], "both": [2, 1], "background": 0}},
        )
        assert len(audit(str(world), tmp_path / "out", print)) == 20

    def test_a_model_folder_without_its_labels_is_named(self, world, tmp_path):
        (world / "dataset.json").unlink()
        with pytest.raises(InputError, match=str(world / "dataset.json")):
            audit(str(world), tmp_path / "out", print)


@pytest.mark.parametrize(
    ("entry", "value", "named"),
    [
        ("channel_names", None, '"channel_names" is None'),
        ("channel_names", {"1": "CT"}, '"channel_names" is'),
        ("channel_names", {"0": 7}, '"channel_names" is'),
        ("channel_names", ["CT"], '"channel_names" is'),
        ("file_ending", None, '"file_ending" is None'),
        ("file_ending", 3, '"file_ending" is 3'),
        ("labels", None, 'no "labels"'),
        (None, None, "no JSON object"),
    ],
)
def test_an_edited_dataset_json_is_named_and_never_a_traceback(world, tmp_path, entry, value, named):
    path = tmp_path / "raw" / DATASET / "dataset.json"
    page = {key: content for key, content in read_json(path).items() if key != entry}
    write_json(path, [page] if entry is None else {**page, **({} if value is None else {entry: value})})
    result = CliRunner().invoke(command, [str(world), "-o", str(tmp_path / "out")])
    assert isinstance(result.exception, InputError)
    assert str(path) in str(result.exception)
    assert named in str(result.exception)
    assert not (tmp_path / "out").exists()


def test_the_older_name_of_the_channels_is_read_as_nnunet_reads_it(world, tmp_path):
    path = tmp_path / "raw" / DATASET / "dataset.json"
    page = read_json(path)
    page["modality"] = page.pop("channel_names")
    write_json(path, page)
    assert len(audit(str(world), tmp_path / "out", print)) == 20


class TestOrgansInsideOthers:
    """Every second voxel row of Parotid_L is called Lens: an organ that is drawn over the one around it."""

    def inner(self, world: Path, tmp_path: Path, without: str = "") -> None:
        describe(
            world,
            tmp_path,
            labels={"background": 0, **ORGANS, "Lens": 3},
            nnunet_ext={"contains": {"Parotid_L": ["Lens"]}},
        )
        for path in [*(tmp_path / "raw" / DATASET).glob("labelsTr/*"), *world.glob("fold_*/validation/*.nii.gz")]:
            labels, grid = read_labels(path)
            if not (path.parent.name == "labelsTr" and path.name.startswith(without or "-")):
                labels[:, ::2][labels[:, ::2] == 1] = 3
            write_labels(path, labels, grid)

    def test_an_organ_is_judged_with_those_inside_it_in_both_maps(self, world, tmp_path):
        plain = {(row.case, row.organ): row for row in audit(str(world), tmp_path / "plain", print)}
        self.inner(world, tmp_path)
        rows = audit(str(world), tmp_path / "out", print)
        left = [row for row in rows if row.organ == "Parotid_L"]
        assert len(left) == 10
        assert all(row.assd_mm == plain[row.case, row.organ].assd_mm for row in left)
        assert len([row for row in rows if row.organ == "Lens"]) == 10

    def test_an_organ_without_the_inner_one_that_nobody_drew_is_right(self, world, tmp_path):
        self.inner(world, tmp_path, without="case_03")
        write_json(tmp_path / "raw" / DATASET / "present_labels.json", {"case_03": [1, 2]})
        said: list[str] = []
        rows = audit(str(world), tmp_path / "out", said.append)
        assert next(row for row in rows if (row.case, row.organ) == ("case_03", "Parotid_L")).suspicion < 1
        assert ("case_03", "Lens") not in {(row.case, row.organ) for row in rows}
        assert "not contoured, but the model sees it: Lens in 1 of 1 cases without a contour (case_03)" in said

    def test_an_outer_organ_that_nobody_drew_is_not_judged_by_its_inner_one(self, world, tmp_path):
        self.inner(world, tmp_path)
        write_json(tmp_path / "raw" / DATASET / "present_labels.json", {"case_03": [2, 3]})
        rows = audit(str(world), tmp_path / "out", print)
        assert {row.organ for row in rows if row.case == "case_03"} == {"Parotid_R", "Lens"}
        last = lines(tmp_path / "out")[-1]
        assert (last["case"], last["organ"], last["predicted_ml"]) == ("case_03", "Parotid_L", "7.776")


class TestWhatMayMislead:
    def noise(self, tmp_path: Path, *cases: str) -> Path:
        path = tmp_path / "raw" / DATASET / "noise.json"
        entries = {case: {"direction": "erode"} if case in cases else None for case in CASES}
        write_json(path, {"source": "Dataset700_Clean", "cases": entries})
        return path

    def test_planted_noise_is_a_warning_that_names_the_true_labels(self, world, tmp_path):
        self.noise(tmp_path, "case_02", "case_07")
        result = CliRunner().invoke(command, [str(world), "-o", str(tmp_path / "out")])
        assert result.exit_code == 0, result.output
        warned = [line for line in result.stderr.splitlines() if line.startswith("WARNING")]
        assert len(warned) == 1
        assert "2 of 10 cases were corrupted on purpose (case_02, case_07)" in warned[0]
        assert "judge against the labels of Dataset700_Clean" in warned[0]

    def test_a_copy_without_a_noisy_case_needs_none(self, world, tmp_path):
        self.noise(tmp_path)
        warned: list[str] = []
        audit(str(world), tmp_path / "out", print, warned.append)
        assert not warned

    def test_a_damaged_list_of_noise_is_named(self, world, tmp_path):
        write_json(self.noise(tmp_path), [])
        with pytest.raises(InputError, match=r"noise\.json has no"):
            audit(str(world), tmp_path / "out", print)
        assert not (tmp_path / "out").exists()

    def test_overlaps_that_an_exported_map_cannot_hold_are_a_warning(self, world, tmp_path):
        regions = {"background": 0, "Left": [1, 3], "Right": [2, 3]}
        describe(world, tmp_path, labels=regions, regions_class_order=[1, 2])
        warned: list[str] = []
        audit(str(world), tmp_path / "out", print, warned.append)
        assert not warned
        labels, grid = read_labels(tmp_path / "raw" / DATASET / "labelsTr" / "case_04.nii.gz")
        labels[4:12, 20, 16:24] = 3
        write_labels(tmp_path / "raw" / DATASET / "labelsTr" / "case_04.nii.gz", labels, grid)
        audit(str(world), tmp_path / "out", print, warned.append)
        assert len(warned) == 1
        assert "(label 3)" in warned[0]


class TestQualityWeights:
    def write(self, world: Path, weights: dict[str, float]) -> None:
        for fold, split in enumerate(SPLITS):
            text = "case,weight\n" + "".join(f"{case},{weights.get(case, 1.0)}\n" for case in split["val"])
            (world / f"fold_{fold}" / "quality_held_out.csv").write_text(text)

    def test_a_distrusted_case_is_said_and_one_of_its_contours_is_raised(self, world, tmp_path):
        self.write(world, {"case_02": 0.01})
        said: list[str] = []
        rows = audit(str(world), tmp_path / "out", said.append)
        assert [(row.case, row.weight) for row in rows[:2]] == [("case_02", 0.01), ("case_07", 1.0)]
        assert {row.weight for row in rows if row.case == "case_02"} == {0.01}
        assert [row.case for row in rows if row.suspicion > 10].count("case_02") == 1
        assert "cases the quality network distrusts: case_02 (weight 0.01)" in said

    def test_folds_are_not_compared_because_each_has_its_own_scale(self, world, tmp_path):
        self.write(world, dict.fromkeys(CASES[5:9], 0.5) | {CASES[9]: 3.0})
        said: list[str] = []
        rows = audit(str(world), tmp_path / "out", said.append)
        assert {row.distrust for row in rows if row.case in CASES[:9]} == {0.0}
        assert not [line for line in said if "distrusts" in line]

    @pytest.mark.parametrize(
        ("text", "named"),
        [
            ("case,weight\ncase_00,much\ncase_01,1\n", "for case_00,"),
            ("case,weight\ncase_00,-1\n", "for case_00,"),
            ("case,weight\ncase_00,inf\n", "for case_00,"),
            ("case,weight\ncase_00\n", "for case_00,"),
            ("case,score\ncase_00,1\n", "for case_00,"),
            ("name,weight\n,case_00,1\n", "for a line,"),
            ("PK\x03\x04\xff\n\xff\n", "for a line,"),
        ],
    )
    def test_a_damaged_file_is_named(self, world, tmp_path, text, named):
        path = world / "fold_1" / "quality_held_out.csv"
        path.write_bytes(text.encode("latin-1"))
        with pytest.raises(InputError, match=named) as caught:
            audit(str(world), tmp_path / "out", print)
        assert str(path) in str(caught.value)
        assert not (tmp_path / "out").exists()


class TestThePicture:
    def tiles(self, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tile]:
        drawn: list[Tile] = []
        monkeypatch.setattr(
            "nnunet_ext.recipe.audit.draw_contact_sheet", lambda path, shown, heading: drawn.extend(shown)
        )
        audit(str(world), tmp_path / "out", lambda line: None)
        return {tile.title.splitlines()[0]: tile for tile in drawn}

    def test_it_shows_image_contour_and_prediction_of_the_case(self, world, tmp_path, monkeypatch):
        shown = self.tiles(world, tmp_path, monkeypatch)
        assert len(shown) == 12
        tile = shown["case_07  Parotid_L"]
        raw = tmp_path / "raw" / DATASET
        contour, _ = read_labels(raw / "labelsTr" / "case_07.nii.gz")
        prediction, _ = read_labels(world / "fold_1" / "validation" / "case_07.nii.gz")
        assert np.array_equal(tile.contour, contour == 1)
        assert np.array_equal(tile.prediction, prediction == 1)
        assert np.array_equal(tile.image, read_image(raw / "imagesTr" / "case_07_0000.nii.gz")[0])
        assert tile.grid == GRID

    def test_a_ct_has_its_window_and_other_images_their_own(self, world, tmp_path, monkeypatch):
        assert {tile.window for tile in self.tiles(world, tmp_path, monkeypatch).values()} == {WINDOW_HU}
        describe(world, tmp_path, channel_names={"0": "MR"})
        tile = self.tiles(world, tmp_path, monkeypatch)["case_07  Parotid_L"]
        assert tile.window == pytest.approx(np.percentile(tile.image, (1, 99)))

    def test_a_name_that_looks_like_a_formula_is_drawn_as_it_is(self, world, tmp_path):
        describe(world, tmp_path, labels={"background": 0, r"a$\frac$": 1, "_^{": 2})
        audit(str(world), tmp_path / "out", print)
        assert (tmp_path / "out" / "audit.png").exists()

    def test_a_case_without_its_image_is_left_out_and_named(self, world, tmp_path):
        (tmp_path / "raw" / DATASET / "imagesTr" / "case_07_0000.nii.gz").unlink()
        said: list[str] = []
        rows = audit(str(world), tmp_path / "out", said.append)
        assert rows[0].case == lines(tmp_path / "out")[0]["case"] == "case_07"
        assert [line for line in said if line.startswith("case_07 is not on audit.png: ")]
        assert (tmp_path / "out" / "audit.png").exists()

    def test_no_picture_is_left_of_an_earlier_audit_where_none_can_be_drawn(self, world, tmp_path):
        audit(str(world), tmp_path / "out", print)
        shutil.rmtree(tmp_path / "raw" / DATASET / "imagesTr")
        said: list[str] = []
        assert len(audit(str(world), tmp_path / "out", said.append)) == 20
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["audit.csv"]
        assert said[-1].endswith("audit.csv")

    def test_an_image_on_another_grid_is_named(self, world, tmp_path):
        path = tmp_path / "raw" / DATASET / "imagesTr" / "case_07_0000.nii.gz"
        write_image(path, np.zeros((8, 40, 40), np.float32), Grid((8, 40, 40), GRID.spacing_mm))
        said: list[str] = []
        audit(str(world), tmp_path / "out", said.append)
        assert [line for line in said if "case_07_0000.nii.gz and the contours differ in grid" in line]

    def test_grids_that_are_too_oblique_for_it_cost_no_table(self, world, tmp_path):
        turned = Rotation.from_euler("xyz", (30, 45, 0), degrees=True).as_matrix().ravel()
        store(world, tmp_path, Grid(GRID.shape, GRID.spacing_mm, direction=tuple(map(float, turned))))
        said: list[str] = []
        assert len(audit(str(world), tmp_path / "out", said.append)) == 20
        assert len(lines(tmp_path / "out")) == 20
        assert [line for line in said if "case_07 is not on audit.png: direction" in line and "too oblique" in line]


def store(world: Path, tmp_path: Path, grid: Grid, order: tuple[int, int, int] = (0, 1, 2)) -> None:
    """All files of the world anew on another grid."""
    for path in [*(tmp_path / "raw" / DATASET).glob("labelsTr/*"), *world.glob("fold_*/validation/*.nii.gz")]:
        write_labels(path, np.ascontiguousarray(read_labels(path)[0].transpose(order)), grid)
    for path in (tmp_path / "raw" / DATASET).glob("imagesTr/*"):
        write_image(path, np.ascontiguousarray(read_image(path)[0].transpose(order)), grid)


def test_slices_lie_along_the_body_however_the_voxels_are_stored(world, tmp_path):
    path = tmp_path / "raw" / DATASET / "labelsTr" / "case_04.nii.gz"
    labels, _ = read_labels(path)
    labels[9:][labels[9:] == 2] = 0
    write_labels(path, labels, GRID)
    axial = audit(str(world), tmp_path / "axial", print)
    store(world, tmp_path, Grid((40, 16, 40), (1.5, 3.0, 1.5), direction=(0, 0, 1, 1, 0, 0, 0, 1, 0)), (2, 0, 1))
    sagittal = audit(str(world), tmp_path / "sagittal", print)
    assert [(row.case, row.organ, row.kind) for row in axial] == [(row.case, row.organ, row.kind) for row in sagittal]
    cut = next(row for row in sagittal if (row.case, row.organ) == ("case_04", "Parotid_R"))
    assert cut.kind == "missing part"
    assert cut.missing_slices == pytest.approx(3 / 8)


def test_checkpoints_are_looked_at_once(world, tmp_path, monkeypatch):
    calls = []

    def counted(*given):
        calls.append(given)
        return held_out_predictions(*given)

    monkeypatch.setattr("nnunet_ext.recipe.audit_cases.held_out_predictions", counted)
    audit(str(world), tmp_path / "out", print)
    assert len(calls) == 1


def test_a_file_in_the_place_of_the_folder_is_refused_before_anything_is_read(world, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(InputError, match="out is a file"):
        audit(str(world), tmp_path / "out", print)
    assert CliRunner().invoke(command, [str(world), "-o", str(tmp_path / "out")]).exit_code == 2
    assert (tmp_path / "out").read_text() == "mine"


def test_unlabelled_voxels_of_a_sparse_contour_are_no_deviation(world, tmp_path):
    raw = tmp_path / "raw" / DATASET
    describe(world, tmp_path, labels={"background": 0, **ORGANS, "ignore": 3})
    whole = audit(str(world), tmp_path / "whole", print)
    labels = drawn(3)
    labels[8:] = 3
    write_labels(raw / "labelsTr" / "case_03.nii.gz", labels, GRID)
    sparse = audit(str(world), tmp_path / "sparse", print)
    for rows in (whole, sparse):
        assert {row.kind for row in rows if row.case == "case_03"} <= {"shifted", "other"}


@pytest.mark.parametrize("missing", [1, 5])
def test_an_unfinished_fold_is_left_out_and_named(world, tmp_path, missing):
    for path in sorted((world / "fold_0" / "validation").iterdir())[:missing]:
        path.unlink()
    said: list[str] = []
    rows = audit(str(world), tmp_path / "out", said.append)
    assert {row.fold for row in rows} == {1}
    assert said[0] == "not finished, so not audited: fold 0"


def test_a_case_that_trained_its_own_judge_is_refused(world, tmp_path):
    write_json(world / "fold_0" / "cases.json", {"train": [*CASES[5:], "case_03"], "val": CASES[:5]})
    with pytest.raises(InputError, match="case_03"):
        audit(str(world), tmp_path / "out", print)
    assert not (tmp_path / "out").exists()


def test_faults_are_named(world, tmp_path):
    (world.parent / "untrained").mkdir()
    with pytest.raises(InputError, match="no fold with all its validation predictions"):
        audit(str(world.parent / "untrained"), tmp_path / "out", print)
    (tmp_path / "preprocessed" / DATASET / "splits_final.json").rename(tmp_path / "splits.json")
    with pytest.raises(InputError, match=r"splits_final\.json of Dataset701_Drawn is missing"):
        audit(str(world), tmp_path / "out", print)
    (tmp_path / "loose" / "model").mkdir(parents=True)
    with pytest.raises(InputError, match=r"dataset\.json is missing"):
        audit(str(tmp_path / "loose" / "model"), tmp_path / "out", print)
    write_json(tmp_path / "raw" / DATASET / "dataset.json", {"file_ending": ".nrrd"})
    with pytest.raises(InputError, match=r"only \.nii\.gz"):
        audit(str(world), tmp_path / "out", print)
    with pytest.raises(InputError, match="nothing_like_it"):
        audit("nothing_like_it", tmp_path / "out", print)
