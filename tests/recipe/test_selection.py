from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from nnunet_ext.errors import InputError
from nnunet_ext.fusion.rules import FusionTable
from nnunet_ext.geometry import Grid
from nnunet_ext.io.nifti import read_labels, write_labels
from nnunet_ext.recipe.places import Places
from nnunet_ext.recipe.schema import Recipe
from nnunet_ext.recipe.selection import held_out_cases, select

GRID = Grid((8, 16, 24), (3.0, 1.0, 1.0), (-12.0, 0.0, 0.0))
IN_DATASET = {"Parotid_L": 1, "Parotid_R": 2, "OpticChiasm": 3}
ORGANS = ["OpticChiasm", "Parotid_L", "Parotid_R"]
"""The recipe's order: 1 chiasm, 2 left, 3 right; another one than the dataset's."""
CASES = ["a", "b", "c", "d"]
BOX = {"start": [1, 4, 6], "stop": [7, 12, 14]}
"""Region of the small model; the second half of the chiasm lies outside."""

Labels = NDArray[np.uint8]
Draw = Callable[[str], Labels]


def truth(case: str) -> Labels:
    """Left parotid at large x, right at small x, a chiasm of 2 × 2 × 4 voxels in the middle; 'd' has no chiasm."""
    labels = np.zeros(GRID.shape, np.uint8)
    labels[2:6, 4:12, 18:22] = IN_DATASET["Parotid_L"]
    labels[2:6, 4:12, 2:6] = IN_DATASET["Parotid_R"]
    if case != "d":
        labels[3:5, 7:9, 12:16] = IN_DATASET["OpticChiasm"]
    return labels


def without(organ: str) -> Draw:
    def draw(case: str) -> Labels:
        labels = truth(case)
        labels[labels == IN_DATASET[organ]] = 0
        return labels

    return draw


def eroded(*organs: str) -> Draw:
    """The truth with the lowest slice of some organs cut off."""

    def draw(case: str) -> Labels:
        labels = truth(case)
        for organ in organs:
            mask = labels == IN_DATASET[organ]
            if mask.any():
                labels[np.flatnonzero(mask.any((1, 2)))[0]][mask[np.flatnonzero(mask.any((1, 2)))[0]]] = 0
        return labels

    return draw


def perfect_region(case: str) -> Labels:
    """The small model's map of its box, chiasm is 1 there."""
    inside = tuple(slice(a, b) for a, b in zip(BOX["start"], BOX["stop"], strict=True))
    return (truth(case)[inside] == IN_DATASET["OpticChiasm"]).astype(np.uint8)


def page(**changes: Any) -> dict[str, Any]:
    return {
        "name": "drawn",
        "title": "Drawn.",
        "dataset": 11,
        "organs": ORGANS,
        "folds": [0, 1],
        "device": "cpu",
        "models": {
            "2d": {"dataset": 11, "configuration": "2d"},
            "3d": {"dataset": 11, "configuration": "3d_fullres"},
            "small": {
                "dataset": 12,
                "configuration": "3d_fullres",
                "region": {"organs": ["OpticChiasm"], "from": "2d", "size_vox": [6, 8, 8]},
            },
        },
        **changes,
    }


def sidecar_of(recipe: Recipe) -> dict[str, Any]:
    """What a derivation notes about the drawn regions."""
    entries = {c: {"case": c, "part": "both", "shifted": False, **BOX} for c in CASES}
    return {"region": recipe.models["small"].region.model_dump(by_alias=True), "cases": entries}


