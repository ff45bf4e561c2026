"""The main job as a user runs it: commands, exit codes, files; and what is left after kill -9."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml

from nnunet_ext.geometry import Grid
from nnunet_ext.io.nifti import read_image, read_labels, write_image, write_labels
from nnunet_ext.phantom import draw_case

pytestmark = pytest.mark.slow

COMMANDS = Path(sys.executable).parent
CASES = 6
ORGANS = ["Brainstem", "Parotid_L", "Parotid_R"]
SETTINGS = {"num_epochs": 2, "num_iterations_per_epoch": 80, "num_val_iterations_per_epoch": 1, "initial_lr": 0.005}
PLANNING = {"preset": "cpu", "base_features": 8}


def recipe_page() -> dict[str, object]:
    common = {"plans": "nnUNetPlansExtCPU", "settings": SETTINGS}
    middle = {"organs": ORGANS, "from": "centre", "fraction": [1.0, 0.75, 0.75]}
    small = {"organs": ["Brainstem"], "from": "2d", "fallback": ["3d"], "size_mm": [60.0, 64.0, 64.0], "copies": 1,
             "min_retention": 0.5}  # fmt: skip
    sides = {"organs": ["Parotid_L", "Parotid_R"], "from": "2d", "fallback": ["3d"], "margin_mm": "auto", "copies": 0,
             "flip_right": True, "min_retention": 0.5}  # fmt: skip
    patch_2d, patch_3d = {**PLANNING, "patch_size": [32, 32]}, {**PLANNING, "patch_size": [8, 16, 16]}
    return {
        "name": "tiny",
        "title": "A recipe that trains in seconds.",
        "dataset": 11,
        "organs": ORGANS,
        "folds": [0, 1],
        "device": "cpu",
        "models": {
            "2d": {"dataset": 11, "configuration": "2d", "planning": patch_2d, **common},
            "3d": {"dataset": 12, "configuration": "3d_fullres", "planning": patch_3d, "region": middle, **common},
            "small": {"dataset": 13, "configuration": "3d_fullres", "planning": patch_3d, "region": small, **common},
            "sides": {
                "dataset": 14,
                "configuration": "3d_fullres",
                "trainer": "nnUNetTrainerExtCascade",
                "planning": {**patch_3d, "network": "context", "spacing_mm": [6.0, 5.0, 5.0]},
                "region": sides,
                "plans": "nnUNetPlansExtCPUContext",
                "settings": SETTINGS,
            },
        },
        "fusion": {"owners": "select", "first": ["Brainstem"]},
    }


@dataclass(frozen=True)
class World:
    """nnU-Net's three folders, a recipe, and a foreign folder to run commands in."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("nnUNet_", "PYTHON"))}
        roots = {f"nnUNet_{name}": str(self.folder / name) for name in ("raw", "preprocessed", "results")}
        single = {"nnUNet_n_proc_DA": "0", "nnUNet_def_n_proc": "1", "nnUNet_compile": "f", "OMP_NUM_THREADS": "1"}
        return {**kept, **roots, **single}

    @property
    def dataset(self) -> Path:
        return self.folder / "raw" / "Dataset011_Tiny"

    @property
    def recipe(self) -> Path:
        return self.folder / "tiny.yaml"

    @property
    def summary(self) -> Path:
        return self.folder / "results" / "recipes" / "tiny"

    def start(self, *command: object, **environment: str) -> subprocess.Popen[str]:
        (self.folder / "foreign").mkdir(exist_ok=True)
        name, *arguments = map(str, command)
        return subprocess.Popen(
            [str(COMMANDS / name), *arguments],
            cwd=self.folder / "foreign",
            env={**self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, *command: object, code: int = 0, **environment: str) -> str:
        with self.start(*command, **environment) as process:
            text, _ = process.communicate()
        assert process.returncode == code, text[-3000:]
        return text

    def train(self, code: int = 0) -> str:
        return self.run("nnunet-ext", "train", self.recipe, "--jobs", len(os.sched_getaffinity(0)), code=code)


def draw_source(folder: Path) -> None:
    """Phantoms at half the resolution, 6 × 4 × 4 mm."""
    for seed in range(CASES):
        image, labels, grid = draw_case(seed)
        image, labels = image[::2, ::2, ::2], labels[::2, ::2, ::2]
        z, y, x = image.shape
        sz, sy, sx = grid.spacing_mm
        coarse = Grid((z, y, x), (2 * sz, 2 * sy, 2 * sx), grid.origin_mm)
        write_image(folder / "images" / f"p{seed}.nii.gz", image, coarse)
        write_labels(folder / "labels" / f"p{seed}.nii.gz", labels, coarse)


def new_world(folder: Path) -> World:
    """A converted dataset and a recipe."""
    world = World(folder)
    for name in ("raw", "preprocessed", "results"):
        (folder / name).mkdir(parents=True)
    world.recipe.write_text(yaml.safe_dump(recipe_page(), sort_keys=False))
    draw_source(folder / "source")
    world.run("nnunet-ext", "convert", "nifti", folder / "source", "-d", 11, "--name", "Tiny", "--folds", 2,
              "--labels", "Brainstem=1,Parotid_L=3,Parotid_R=4", "--ignore-labels", "2,5,6")  # fmt: skip
    return world


def label_hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.nii.gz"))}


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str], seconds: float = 400.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0][-3000:]
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def kill(process: subprocess.Popen[str]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Everything trained, selected and predicted once, undisturbed."""
    world = new_world(tmp_path_factory.mktemp("world"))
    assert "owners: Brainstem " in world.train()
    world.run("nnunet-ext", "predict", world.recipe, "-i", world.dataset / "imagesTr", "-o", world.folder / "out")
    return world


def test_training_leaves_the_table_the_estimate_and_the_fused_maps(trained: World) -> None:
    names = {path.name for path in trained.summary.iterdir()}
    assert {"fusion.json", "selection.txt", "crossval.csv", "crossval.json", "crossval_fused", "logs"} <= names
    with (trained.summary / "crossval.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert {row["model"] for row in rows} == {"2d", "3d", "small", "sides", "fused", "fused (nested)"}
    assert len(rows) == CASES * (3 + 3 + 1 + 2 + 3 + 3)
    assert len(label_hashes(trained.summary / "crossval_fused")) == CASES
    logs = sorted(path.name for path in (trained.summary / "logs").iterdir())
    assert logs == sorted(f"{model}_fold{fold}.log" for model in ("2d", "3d", "sides", "small") for fold in (0, 1))


def test_every_prediction_lies_on_its_image_and_has_a_report(trained: World) -> None:
    out = trained.folder / "out"
    assert sorted(p.name for p in out.glob("*.nii.gz")) == [f"p{i}.nii.gz" for i in range(CASES)]
    assert not list(out.glob(".part-*"))
    for i in range(CASES):
        image, grid = read_image(trained.dataset / "imagesTr" / f"p{i}_0000.nii.gz")
        labels, other = read_labels(out / f"p{i}.nii.gz")
        assert (labels.shape, other) == (image.shape, grid)
        report = json.loads((out / f"p{i}.json").read_text())
        assert set(report["owner"]) == set(ORGANS)
        assert all(region["rung"] for region in report["regions"].values())


def test_something_was_learned_or_these_tests_compare_empty_maps(trained: World) -> None:
    maps = [read_labels(path)[0] for path in (trained.folder / "out").glob("*.nii.gz")]
    assert sum(int(np.count_nonzero(labels)) for labels in maps) > 100


def test_predictions_are_evaluated_against_the_references(trained: World) -> None:
    text = trained.run("nnunet-ext", "evaluate", "-p", trained.folder / "out", "-r", trained.dataset / "labelsTr",
                       "-o", trained.folder / "scores", "--quiet")  # fmt: skip
    assert all(organ in text for organ in ORGANS)
    with (trained.folder / "scores" / "metrics.csv").open() as stream:
        assert len(list(csv.DictReader(stream))) == CASES * len(ORGANS)


def test_training_again_skips_everything_and_ends_with_the_same_choice(trained: World) -> None:
    before = {p.name: p.read_bytes() for p in trained.summary.glob("crossval.*")}
    checkpoints = {p: p.stat().st_mtime_ns for p in (trained.folder / "results").rglob("*.pth")}
    start = time.monotonic()
    text = trained.train()
    assert text.count("is done, skipped") == 8
    assert "started" not in text
    assert "preprocessing" not in text
    assert time.monotonic() - start < 120
    assert {p.name: p.read_bytes() for p in trained.summary.glob("crossval.*")} == before
    assert {p: p.stat().st_mtime_ns for p in checkpoints} == checkpoints


def test_selecting_again_writes_the_same_table(trained: World) -> None:
    before = (trained.summary / "fusion.json").read_bytes()
    trained.run("nnunet-ext", "select", trained.recipe)
    assert (trained.summary / "fusion.json").read_bytes() == before


def test_predicting_again_without_the_training_data_keeps_every_case(trained: World, tmp_path: Path) -> None:
    out = trained.folder / "out"
    times = {path: path.stat().st_mtime_ns for path in out.glob("p*")}
    text = trained.run("nnunet-ext", "predict", trained.recipe, "-i", trained.dataset / "imagesTr", "-o", out,
                       nnUNet_raw=str(tmp_path), nnUNet_preprocessed=str(tmp_path))  # fmt: skip
    assert text.count("done before, kept") == CASES
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_a_prediction_that_is_killed_and_run_again_gives_identical_files(trained: World) -> None:
    out = trained.folder / "killed"
    command = ("nnunet-ext", "predict", trained.recipe, "-i", trained.dataset / "imagesTr", "-o", out)
    process = trained.start(*command)
    wait_for(lambda: list(out.glob("p*.nii.gz")), process)
    kill(process)
    assert 1 <= len(label_hashes(out)) < CASES
    text = trained.run(*command)
    assert text.count("done before, kept") < CASES
    assert label_hashes(out) == label_hashes(trained.folder / "out")


def test_some_organs_come_out_as_they_do_among_all_under_their_own_numbers(trained: World) -> None:
    out = trained.folder / "some"
    trained.run("nnunet-ext", "predict", trained.recipe, "--organs", "Parotid_L", "Parotid_R",
                "-i", trained.dataset / "imagesTr", "-o", out)  # fmt: skip
    for i in range(CASES):
        some, everything = (read_labels(folder / f"p{i}.nii.gz")[0] for folder in (out, trained.folder / "out"))
        assert set(np.unique(some)) <= {0, 2, 3}
        np.testing.assert_array_equal(np.where(everything > 1, everything, 0)[everything != 1], some[everything != 1])
        assert json.loads((out / f"p{i}.json").read_text())["organs"] == ["Parotid_L", "Parotid_R"]


def test_python_gives_what_the_command_gives(trained: World) -> None:
    image = trained.dataset / "imagesTr" / "p0_0000.nii.gz"
    program = (
        "import json, sys, numpy as np; from nnunet_ext.recipe.schema import Recipe; "
        "labels, report = Recipe.load(sys.argv[1]).predict(sys.argv[2]); "
        "np.save(sys.argv[3], labels); print(json.dumps(report))"
    )
    made = trained.folder / "python.npy"
    command = [sys.executable, "-c", program, str(trained.recipe), str(image), str(made)]
    done = subprocess.run(command, env=trained.environment, cwd=trained.folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load(made), read_labels(trained.folder / "out" / "p0.nii.gz")[0])
    written, given = json.loads((trained.folder / "out" / "p0.json").read_text()), json.loads(done.stdout)
    assert set(written) - set(given) == {"case", "models", "inputs", "output_sha256"}
    assert {k: v for k, v in given.items() if k != "stages"} == {k: written[k] for k in given if k != "stages"}


def test_a_folder_with_a_bad_case_ends_with_exit_code_3_and_the_good_case_comes_out(trained: World) -> None:
    mixed, out = trained.folder / "mixed", trained.folder / "mixed_out"
    mixed.mkdir()
    for case in ("p0", "p1"):
        shutil.copy(trained.dataset / "imagesTr" / f"{case}_0000.nii.gz", mixed)
    cut = mixed / "p1_0000.nii.gz"
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    text = trained.run("nnunet-ext", "predict", trained.recipe, "-i", mixed, "-o", out, code=3)
    assert f"p1: {cut} is truncated or damaged" in text
    assert "Traceback" not in text
    assert label_hashes(out) == {"p0.nii.gz": label_hashes(trained.folder / "out")["p0.nii.gz"]}
    assert not list(out.glob(".part-*"))


def test_stock_predict_reads_the_model_and_gives_the_voxels_that_ours_gives(trained: World) -> None:
    from nnunet_ext.io.orientation import to_lps
    from nnunet_ext.recipe.models import load_model

    images, out = trained.folder / "one", trained.folder / "stock_out"
    images.mkdir()
    shutil.copy(trained.dataset / "imagesTr" / "p1_0000.nii.gz", images)
    line = trained.run("nnunet-ext", "env").strip()
    name, _, value = line.removeprefix("export ").partition("=")
    trained.run("nnUNetv2_predict", "-i", images, "-o", out, "-d", 11, "-c", "2d", "-f", 0, "-npp", 1, "-nps", 1,
                "-tr", "nnUNetTrainerExtNoMirror", "-p", "nnUNetPlansExtCPU", "-device", "cpu",
                **{name: value.strip("'\"")})  # fmt: skip
    stock, _ = read_labels(out / "p1.nii.gz")
    folder = trained.folder / "results" / "Dataset011_Tiny" / "nnUNetTrainerExtNoMirror__nnUNetPlansExtCPU__2d"
    image, grid = to_lps(*read_image(images / "p1_0000.nii.gz"))
    ours = load_model(folder, [0], "cpu").predict(image[None], grid.spacing_mm)
    np.testing.assert_array_equal(ours, stock)
    assert np.count_nonzero(stock) > 100


def test_stock_train_finds_our_trainer_and_plans_from_a_foreign_folder(trained: World, tmp_path: Path) -> None:
    line = trained.run("nnunet-ext", "env").strip()
    name, _, value = line.removeprefix("export ").partition("=")
    trained.run("nnUNetv2_train", 11, "2d", 0, "-tr", "nnUNetTrainerExtNoMirror", "-p", "nnUNetPlansExtCPU", "-device",
                "cpu", nnUNet_results=str(tmp_path), **{name: value.strip("'\"")})  # fmt: skip
    theirs = tmp_path / "Dataset011_Tiny" / "nnUNetTrainerExtNoMirror__nnUNetPlansExtCPU__2d" / "fold_0"
    ours = trained.folder / "results" / theirs.relative_to(tmp_path)
    assert (theirs / "checkpoint_final.pth").exists()
    assert label_hashes(theirs / "validation") == label_hashes(ours / "validation")


def test_other_settings_are_refused_with_the_name_of_the_folder_and_nothing_is_lost(trained: World) -> None:
    page = recipe_page()
    page["models"]["2d"]["settings"] = {**SETTINGS, "num_epochs": 3}  # type: ignore[index]
    right = trained.recipe.read_text()
    trained.recipe.write_text(yaml.safe_dump(page, sort_keys=False))
    try:
        text = trained.train(code=2)
        assert "nnUNetTrainerExtNoMirror__nnUNetPlansExtCPU__2d/fold_0 was trained with other settings" in text
    finally:
        trained.recipe.write_text(right)
    assert trained.train().count("is done, skipped") == 8


def test_another_region_is_refused_with_the_name_of_its_dataset(trained: World) -> None:
    page = recipe_page()
    page["models"]["small"]["region"]["size_mm"] = [48.0, 48.0, 48.0]  # type: ignore[index]
    right = trained.recipe.read_text()
    trained.recipe.write_text(yaml.safe_dump(page, sort_keys=False))
    try:
        assert "Dataset013_tiny_small was cut for another region" in trained.train(code=2)
    finally:
        trained.recipe.write_text(right)


@pytest.mark.nightly
def test_a_training_that_is_killed_three_times_ends_with_the_same_numbers(trained: World, tmp_path: Path) -> None:
    world = new_world(tmp_path / "world")
    command = ("nnunet-ext", "train", world.recipe, "--jobs", "1")
    folds = world.folder / "results"
    for configuration in ("2d", "3d_fullres"):
        process = world.start(*command)
        wait_for(lambda c=configuration: list(folds.rglob(f"*__{c}/fold_0/checkpoint_latest.pth")), process)
        kill(process)
    process = world.start(*command)
    wait_for(lambda: (world.folder / "raw" / "Dataset013_tiny_small" / "labelsTr").exists(), process)
    kill(process)
    world.train()
    for name in ("fusion.json", "crossval.csv"):
        assert (world.summary / name).read_bytes() == (trained.summary / name).read_bytes()
    assert label_hashes(world.summary / "crossval_fused") == label_hashes(trained.summary / "crossval_fused")
