"""What a recipe's audit takes from the models that own its organs, on drawn results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from nnunet_ext.errors import InputError
from nnunet_ext.fusion.rules import FusionTable
from nnunet_ext.geometry import Grid
from nnunet_ext.io.atomic import read_json, write_json
from nnunet_ext.io.nifti import write_image, write_labels
from nnunet_ext.recipe.audit import audit
from nnunet_ext.recipe.audit_cases import RecipeCases
from nnunet_ext.recipe.places import Places
from nnunet_ext.recipe.schema import Recipe

GRID = Grid((8, 24, 32), (3.0, 1.5, 1.5))
CASES = [f"case_{i}" for i in range(6)]
SPLITS = [{"train": CASES[3:], "val": CASES[:3]}, {"train": CASES[:3], "val": CASES[3:]}]
ORGANS = {"Brainstem": 1, "Parotid_L": 2, "Parotid_R": 3}
PAGE: dict[str, Any] = {
    "name": "drawn",
    "title": "Drawn.",
    "dataset": 11,
    "organs": list(ORGANS),
    "folds": [0, 1],
    "device": "cpu",
    "models": {
        "plain": {"dataset": 11, "configuration": "3d_fullres"},
        "weighed": {"dataset": 11, "configuration": "3d_fullres", "trainer": "nnUNetTrainerExtQuality"},
    },
}
SIDES = {"organs": ["Parotid_L", "Parotid_R"], "from": "plain", "size_vox": [6, 8, 8], "flip_right": True}


def truth() -> np.ndarray:
    labels = np.zeros(GRID.shape, np.uint8)
    labels[2:6, 8:16, 14:18] = ORGANS["Brainstem"]
    labels[2:6, 8:16, 22:28] = ORGANS["Parotid_L"]
    labels[2:6, 8:16, 4:10] = ORGANS["Parotid_R"]
    return labels


def places_of(folder: Path, owner: dict[str, str], **models: Any) -> Places:
    """A trained recipe, as far as it is needed before predictions are read."""
    recipe = Recipe.model_validate({**PAGE, "models": {**PAGE["models"], **models}})
    places = Places(recipe, folder / "raw", folder / "preprocessed", folder / "results")
    described = {"channel_names": {"0": "CT"}, "labels": {"background": 0, **ORGANS}}
    write_json(places.raw / "Dataset011_Drawn" / "dataset.json", described)
    for model in (model for model, spec in recipe.models.items() if spec.region is None):
        write_json(places.model_folder(model) / "dataset.json", described)
    write_json(places.raw / "Dataset011_Drawn" / "splits_final.json", SPLITS)
    table = FusionTable(ORGANS, owner, dict.fromkeys(recipe.models, ORGANS), list(ORGANS))
    table.save(places.fusion_table)
    return places


def write_weights(places: Places, model: str, **weights: float) -> None:
    path = places.fold_folder(model, 0) / "quality_held_out.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("case,weight\n" + "".join(f"{case},{weight}\n" for case, weight in weights.items()))


def written(places: Places, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """All files of a trained recipe whose models are right, and its page."""
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(folder / name))
    raw = places.raw / "Dataset011_Drawn"
    for fold, split in enumerate(SPLITS):
        for case in split["val"]:
            write_labels(raw / "labelsTr" / f"{case}.nii.gz", truth(), GRID)
            write_image(raw / "imagesTr" / f"{case}_0000.nii.gz", np.zeros(GRID.shape, np.float32), GRID)
            for model in places.recipe.models:
                write_labels(places.fold_folder(model, fold) / "validation" / f"{case}.nii.gz", truth(), GRID)
    (folder / "drawn.yaml").write_text(yaml.safe_dump(PAGE))
    return str(folder / "drawn.yaml")


def test_every_organ_has_the_weight_that_its_owner_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = places_of(tmp_path, {"Brainstem": "plain", "Parotid_L": "weighed", "Parotid_R": "weighed"})
    page = written(places, tmp_path, monkeypatch)
    write_weights(places, "weighed", case_0=0.1, case_1=1.0, case_2=1.1)
    said: list[str] = []
    rows = audit(page, None, said.append)
    weights = {(row.case, row.organ): row.weight for row in rows if np.isfinite(row.weight)}
    assert weights == {
        (case, organ): weight
        for case, weight in (("case_0", 0.1), ("case_1", 1.0), ("case_2", 1.1))
        for organ in ("Parotid_L", "Parotid_R")
    }
    assert rows[0].case == "case_0"
    assert rows[0].organ != "Brainstem"
    assert "cases the quality network distrusts: case_0 (weight 0.1)" in said
    assert (places.summary / "audit" / "audit.csv").exists()


def test_the_two_sides_of_a_mirrored_region_have_weights_of_their_own(tmp_path: Path) -> None:
    owner = {"Brainstem": "plain", "Parotid_L": "sides", "Parotid_R": "sides"}
    places = places_of(tmp_path, owner, sides={"dataset": 12, "configuration": "3d_fullres", "region": SIDES})
    names = {f"case_0_{s[0].upper()}": {"case": "case_0", "part": s, "shifted": False} for s in ("left", "right")}
    write_json(places.raw / places.region_name("sides") / "regions.json", {"cases": names})
    write_weights(places, "sides", case_0_L=0.5, case_0_R=1.5, not_cut_any_more=1.0)
    found = RecipeCases(places).quality
    weights = {key: said.weight for key, said in found[0].items()}
    assert weights == {("case_0", "Parotid_L"): 0.5, ("case_0", "Parotid_R"): 1.5}
    assert found[1] == {}


def test_a_recipe_without_quality_trainers_has_no_weights(tmp_path: Path) -> None:
    places = places_of(tmp_path, dict.fromkeys(ORGANS, "plain"))
    assert RecipeCases(places).quality == {0: {}, 1: {}}


def test_a_member_that_was_trained_on_other_labels_is_refused(tmp_path: Path) -> None:
    places = places_of(tmp_path, dict.fromkeys(ORGANS, "plain"))
    path = places.model_folder("plain") / "dataset.json"
    write_json(path, {**read_json(path), "labels": {"background": 0, **ORGANS, "Parotid_L": 3, "Parotid_R": 2}})
    with pytest.raises(InputError, match=r"Parotid_L \(2 and 3\), Parotid_R \(3 and 2\)") as caught:
        RecipeCases(places)
    assert str(path) in str(caught.value)
    assert str(places.raw / "Dataset011_Drawn" / "dataset.json") in str(caught.value)


def test_a_region_model_may_number_its_organs_as_it_likes(tmp_path: Path) -> None:
    owner = {"Brainstem": "plain", "Parotid_L": "sides", "Parotid_R": "sides"}
    places = places_of(tmp_path, owner, sides={"dataset": 12, "configuration": "3d_fullres", "region": SIDES})
    write_json(places.model_folder("sides") / "dataset.json", {"labels": {"background": 0, "Parotid": 1}})
    assert RecipeCases(places).is_ct


def test_an_organ_is_judged_with_those_inside_it_in_both_maps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if Parotid_R lay inside the brainstem: in one case a part of that is drawn so, which the model never does."""
    places = places_of(tmp_path, dict.fromkeys(ORGANS, "plain"))
    page, raw = written(places, tmp_path, monkeypatch), places.raw / "Dataset011_Drawn"
    inner = {"nnunet_ext": {"contains": {"Brainstem": ["Parotid_R"]}}}
    write_json(raw / "dataset.json", {**read_json(raw / "dataset.json"), **inner})
    labels = truth()
    labels[2:6, 8:11, 14:18] = ORGANS["Parotid_R"]
    write_labels(raw / "labelsTr" / "case_1.nii.gz", labels, GRID)
    rows = audit(page, None, lambda line: None)
    judged = {(row.case, row.organ): row for row in rows}
    assert judged["case_1", "Brainstem"].dsc == 1
    assert judged["case_1", "Parotid_R"].dsc < 0.95
    write_json(raw / "present_labels.json", {"case_1": [2, 3], "case_2": [1, 2]})
    known = {(row.case, row.organ) for row in audit(page, None, lambda line: None)}
    assert not {("case_1", "Brainstem"), ("case_2", "Parotid_R")} & known
    assert ("case_2", "Brainstem") in known