class World:
    """Raw datasets and results folders as a training leaves them, with label maps that are drawn."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.recipe = Recipe.model_validate(page(**changes))
        roots = [folder / name for name in ("raw", "preprocessed", "results")]
        self.places = Places(self.recipe, *roots)
        self.raw = self.places.raw / "Dataset011_Drawn"
        labels = {"background": 0, **IN_DATASET}
        self.write_json(self.raw / "dataset.json", {"labels": labels, "channel_names": {"1": "T2w", "0": "T1w"}})
        splits = [{"train": CASES[2:], "val": CASES[:2]}, {"train": CASES[:2], "val": CASES[2:]}]
        self.write_json(self.raw / "splits_final.json", splits)
        for case in CASES:
            write_labels(self.raw / "labelsTr" / f"{case}.nii.gz", truth(case), GRID)
        region = self.places.raw / "Dataset012_drawn_small"
        described = {"labels": {"background": 0, "OpticChiasm": 1}}
        self.write_json(region / "dataset.json", described)
        if "small" in self.recipe.models:
            self.write_json(region / "regions.json", sidecar_of(self.recipe))
            self.write_json(self.places.model_folder("small") / "dataset.json", described)
        self.said: list[str] = []

    @staticmethod
    def write_json(path: Path, content: Any) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))

    def validate(self, models: Mapping[str, Draw], grid: Grid | None = None) -> World:
        """Validation predictions of some models in all folds."""
        for model, draw in models.items():
            for fold in self.recipe.folds:
                for case in CASES[2 * fold : 2 * fold + 2]:
                    labels = draw(case)
                    own = Grid((labels.shape[0], labels.shape[1], labels.shape[2]), GRID.spacing_mm)
                    if labels.shape == GRID.shape:
                        own = grid or GRID
                    write_labels(self.places.fold_folder(model, fold) / "validation" / f"{case}.nii.gz", labels, own)
        return self

    def select(self) -> FusionTable:
        return select(self.places, self.said.append)

    def rows(self) -> list[dict[str, str]]:
        with (self.places.summary / "crossval.csv").open() as stream:
            return list(csv.DictReader(stream))

    def dsc(self, model: str, organ: str) -> dict[str, float]:
        return {r["case"]: float(r["dsc"]) for r in self.rows() if (r["model"], r["organ"]) == (model, organ)}

    def summary(self) -> Any:
        return json.loads((self.places.summary / "crossval.json").read_text())


@pytest.fixture
def world(tmp_path: Path) -> World:
    """2d loses the left parotid, 3d the right one, both the chiasm; small sees what is in its box."""
    neither: list[Draw] = [without("Parotid_L"), without("Parotid_R")]
    models: list[Draw] = [lambda c, d=d: np.where(d(c) == 3, 0, d(c)).astype(np.uint8) for d in neither]
    return World(tmp_path).validate({"2d": models[0], "3d": models[1], "small": perfect_region})


def test_every_organ_goes_to_the_model_that_finds_it(world: World) -> None:
    table = world.select()
    assert table.owner == {"OpticChiasm": "small", "Parotid_L": "3d", "Parotid_R": "2d"}
    assert table.organs == {"OpticChiasm": 1, "Parotid_L": 2, "Parotid_R": 3}
    assert table.models == {"2d": IN_DATASET, "3d": IN_DATASET, "small": {"OpticChiasm": 1}}
    assert FusionTable.load(world.places.fusion_table) == table


def test_the_table_says_which_file_holds_which_channel_of_the_dataset(world: World) -> None:
    assert world.select().channels == ("T1w", "T2w")


def test_small_organs_win_conflicts_unless_the_recipe_says_who_is_first(tmp_path: Path, world: World) -> None:
    assert world.select().priority[0] == "OpticChiasm"
    other = World(tmp_path / "other", fusion={"first": ["Parotid_R"]})
    other.validate({"2d": truth, "3d": truth, "small": perfect_region})
    assert other.select().priority == ["Parotid_R", "OpticChiasm", "Parotid_L"]


def test_the_fused_maps_hold_the_organs_of_their_owners_in_the_numbers_of_the_recipe(world: World) -> None:
    world.select()
    folder = world.places.summary / "crossval_fused"
    assert sorted(path.name for path in folder.iterdir()) == [f"{case}.nii.gz" for case in CASES]
    for case in CASES:
        labels, grid = read_labels(folder / f"{case}.nii.gz")
        assert grid == GRID
        np.testing.assert_array_equal(labels == 2, truth(case) == IN_DATASET["Parotid_L"])
        np.testing.assert_array_equal(labels == 3, truth(case) == IN_DATASET["Parotid_R"])


def test_region_predictions_are_pasted_and_what_the_region_cut_off_counts_as_missed(world: World) -> None:
    world.select()
    pasted, grid = read_labels(world.places.full_frame("small", 0) / "a.nii.gz")
    chiasm = truth("a") == IN_DATASET["OpticChiasm"]
    inside = np.zeros(GRID.shape, bool)
    inside[1:7, 4:12, 6:14] = True
    assert grid == GRID
    np.testing.assert_array_equal(pasted == 1, chiasm & inside)
    found, whole = (chiasm & inside).sum(), chiasm.sum()
    assert 0 < found < whole
    assert world.dsc("small", "OpticChiasm")["a"] == pytest.approx(2 * found / (found + whole), abs=1e-5)


def test_the_csv_is_tidy_and_complete(world: World) -> None:
    world.select()
    rows = world.rows()
    columns = ["model", "fold", "case", "label", "organ", "status", "dsc", "hd95_mm", "assd_mm", "rve"]
    assert list(rows[0]) == columns
    counts = {name: sum(row["model"] == name for row in rows) for name in {row["model"] for row in rows}}
    assert counts == {"2d": 12, "3d": 12, "small": 4, "fused": 12, "fused (nested)": 12}
    assert {row["case"]: row["fold"] for row in rows} == {"a": "0", "b": "0", "c": "1", "d": "1"}
    assert {row["organ"]: row["label"] for row in rows} == {"OpticChiasm": "1", "Parotid_L": "2", "Parotid_R": "3"}
    by_status = {row["status"] for row in rows}
    assert by_status == {"scored", "missed", "both_empty"}
    exact = next(row for row in rows if (row["model"], row["case"], row["organ"]) == ("3d", "a", "Parotid_L"))
    assert [float(exact[k]) for k in ("dsc", "hd95_mm", "assd_mm", "rve")] == [1.0, 0.0, 0.0, 0.0]


def test_the_printed_table_shows_models_fused_and_nested(world: World) -> None:
    world.select()
    text = (world.places.summary / "selection.txt").read_text()
    assert world.said[0] == text
    assert all(name in text for name in (*ORGANS, "2d", "3d", "small", "fused", "fused (nested)", "nested"))
    assert "fold 0: OpticChiasm small, Parotid_L 3d, Parotid_R 2d" in text


def test_the_nested_estimate_differs_where_the_choice_depends_on_the_scored_fold(tmp_path: Path) -> None:
    # 2d is perfect in fold 0 and blind in fold 1, 3d the other way round and a little worse: each fold, scored by
    # the owner that the other fold chose, gets the blind one
    def good_in(cases: Sequence[str], good: Draw) -> Draw:
        return lambda case: good(case) if case in cases else np.zeros(GRID.shape, np.uint8)

    world = World(tmp_path).validate(
        {"2d": good_in(CASES[:2], truth), "3d": good_in(CASES[2:], eroded(*IN_DATASET)), "small": perfect_region}
    )
    table = world.select()
    assert table.owner["Parotid_L"] == "2d"
    nested = world.summary()["nested_owners"]
    assert (nested["0"]["Parotid_L"], nested["1"]["Parotid_L"]) == ("3d", "2d")
    assert world.dsc("fused", "Parotid_L") == {"a": 1.0, "b": 1.0, "c": 0.0, "d": 0.0}
    assert world.dsc("fused (nested)", "Parotid_L") == dict.fromkeys(CASES, 0.0)
    assert world.summary()["dsc"]["fused"]["Parotid_L"] == 0.5
    assert world.summary()["dsc"]["fused (nested)"]["Parotid_L"] == 0.0


def test_with_a_single_fold_no_honest_estimate_is_claimed(tmp_path: Path) -> None:
    world = World(tmp_path, folds=[0]).validate({"2d": truth, "3d": truth, "small": perfect_region})
    world.select()
    assert "fused (nested)" not in {row["model"] for row in world.rows()}
    assert "not possible with a single fold" in world.said[0]


def test_an_organ_that_is_absent_everywhere_does_not_break_the_choice(tmp_path: Path) -> None:
    empty = without("OpticChiasm")
    world = World(tmp_path)
    for case in CASES:
        write_labels(world.raw / "labelsTr" / f"{case}.nii.gz", empty(case), GRID)
    region = lambda case: np.zeros((6, 8, 8), np.uint8)  # noqa: E731
    table = world.validate({"2d": empty, "3d": empty, "small": region}).select()
    assert set(table.owner) == set(ORGANS)
    assert "OpticChiasm" in table.models[table.owner["OpticChiasm"]]
    assert all(math.isnan(value) for value in world.dsc("fused", "OpticChiasm").values())
    assert "OpticChiasm" not in world.summary()["dsc"]["fused"]


def test_organs_that_nobody_contoured_in_a_case_are_not_judged_there(tmp_path: Path) -> None:
    world = World(tmp_path).validate({"2d": truth, "3d": truth, "small": perfect_region})
    labels = truth("a")
    labels[labels == IN_DATASET["Parotid_L"]] = 0
    write_labels(world.raw / "labelsTr" / "a.nii.gz", labels, GRID)
    world.select()
    assert world.dsc("2d", "Parotid_L")["a"] == 0.0
    present = {case: [1, 2, 3] for case in CASES} | {"a": [2, 3]}
    world.write_json(world.raw / "present_labels.json", present)
    world.select()
    status = {row["case"]: row["status"] for row in world.rows() if row["organ"] == "Parotid_L"}
    assert status == {"a": "not_contoured", "b": "scored", "c": "scored", "d": "scored"}
    assert world.summary()["dsc"]["2d"]["Parotid_L"] == 1.0


def test_owners_that_the_recipe_fixes_are_obeyed_and_called_fixed(tmp_path: Path) -> None:
    owners = {"OpticChiasm": "2d", "Parotid_L": "2d", "Parotid_R": "2d"}
    world = World(tmp_path, fusion={"owners": owners})
    world.validate({"2d": without("Parotid_L"), "3d": truth, "small": perfect_region})
    assert world.select().owner == owners
    assert world.dsc("fused", "Parotid_L") == dict.fromkeys(CASES, 0.0)
    assert world.dsc("fused (nested)", "Parotid_L") == dict.fromkeys(CASES, 0.0)
    assert world.said[0].count("fixed by the recipe") == len(ORGANS) + 1
    assert "over 2d" not in world.said[0]


def test_left_right_confusion_beyond_the_midline_is_counted_per_model(tmp_path: Path) -> None:
    def mirrored(case: str) -> Labels:
        labels = truth(case)
        left, right = labels == IN_DATASET["Parotid_L"], labels == IN_DATASET["Parotid_R"]
        labels[left], labels[right] = IN_DATASET["Parotid_R"], IN_DATASET["Parotid_L"]
        return labels

    world = World(tmp_path).validate({"2d": mirrored, "3d": truth, "small": perfect_region})
    world.select()
    voxels = int(np.isin(truth("a"), (1, 2)).sum()) * len(CASES)
    counted = world.summary()["side_confusion"]
    assert counted["2d"] == {"voxels": voxels, "cases": len(CASES)}
    assert counted["3d"] == counted["fused"] == {"voxels": 0, "cases": 0}
    assert any(f"2d: {voxels} voxels in 4 cases" in line for line in world.said)


def test_held_out_cases_come_in_the_numbers_of_the_recipe(world: World) -> None:
    items = {item.case: item for item in held_out_cases(world.places)}
    assert list(items) == CASES
    np.testing.assert_array_equal(items["a"].truth == 1, truth("a") == IN_DATASET["OpticChiasm"])
    assert set(np.unique(items["a"].predictions["2d"])) == {0, 3}
    assert items["a"].contoured is None


def test_a_page_whose_region_was_edited_after_training_is_refused(world: World) -> None:
    path = world.places.model_folder("small") / "dataset.json"
    noted = sidecar_of(world.recipe)["region"]
    described = {"labels": {"background": 0, "OpticChiasm": 1}}
    world.write_json(path, {**described, "nnunet_ext": {"region": {**noted, "grow_at_most": 0, "fallback": ["3d"]}}})
    world.select()
    world.write_json(path, {**described, "nnunet_ext": {"region": {**noted, "size_vox": [6, 8, 9]}}})
    with pytest.raises(InputError, match=r"trained on another region .*size_vox \[6, 8, 9\] there and \[6, 8, 8\] on"):
        world.select()
    world.write_json(path, {"labels": {"background": 0, "Parotid_L": 1, "OpticChiasm": 2}})
    with pytest.raises(InputError, match=r'labels {"Parotid_L": 1, "OpticChiasm": 2} there and {"OpticChiasm": 1}'):
        world.select()


def test_a_fold_without_predictions_is_refused_by_model_and_fold(world: World) -> None:
    for path in (world.places.fold_folder("3d", 1) / "validation").iterdir():
        path.unlink()
    with pytest.raises(InputError, match=r"fold_1/validation holds no predictions.* model 3d, fold 1"):
        world.select()
    assert not world.places.fusion_table.exists()


def test_a_single_missing_prediction_is_refused_by_its_path(world: World) -> None:
    (world.places.fold_folder("2d", 0) / "validation" / "b.nii.gz").unlink()
    with pytest.raises(InputError, match=r"fold_0/validation/b\.nii\.gz does not exist"):
        world.select()


def test_predictions_on_another_grid_are_refused(world: World) -> None:
    world.validate({"2d": truth}, grid=Grid(GRID.shape, (3.0, 1.0, 1.5), GRID.origin_mm))
    with pytest.raises(InputError, match=r"a\.nii\.gz lies on another grid than the reference: corners up to"):
        world.select()


def test_an_organ_that_the_dataset_lacks_is_refused(tmp_path: Path) -> None:
    world = World(tmp_path).validate({"2d": truth, "3d": truth, "small": perfect_region})
    world.write_json(world.raw / "dataset.json", {"labels": {"background": 0, "Parotid_L": 1, "Parotid_R": 2}})
    with pytest.raises(InputError, match="Dataset011_Drawn has no organ OpticChiasm; it has Parotid_L, Parotid_R"):
        world.select()


def test_a_fold_that_the_dataset_does_not_have_is_refused(tmp_path: Path) -> None:
    world = World(tmp_path, folds=[0, 1, 2])
    with pytest.raises(InputError, match="fold 2 of recipe drawn does not exist, the dataset has 2"):
        world.places.validation_cases(2)


@pytest.mark.parametrize("others", [[], ["Dataset011_Other"]])
def test_a_dataset_number_must_name_exactly_one_dataset(tmp_path: Path, others: list[str]) -> None:
    world = World(tmp_path)
    for name in others:
        (world.places.raw / name).mkdir()
    number = 11 if others else 14
    with pytest.raises(InputError, match="2 datasets have the number 11" if others else "no dataset has the number 14"):
        world.places.dataset_name(number)


def test_a_model_of_another_dataset_with_other_numbers_and_fewer_organs_takes_part(tmp_path: Path) -> None:
    models = {
        "2d": {"dataset": 11, "configuration": "2d"},
        "other": {"dataset": 14, "configuration": "3d_fullres"},
    }
    world = World(tmp_path, models=models)
    world.write_json(
        world.places.raw / "Dataset014_Other" / "dataset.json", {"labels": {"OpticChiasm": 1, "Lens_L": 2}}
    )
    world.validate({"2d": without("OpticChiasm"), "other": lambda c: (truth(c) == 3).astype(np.uint8)})
    table = world.select()
    assert table.owner == {"OpticChiasm": "other", "Parotid_L": "2d", "Parotid_R": "2d"}
    assert table.models["other"] == {"OpticChiasm": 1}
    assert world.summary()["dsc"]["fused"] == dict.fromkeys(ORGANS, 1.0)


def test_what_a_model_says_of_voxels_that_nobody_judged_does_not_count(tmp_path: Path) -> None:
    def generous(case: str) -> Labels:
        labels = truth(case)
        labels[2:6, 4:12, 14:18] = IN_DATASET["Parotid_R"]  # on the left side, where the truth is not known
        labels[2:6, 4:12, 6:10] = IN_DATASET["Parotid_R"]
        return labels

    world = World(tmp_path).validate({"2d": generous, "3d": generous, "small": perfect_region})
    assert world.select()
    assert world.dsc("2d", "Parotid_R")["a"] == 0.5
    labels = {"background": 0, **IN_DATASET, "ignore": 4}
    world.write_json(world.raw / "dataset.json", {"labels": labels, "channel_names": {"0": "CT"}})
    for case in CASES:
        labels = truth(case)
        labels[2:6, 4:12, 6:10] = labels[2:6, 4:12, 14:18] = 4
        write_labels(world.raw / "labelsTr" / f"{case}.nii.gz", labels, GRID)
    table = world.select()
    assert table.organs == {organ: number for number, organ in enumerate(ORGANS, 1)}
    for name in ("2d", "fused", "fused (nested)"):
        assert world.dsc(name, "Parotid_R") == dict.fromkeys(CASES, 1.0)
    assert world.summary()["side_confusion"]["2d"] == {"voxels": 0, "cases": 0}
