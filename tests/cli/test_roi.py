from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from nnunet_ext.cli.roi import command
from nnunet_ext.errors import InputError
from nnunet_ext.geometry import Grid
from nnunet_ext.io.nifti import read_labels, write_image, write_labels

GRID = Grid((8, 12, 16), (3.0, 1.0, 1.0))
CASES = ("a", "b")
SIZE = ("--size-vox", "4", "6", "8")


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """nnUNet_raw with dataset 11: two cases, a brainstem of 2 × 3 × 4 voxels."""
    for name in ("raw", "preprocessed", "results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    dataset = tmp_path / "raw" / "Dataset011_Drawn"
    for i, case in enumerate(CASES):
        labels = np.zeros(GRID.shape, np.uint8)
        labels[3:5, 5:8, 6 + i : 10 + i] = 2
        image = np.full(GRID.shape, -1000, np.float32)
        image[1:7, 1:11, 1:15] = 40
        write_image(dataset / "imagesTr" / f"{case}_0000.nii.gz", image, GRID)
        write_labels(dataset / "labelsTr" / f"{case}.nii.gz", labels, GRID)
    content = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "Eye_L": 1, "Brainstem": 2}}
    (dataset / "dataset.json").write_text(json.dumps({**content, "numTraining": 2, "file_ending": ".nii.gz"}))
    splits = [{"train": ["a"], "val": ["b"]}, {"train": ["b"], "val": ["a"]}]
    (dataset / "splits_final.json").write_text(json.dumps(splits))
    return tmp_path / "raw"


def run(*options: str, organs: str = "Brainstem", origin: str = "truth", target: str = "12") -> Result:
    return CliRunner().invoke(command, ["-d", "11", "-o", target, "--organs", organs, "--from", origin, *options])


def refusal(result: Result) -> str:
    assert isinstance(result.exception, InputError), result.output
    return str(result.exception)


def test_preprocessed_data_of_an_earlier_cut_are_named(raw: Path) -> None:
    assert "WARNING" not in run(*SIZE, "--name", "Stem").stderr
    (raw.parent / "preprocessed" / "Dataset013_Stem").mkdir()
    stderr = run(*SIZE, "--name", "Stem", target="13").stderr
    assert "preprocessed/Dataset013_Stem was made from an earlier dataset of this name; delete it" in stderr


def test_regions_become_a_dataset_and_the_command_says_how_much_they_keep(raw: Path) -> None:
    result = run(*SIZE, "--name", "Stem", "--copies", "1")
    assert result.exit_code == 0, result.exception
    assert "Brainstem: 100.00% of the truth inside the region, minimum 100.00%" in result.output
    assert "centres: truth 2" in result.output
    assert result.stdout.splitlines()[-1] == f"written: {raw / 'Dataset012_Stem'}; next: nnunet-ext plan -d 12"
    names = sorted(path.name for path in (raw / "Dataset012_Stem" / "labelsTr").iterdir())
    assert names == ["a.nii.gz", "a_jitter1.nii.gz", "b.nii.gz", "b_jitter1.nii.gz"]
    labels, grid = read_labels(raw / "Dataset012_Stem" / "labelsTr" / "a.nii.gz")
    assert grid.shape == (4, 6, 8)
    assert set(np.unique(labels)) == {0, 1}


def test_a_size_in_mm_is_rounded_up_to_voxels(raw: Path) -> None:
    assert run("--size-mm", "13", "6", "8").exit_code == 0
    assert read_labels(raw / "Dataset012_Regions" / "labelsTr" / "a.nii.gz")[1].shape == (5, 6, 8)


def test_a_region_that_cuts_the_organ_names_the_cases_below_99_percent(raw: Path) -> None:
    result = run("--size-vox", "4", "6", "2")
    assert "Brainstem: 50.00% of the truth inside the region, minimum 50.00%; below 99 %: a, b" in result.output


