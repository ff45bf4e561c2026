"""What a recipe's audit takes from the models that own its organs, on drawn results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from nnunet_ext.fusion.rules import FusionTable
from nnunet_ext.geometry import Grid
from nnunet_ext.io.atomic import write_json
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
    write_json(places.raw / "Dataset011_Drawn" / "splits_final.json", SPLITS)
    table = FusionTable(ORGANS, owner, dict.fromkeys(recipe.models, ORGANS), list(ORGANS))
    table.save(places.fusion_table)
    return places


def write_weights(places: Places, model: str, **weights: float) -> None:
    path = places.fold_folder(model, 0) / "quality_held_out.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("case,weight\n" + "".join(f"{case},{weight}\n" for case, weight in weights.items()))


def test_every_organ_has_the_weight_that_its_owner_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = places_of(tmp_path, {"Brainstem": "plain", "Parotid_L": "weighed", "Parotid_R": "weighed"})
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    raw = places.raw / "Dataset011_Drawn"
    for fold, split in enumerate(SPLITS):
        for case in split["val"]:
            write_labels(raw / "labelsTr" / f"{case}.nii.gz", truth(), GRID)
            write_image(raw / "imagesTr" / f"{case}_0000.nii.gz", np.zeros(GRID.shape, np.float32), GRID)
            for model in places.recipe.models:
                write_labels(places.fold_folder(model, fold) / "validation" / f"{case}.nii.gz", truth(), GRID)
    write_weights(places, "weighed", case_0=0.1, case_1=1.0, case_2=1.1)
    (tmp_path / "drawn.yaml").write_text(yaml.safe_dump(PAGE))
    said: list[str] = []
    rows = audit(str(tmp_path / "drawn.yaml"), None, said.append)
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
