"""A study on six drawn patients, from its page to its tables."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner, Result

from nnunet_ext.cli.train import command
from nnunet_ext.errors import InputError
from nnunet_ext.io.nifti import read_labels
from nnunet_ext.study.page import Study
from nnunet_ext.study.tables import WEIGHTS_FILE
from nnunet_ext.study.worker import RESULT, reads_settings, scores_of
from nnunet_ext.study.world import ALL, CLEAN, World

PAGE: dict[str, Any] = {
    "name": "tiny",
    "title": "A study that trains in seconds.",
    "dataset": 901,
    "held_out": 0,
    "configuration": "2d",
    "device": "cpu",
    "planning": {"preset": "cpu", "base_features": 4, "patch_size": [32, 32]},
    "settings": {"num_epochs": 1, "num_iterations_per_epoch": 2, "num_val_iterations_per_epoch": 1, "batch_size": 2},
    "levels": [{"voxels": [1, 2]}],
    "ratios": [0.5],
    "seeds": [1],
    "without_noise": False,
    "methods": {"plain": {}, "oracle": {"cases": "clean"}},
    "structures": {"parotids": ["Parotid_L", "Parotid_R"], "mandible": ["Bone_Mandible"]},
}


@pytest.fixture(scope="module")
def folders(world: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """nnU-Net's folders with the drawn patients in raw."""
    root = tmp_path_factory.mktemp("study")
    for name in ("preprocessed", "results"):
        (root / name).mkdir()
    shutil.copytree(world.raw, root / "raw" / world.dataset)
    return root


@pytest.fixture
def place(folders: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(folders / name))
    monkeypatch.setenv("nnUNet_def_n_proc", "1")
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    return folders


def write_page(folder: Path, **changes: Any) -> str:
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump({**PAGE, **changes}))
    return str(path)


def world_of(**changes: Any) -> World:
    return World.of(Study.model_validate({**PAGE, **changes}))


def train(page: str) -> Result:
    return CliRunner().invoke(command, [page, "--jobs", "1"])