def test_copies_are_the_same_for_the_same_seed_only(raw: Path) -> None:
    def boxes(number: str, *options: str) -> object:
        assert run(*SIZE, *options, target=number).exit_code == 0
        content = json.loads((raw / f"Dataset0{number}_Regions" / "regions.json").read_text())
        return [entry["start"] for entry in content["cases"].values()]

    wide = ("--jitter-vox", "2", "3", "3")
    assert boxes("12", *wide) == boxes("13", *wide)
    assert boxes("14", *wide, "--seed", "7") != boxes("15", *wide)


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        (("--size-vox", "0", "6", "8"), "must be positive"),
        (("--size-mm", "nan", "6", "8"), "must be positive and finite"),
        ((*SIZE, "--jitter-vox", "-1", "2", "2"), "jitter_vox must be finite and not be negative"),
        ((*SIZE, "--seed", "-3"), "region.seed: Input should be greater than or equal to 0"),
        ((*SIZE, "--organs", "Brainstem"), "organs must name every organ of the region once"),
        ((*SIZE, "--fallback", "/nowhere"), 'fallback is asked where a model finds nothing; with from: "truth" leave'),
    ],
)
def test_a_region_that_makes_no_sense_is_refused(raw: Path, options: tuple[str, ...], cause: str) -> None:
    assert cause in refusal(run(*options))
    assert not list(raw.glob("Dataset012_*"))


@pytest.mark.parametrize(
    ("options", "cause"),
    [((), "exactly one of size_mm, size_vox, margin_mm, fraction"), ((*SIZE, "--size-mm", "12", "6", "8"), "exactly")],
)
def test_a_size_is_given_exactly_once(raw: Path, options: tuple[str, ...], cause: str) -> None:
    assert cause in refusal(run(*options))
    assert not list(raw.glob("Dataset012_*"))


def test_an_unknown_organ_a_missing_dataset_and_a_taken_number_are_refused(raw: Path) -> None:
    assert "has no organ Lens_L; it has Eye_L, Brainstem" in refusal(run(*SIZE, organs="Brainstem, Lens_L"))
    assert "Dataset011_Drawn has the number 11" in refusal(run(*SIZE, target="11"))
    (raw / "Dataset011_Drawn").rename(raw / "Dataset010_Drawn")
    assert "holds 0 datasets with the number 11" in refusal(run(*SIZE))


@pytest.mark.parametrize(
    ("target", "name", "cause"),
    [("2000", "Stem", "not between 1 and 999"), ("12", "a b", "must be letters"), ("12", "a__b", "double __")],
)
def test_a_number_or_name_that_nnunet_could_not_find_is_refused(raw: Path, target: str, name: str, cause: str) -> None:
    assert cause in refusal(run(*SIZE, "--name", name, target=target))
    assert [path.name for path in raw.iterdir()] == ["Dataset011_Drawn"]


def test_a_number_that_other_folders_know_under_another_name_is_refused(raw: Path) -> None:
    (raw.parent / "preprocessed" / "Dataset012_Old").mkdir()
    said = refusal(run(*SIZE, "--name", "Stem"))
    assert "Dataset012_Old has the number of Dataset012_Stem under another name" in said


@pytest.mark.parametrize(
    ("text", "cause"),
    [("{broken", "cannot be read as JSON"), ('{"train": []}', "must be a list of folds"), ("[[]]", "list of folds")],
)
def test_a_damaged_list_of_folds_is_named(raw: Path, text: str, cause: str) -> None:
    path = raw / "Dataset011_Drawn" / "splits_final.json"
    path.write_text(text)
    said = refusal(run(*SIZE))
    assert said.startswith(str(path))
    assert cause in said


def test_a_locator_must_be_a_trained_model_with_predictions_on_held_out_cases(raw: Path) -> None:
    folder = raw.parent / "results" / "Dataset011_Drawn" / "Trainer__Plans__2d"
    assert f"{folder} is no trained model" in refusal(run(*SIZE, origin=str(folder)))
    folder.mkdir(parents=True)
    (folder / "dataset.json").write_text((raw / "Dataset011_Drawn" / "dataset.json").read_text())
    assert "no held-out prediction for 2 cases (a, b)" in refusal(run(*SIZE, origin=str(folder)))