@pytest.mark.parametrize(
    ("listed", "named"), [({"case_7": [1]}, "lists case_7, but"), ({"case_1": [1, 9]}, "label 9 in case_1")]
)
def test_a_wrong_list_of_contoured_labels_is_refused(tmp_path, monkeypatch, listed, named):
    places = places_of(tmp_path, dict.fromkeys(ORGANS, "plain"))
    page = written(places, tmp_path, monkeypatch)
    write_json(places.raw / "Dataset011_Drawn" / "present_labels.json", listed)
    with pytest.raises(InputError, match=named):
        audit(page, None, lambda line: None)


@pytest.mark.parametrize("channels", [None, {}, {"0": 7}])
def test_a_dataset_without_a_first_channel_is_named(tmp_path: Path, channels: object) -> None:
    places = places_of(tmp_path, dict.fromkeys(ORGANS, "plain"))
    path = places.raw / "Dataset011_Drawn" / "dataset.json"
    write_json(path, {**read_json(path), "channel_names": channels})
    with pytest.raises(InputError, match='"channel_names" is') as caught:
        RecipeCases(places)
    assert str(path) in str(caught.value)


def test_planted_noise_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = places_of(tmp_path, dict.fromkeys(ORGANS, "plain"))
    page = written(places, tmp_path, monkeypatch)
    entries = dict.fromkeys(CASES) | {"case_4": {"direction": "erode"}}
    write_json(places.raw / "Dataset011_Drawn" / "noise.json", {"source": "Dataset010_Clean", "cases": entries})
    warned: list[str] = []
    audit(page, None, lambda line: None, warned.append)
    assert len(warned) == 1
    assert "1 of 6 cases were corrupted on purpose (case_4)" in warned[0]
    assert "Dataset010_Clean" in warned[0]
