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
from nnunet_ext.geometry import Grid
from nnunet_ext.io.atomic import read_json, write_json
from nnunet_ext.io.nifti import read_image, read_labels, write_image, write_labels
from nnunet_ext.recipe.audit import audit, forgotten
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
    write_json(raw / "dataset.json", {**described, "numTraining": 10})
    write_json(tmp_path / "preprocessed" / DATASET / "splits_final.json", SPLITS)
    return folder


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


def test_many_forgotten_contours_are_counted_and_the_first_named():
    by_case = {f"case_{i}": 10.0 for i in range(8)}
    assert forgotten({"Larynx": [11.0, 9.0]}, {"Larynx": by_case, "Unknown": {"case_1": 5.0}}) == [
        "not contoured, but the model sees it: Larynx in 8 of 8 cases without a contour "
        "(case_0, case_1, case_2, case_3, case_4 and 3 more)"
    ]


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
    described = read_json(raw / "dataset.json")
    write_json(raw / "dataset.json", {**described, "labels": {**described["labels"], "ignore": 3}})
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