def trained(raw: Path, dataset: str, finds: int = 1) -> Path:
    """A model that sees every organ one voxel aside, or nothing."""
    folder = raw.parent / "results" / dataset / "Trainer__Plans__2d"
    for fold, case in enumerate(("b", "a")):
        labels, grid = read_labels(raw / "Dataset011_Drawn" / "labelsTr" / f"{case}.nii.gz")
        moved = np.roll(labels * np.uint8(finds), 1, axis=2)
        write_labels(folder / f"fold_{fold}" / "validation" / f"{case}.nii.gz", moved, grid)
        (folder / f"fold_{fold}" / "checkpoint_final.pth").write_bytes(b"weights")
    (folder / "dataset.json").write_text((raw / "Dataset011_Drawn" / "dataset.json").read_text())
    (raw / dataset).mkdir(exist_ok=True)
    (raw / dataset / "splits_final.json").write_text((raw / "Dataset011_Drawn" / "splits_final.json").read_text())
    return folder


def test_models_of_two_datasets_whose_folders_have_one_name_are_told_apart(raw: Path) -> None:
    blind, seeing = trained(raw, "Dataset013_Other", finds=0), trained(raw, "Dataset011_Drawn")
    for number, (first, second) in {"12": (seeing, blind), "14": (blind, seeing)}.items():
        result = run(*SIZE, "--fallback", str(second), origin=str(first), target=number)
        assert result.exit_code == 0, result.exception
        content = json.loads((raw / f"Dataset0{number}_Regions" / "regions.json").read_text())
        rung = "located" if first == seeing else "fallback:Dataset011_Drawn/Trainer__Plans__2d"
        assert {entry["rung"] for entry in content["cases"].values()} == {rung}
    assert "two locating models are named Dataset011_Drawn/Trainer__Plans__2d" in refusal(
        run(*SIZE, "--fallback", f"{seeing}/../Trainer__Plans__2d", origin=str(seeing), target="15")
    )


def test_predictions_of_the_fold_that_held_a_case_out_give_its_centre(raw: Path) -> None:
    folder = trained(raw, "Dataset011_Drawn")
    result = run(*SIZE, origin=str(folder))
    assert "centres: located 2" in result.output
    assert "WARNING Trainer__Plans__2d, fold 0, 1: out-of-fold not provable" in result.stderr
    cases = json.loads((raw / "Dataset012_Regions" / "regions.json").read_text())["cases"]
    assert {name: cases[name]["locator"]["fold"] for name in CASES} == {"a": 1, "b": 0}
    assert cases["b"]["start"][2] == cases["a"]["start"][2] + 1


def test_the_variable_that_is_missing_is_named(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("nnUNet_raw")
    assert "nnUNet_raw is not set" in refusal(run(*SIZE))


def test_wrong_options_are_usage_errors() -> None:
    assert CliRunner().invoke(command, ["-d", "11", "-o", "12", "--from", "truth"]).exit_code == 2
    assert run("--size-vox", "4", "6").exit_code == 2
    assert run(*SIZE, "--copies", "-1").exit_code == 2


def test_the_verb_ends_with_exit_code_2_and_one_sentence_and_loads_no_torch(raw: Path) -> None:
    code = (
        "import sys, atexit; sys.argv = ['nnunet-ext', 'roi', '-d', '99', '-o', '12', '--organs', 'A', '--from', "
        "'truth', '--size-vox', '4', '4', '4']; from nnunet_ext.cli import main; "
        "atexit.register(lambda: print([m for m in ('torch', 'nnunetv2') if m in sys.modules])); main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "[]\n")
    assert done.stderr.count("\n") == 1


def test_a_region_may_follow_the_organ_with_margins(raw: Path) -> None:
    assert run("--margin-mm", "3", "2", "2", "--copies", "0").exit_code == 0
    labels, _ = read_labels(raw / "Dataset012_Regions" / "labelsTr" / "a.nii.gz")
    assert labels.shape == (2 + 2, 3 + 4, 4 + 4)


def test_margins_from_the_truth_alone_cannot_be_learned_and_are_given_once(raw: Path) -> None:
    assert "give numbers" in refusal(run("--margin-auto"))
    result = run("--margin-auto", "--margin-mm", "1", "1", "1")
    assert (result.exit_code, "not both" in result.output) == (2, True)


def test_too_small_a_region_is_a_warning_before_anybody_trains(raw: Path) -> None:
    result = run("--size-vox", "1", "2", "2", "--copies", "0")
    assert result.exit_code == 0
    assert "WARNING Brainstem: regions keep 16.67%" in result.stderr


def test_one_network_for_both_sides_needs_both_sides(raw: Path) -> None:
    assert "come in pairs" in refusal(run(*SIZE, "--flip-right"))