class TestWorld:
    def test_a_fold_is_the_test_set(self, place: Path, world: SimpleNamespace) -> None:
        found = world_of()
        assert list(found.training) == world.splits[0]["train"]
        assert list(found.test) == world.splits[0]["val"]

    def test_every_row_and_seed_gets_a_number_of_its_own(self, place: Path) -> None:
        found = world_of(seeds=[1, 2], ratios=[0.25, 0.5], without_noise=True)
        assert sorted(set(found.datasets().values())) == [
            "Dataset001_Drawn", "Dataset002_voxels1-2_25_s1", "Dataset003_voxels1-2_50_s1",
            "Dataset004_voxels1-2_25_s2", "Dataset005_voxels1-2_50_s2",
        ]  # fmt: skip
        assert [run.fold for run in found.runs()[:3]] == [ALL, ALL, CLEAN]

    def test_methods_that_see_clean_cases_only_are_trained_once_for_all_levels(self, place: Path) -> None:
        found = world_of(levels=[{"voxels": [1, 1]}, {"voxels": [2, 3]}], ratios=[0.25, 0.5], seeds=[1, 2])
        cases = found.training
        for row in found.study.rows:
            alike = {c for c, move in found.study.noise(row, 1).draw(cases).items() if move is None}
            others = [other for other in found.study.rows if other.ratio == row.ratio]
            assert all(
                alike == {c for c, m in found.study.noise(o, 1).draw(cases).items() if m is None} for o in others
            )
        shared = [run for run in found.runs() if run.fold == CLEAN]
        assert [run.dataset.partition("_")[2] for run in shared] == [
            f"voxels1-1_{ratio}_s{seed}" for seed in (1, 2) for _ in range(2) for ratio in (25, 50)
        ]
        assert len({run.row.folder for run in shared}) == 4  # every row has its line in the table
        alone = [run for run in found.trainings() if run.fold == CLEAN]
        assert [run.row.level.range for run in alone if run.row.level] == [(1, 1)] * 4
        assert [run for run in found.trainings() if run.fold == ALL] == [run for run in found.runs() if run.fold == ALL]

    def test_nnunet_sees_the_studys_folders_only_inside(self, place: Path) -> None:
        with world_of().entered():
            assert os.environ["nnUNet_raw"] == str(place / "results" / "studies" / "tiny" / "raw")
        assert os.environ["nnUNet_raw"] == str(place / "raw")

    @pytest.mark.parametrize(
        ("changes", "part"),
        [
            ({"held_out": "test"}, "no labelsTs"),
            ({"held_out": 7}, "2 folds"),
            ({"dataset": 17}, "0 datasets"),
            ({"structures": {"eye": ["Eye_L"]}}, "has no Eye_L"),
            ({"structures": {"mean": ["Parotid_L"]}}, "structure named mean"),
        ],
    )
    def test_what_does_not_fit_the_dataset_is_refused(self, place: Path, changes: dict[str, Any], part: str) -> None:
        with pytest.raises(InputError, match=part):
            world_of(**changes)

    @pytest.fixture
    def alone(self, world: SimpleNamespace, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """The raw folder of a dataset that a test may change."""
        monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
        return Path(shutil.copytree(world.raw, tmp_path / "raw" / world.dataset))

    def test_a_noisy_dataset_is_refused_with_its_source(self, alone: Path) -> None:
        (alone / "noise.json").write_text(json.dumps({"source": "Dataset900_True"}))
        with pytest.raises(InputError, match=r"Drawn has noise already, .* not the true ones; take Dataset900_True"):
            world_of()

    def test_a_dataset_of_pictures_is_refused_by_their_ending(self, alone: Path) -> None:
        content = json.loads((alone / "dataset.json").read_text())
        (alone / "dataset.json").write_text(json.dumps({**content, "file_ending": ".png"}))
        with pytest.raises(InputError, match=r"has files '\.png', expected \.nii\.gz; convert them first"):
            world_of()

    def test_a_description_that_is_missing_or_none(self, alone: Path) -> None:
        (alone / "dataset.json").write_text("[]")
        with pytest.raises(InputError, match="holds a list"):
            world_of()
        (alone / "dataset.json").unlink()
        with pytest.raises(InputError, match="does not exist"):
            world_of()

    @pytest.mark.parametrize(("device", "backend"), [("cuda", "cuda"), ("mps", "backends.mps")])
    def test_a_device_that_is_not_there_is_refused_before_anything_is_written(
        self, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, backend: str
    ) -> None:
        monkeypatch.setattr(f"torch.{backend}.is_available", lambda: False)
        result = train(write_page(tmp_path, name="elsewhere", device=device))
        assert isinstance(result.exception, InputError)
        assert f"trains on device {device}, and there is none" in str(result.exception)
        assert "set device: cpu in the page" in str(result.exception)
        assert not (place / "results" / "studies" / "elsewhere").exists()

    def test_a_trainer_that_does_not_exist_is_refused_at_once(self, place: Path, tmp_path: Path) -> None:
        result = train(write_page(tmp_path, methods={"odd": {"trainer": "nnUNetTrainerExtOdd"}}))
        assert isinstance(result.exception, InputError)
        assert "nnUNetTrainerExtOdd" in str(result.exception)

    def test_trainers_that_ignore_the_settings_are_refused_by_name(self, place: Path, tmp_path: Path) -> None:
        methods = {"plain": {}, "stock": {"trainer": "nnUNetTrainer"}, "short": {"trainer": "nnUNetTrainer_5epochs"}}
        result = train(write_page(tmp_path, name="stock", methods=methods))
        assert isinstance(result.exception, InputError)
        assert "even epochs and seed: short (nnUNetTrainer_5epochs), stock (nnUNetTrainer); name one of" in str(
            result.exception
        )
        assert not (place / "results" / "studies" / "stock").exists()

    def test_a_trainer_of_the_users_that_is_derived_from_ours_reads_them(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lines = ["from nnunet_ext.training.base import nnUNetTrainerExt as Ours", "class nnUNetTrainerMine(Ours): pass"]
        (tmp_path / "nnUNetTrainerMine.py").write_text("\n".join(lines))
        monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path))
        assert reads_settings("nnUNetTrainerMine")
        assert not reads_settings("nnUNetTrainer")

    def test_many_cases_that_train_and_test_are_counted(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        cases = [f"case_{i}" for i in range(7)]
        monkeypatch.setattr("nnunet_ext.study.world.splits_in_use", lambda _: [{"train": cases, "val": cases}])
        with pytest.raises(InputError, match="trains and tests on case_0, case_1, case_2, case_3, case_4 and 2 more;"):
            world_of()


@pytest.fixture(scope="module")
def done(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, Result]:
    """The study after its first run: its folder, its page, and what the command said."""
    patch = pytest.MonkeyPatch()
    for name in ("raw", "preprocessed", "results"):
        patch.setenv(f"nnUNet_{name}", str(folders / name))
    patch.setenv("nnUNet_def_n_proc", "1")
    page = write_page(tmp_path_factory.mktemp("page"))
    try:
        result = train(page)
    finally:
        patch.undo()
    assert result.exit_code == 0, (result.output, result.exception)
    return folders / "results" / "studies" / "tiny", page, result


@pytest.mark.slow
class TestStudy:
    def test_the_table_has_every_method_and_structure(self, done: tuple[Path, str, Result]) -> None:
        folder, _, result = done
        assert "| 1-2 voxels | 50 % | plain |" in result.stdout
        with (folder / "table.csv").open(newline="") as stream:
            rows = {(row["method"], row["structure"]): row for row in csv.DictReader(stream)}
        assert set(rows) == {(m, s) for m in ("plain", "oracle") for s in ("parotids", "mandible", "mean")}
        assert all(0 <= float(row["dsc"]) <= 1 and row["seeds"] == "1" for row in rows.values())

    def test_training_cases_are_noisy_and_test_cases_are_clean(
        self, done: tuple[Path, str, Result], world: SimpleNamespace
    ) -> None:
        folder, _, _ = done
        noise = json.loads(next((folder / "raw").glob("*_s1/noise.json")).read_text())
        noisy = {case for case, entry in noise["cases"].items() if entry}
        assert len(noisy) == 2
        assert noisy < set(world.splits[0]["train"])
        for case in world.cases:
            moved, _ = read_labels(next((folder / "raw").glob(f"*_s1/labelsTr/{case}.nii.gz")))
            drawn, _ = read_labels(world.raw / "labelsTr" / f"{case}.nii.gz")
            assert np.array_equal(moved, drawn) == (case not in noisy)

    def test_the_network_trains_on_the_noisy_contours_with_the_clean_datasets_plans(
        self, done: tuple[Path, str, Result], world: SimpleNamespace, place: Path
    ) -> None:
        folder, _, _ = done
        from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

        with world_of().entered():
            data = [
                nnUNetDatasetBlosc2(str(next((folder / "preprocessed").glob(f"{name}/nnUNetPlansStudy_2d"))))
                for name in ("Dataset001_Drawn", "*_s1")
            ]
            noise = json.loads(next((folder / "raw").glob("*_s1/noise.json")).read_text())["cases"]
            for case in world.cases:
                (image, labels, _, _), (same, moved, _, _) = (one.load_case(case) for one in data)
                assert np.array_equal(image[:], same[:])
                assert np.array_equal(labels[:], moved[:]) == (noise[case] is None)

    def test_the_oracle_trains_on_clean_cases_only(self, done: tuple[Path, str, Result]) -> None:
        folder, _, _ = done
        noise = json.loads(next((folder / "raw").glob("*_s1/noise.json")).read_text())["cases"]
        used = {
            method: json.loads(next((folder / "results").glob(f"*/*__{method}_s1__2d/*/cases.json")).read_text())
            for method in ("plain", "oracle")
        }
        assert used["oracle"]["train"] == [case for case in used["plain"]["train"] if noise[case] is None]
        assert used["oracle"]["val"] == used["plain"]["val"]

    def test_again_trains_nothing_and_says_the_same(self, done: tuple[Path, str, Result], place: Path) -> None:
        folder, page, first = done
        before = {path: path.stat().st_mtime_ns for path in (folder / "results").rglob("*.pth")}
        again = train(page)
        assert "2 trainings, 2 are done" in again.stderr
        assert again.stdout == first.stdout
        assert {path: path.stat().st_mtime_ns for path in (folder / "results").rglob("*.pth")} == before

    def test_tables_of_finished_runs_need_no_device(
        self, done: tuple[Path, str, Result], place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
        again = train(write_page(tmp_path, device="cuda"))
        assert again.stdout == done[2].stdout
        other = train(write_page(tmp_path, device="cuda", structures={"mandible": ["Bone_Mandible"]}))
        assert "device cuda" in str(other.exception)  # judged anew, which needs the network

    def test_a_half_finished_run_is_no_result(self, done: tuple[Path, str, Result], place: Path) -> None:
        found = world_of()
        run = found.runs()[0]
        path = run.folder(found) / RESULT
        content = json.loads(path.read_text())
        path.write_text(json.dumps({**content, "scores": None}))
        try:
            assert scores_of(found, run) is None
        finally:
            path.write_text(json.dumps(content))
        assert scores_of(found, run) == content["scores"]

    def test_other_structures_are_judged_anew_without_training(
        self, done: tuple[Path, str, Result], place: Path
    ) -> None:
        assert scores_of(world_of(), world_of().runs()[0]) is not None
        other = world_of(structures={"mandible": ["Bone_Mandible"]})
        assert scores_of(other, other.runs()[0]) is None

    def test_other_settings_are_refused_by_name(
        self, done: tuple[Path, str, Result], place: Path, tmp_path: Path, restored: Callable[[Path], None]
    ) -> None:
        folder, _, _ = done
        restored(folder / "preprocessed")
        result = train(write_page(tmp_path, settings={**PAGE["settings"], "num_epochs": 2}))
        assert isinstance(result.exception, InputError)
        assert "trained with other settings" in str(result.exception)
        result = train(write_page(tmp_path, held_out=1))
        assert "delete it or give the study another name" in str(result.exception)

    def test_weights_are_joined_with_the_noise(self, done: tuple[Path, str, Result], place: Path) -> None:
        folder, page, _ = done
        noise = json.loads(next((folder / "raw").glob("*_s1/noise.json")).read_text())["cases"]
        clean, noisy = (next(c for c in noise if (noise[c] is None) == is_clean) for is_clean in (True, False))
        run = next((folder / "results").glob("*/*__plain_s1__2d/fold_0"))
        lines = ["epoch,case,samples,weight,score,driver", f"0,{clean},1,1.5,0,0", f"0,{noisy},1,0.5,0,0"]
        (run / WEIGHTS_FILE).write_text("\n".join(lines) + "\n")
        assert train(page).exit_code == 0
        (row,) = csv.DictReader((folder / "weights.csv").read_text().splitlines())
        assert row["clean"] == "1.5000"
        assert {row["eroded"], row["dilated"]} == {"0.5000", ""}


@pytest.fixture
def restored(tmp_path: Path) -> Any:
    """Brings a folder back to what it was, after the test."""
    kept: list[tuple[Path, Path]] = []

    def keep(folder: Path) -> None:
        kept.append((folder, Path(shutil.copytree(folder, tmp_path / "kept"))))

    yield keep
    for folder, copy in kept:
        shutil.rmtree(folder)
        shutil.copytree(copy, folder)
