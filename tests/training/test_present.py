"""Cases whose organs were not all contoured, through our trainers."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_ext.errors import InputError
from nnunet_ext.losses.present import without_absent
from nnunet_ext.training import present
from nnunet_ext.training.base import nnUNetTrainerExt
from nnunet_ext.training.mirroring import nnUNetTrainerExtMirrorSwap, nnUNetTrainerExtNoMirror
from nnunet_ext.training.present import absent_heads, present_file
from nnunet_ext.training.refinement import nnUNetTrainerExtRefine

LABELS = {"background": 0, "Parotid_L": 1, "Parotid_R": 2, "Bone_Mandible": 3}
LACKS_LEFT = [2, 3]


def test_heads_of_a_softmax_and_of_regions():
    assert absent_heads([2, 3], LabelManager(LABELS, None)) == [False, True, False, False]
    assert absent_heads([1, 2, 3], LabelManager(LABELS, None)) == [False] * 4
    regions = LabelManager({"background": 0, "both": [1, 2], "jaw": 3, "ignore": 4}, [1, 3])
    assert absent_heads([1, 3], regions) == [True, False]


def test_the_raw_list_goes_before_the_copy_of_planning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    raw, copy = tmp_path / "raw" / "D" / "present_labels.json", tmp_path / "pre" / "present_labels.json"
    for path in (raw, copy):
        path.parent.mkdir(parents=True)
        path.write_text("{}")
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    assert present_file("D", copy.parent) == raw
    monkeypatch.delenv("nnUNet_raw")
    assert present_file("D", copy.parent) == copy
    copy.unlink()
    assert present_file("D", copy.parent) is None


@pytest.fixture
def listed(world: SimpleNamespace) -> Any:
    """Writes the list of contoured labels of the tiny world; removed afterwards."""
    path = world.preprocessed / "present_labels.json"
    yield lambda content: path.write_text(json.dumps(content))
    path.unlink(missing_ok=True)


def made(in_world: Any, trainer: type, **block: Any) -> Any:
    trainer = in_world(trainer, "3d_fullres", nnunet_ext=block)
    trainer.initialize()
    return trainer


def batch_of(trainer: Any, cases: list[str], label: int = 1) -> dict[str, Any]:
    """A batch in which every patch shows one organ."""
    patch, deep = trainer.configuration_manager.patch_size, trainer.enable_deep_supervision
    scales = trainer._get_deep_supervision_scales() if deep else [[1] * len(patch)]
    target = [
        torch.zeros(len(cases), 1, *(round(n * s) for n, s in zip(patch, scale, strict=True))) for scale in scales
    ]
    for scaled in target:
        scaled[:, :, : scaled.shape[2] // 2] = label
    image = torch.randn(len(cases), 1, *patch, generator=torch.Generator().manual_seed(0))
    return {"data": image, "target": target if deep else target[0], "keys": cases}


@pytest.mark.slow
@pytest.mark.parametrize("deep_supervision", [False, True])
@pytest.mark.parametrize("kind", [nnUNetTrainerExt, nnUNetTrainerExtNoMirror])
def test_an_absent_organ_is_neither_foreground_nor_background(in_world, listed, kind, deep_supervision):
    listed({"case_0": LACKS_LEFT, "case_1": [1, 2, 3]})
    trainer = made(in_world, kind, deep_supervision=deep_supervision)
    assert trainer.absent_in_cases() == {"case_0": [False, True, False, False]}
    network, absent = trainer.network, torch.tensor([[False, True, False, False]] * 2)
    batch = batch_of(trainer, ["case_0", "case_0"], label=2)
    with torch.no_grad():
        output = network(batch["data"])
        levels = output if deep_supervision else [output]
        merged = [without_absent(level, absent, regions=False) for level in levels]
        expected = trainer.loss(merged if deep_supervision else merged[0], batch["target"])
        stock = trainer.loss(output, batch["target"])
    found = trainer.train_step(batch)["loss"]
    assert found == pytest.approx(float(expected), rel=1e-5)
    assert found != pytest.approx(float(stock), rel=1e-3)
    assert trainer.network is network
    validated = trainer.validation_step(batch_of(trainer, ["case_0", "case_0"], label=1))
    assert validated["tp_hard"][0] == validated["fp_hard"][0] == validated["fn_hard"][0] == 0


@pytest.mark.slow
def test_what_the_dataset_does_not_have_is_named(in_world, listed):
    for content, named in (({"case_O": [1]}, "case_O"), ({"case_0": [2, 33]}, "label 33 in case_0")):
        listed(content)
        with pytest.raises(InputError, match=named):
            made(in_world, nnUNetTrainerExtNoMirror).absent_in_cases()
    listed({"case_0": [2]})
    regions = {"labels": {"background": 0, "both": [1, 2], "jaw": [1, 3]}, "regions_class_order": [1, 3]}
    with pytest.raises(InputError, match="no region has all of its labels"):
        in_world(nnUNetTrainerExtNoMirror, "3d_fullres", dataset=regions).absent_in_cases()


@pytest.mark.slow
def test_a_test_case_may_be_listed_where_the_dataset_has_it(in_world, world, tmp_path, monkeypatch):
    dataset = tmp_path / world.preprocessed.name
    (dataset / "labelsTs").mkdir(parents=True)
    (dataset / "present_labels.json").write_text(json.dumps({"case_0": LACKS_LEFT, "new": [1]}))
    trainer = made(in_world, nnUNetTrainerExtNoMirror)
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    with pytest.raises(InputError, match="lists new, but the dataset has no such case"):
        trainer.absent_in_cases()
    (dataset / "labelsTs" / "new.nii.gz").write_text("")
    assert trainer.absent_in_cases() == {"case_0": [False, True, False, False]}


@pytest.mark.slow
def test_complete_cases_train_as_if_nothing_was_listed(in_world, listed):
    weights = []
    for content in ({}, {"case_1": [1, 2, 3], "case_0": LACKS_LEFT}):
        listed(content)
        trainer = made(in_world, nnUNetTrainerExtNoMirror)
        trainer.train_step(batch_of(trainer, ["case_1", "case_2"]))
        weights.append([p.detach().clone() for p in trainer.network.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


@pytest.mark.slow
def test_the_setting_makes_it_background_again(in_world, listed):
    listed({"case_0": LACKS_LEFT})
    assert made(in_world, nnUNetTrainerExtNoMirror, present_labels="background").absent_in_cases() == {}


@pytest.mark.slow
def test_a_trainer_that_swaps_sides_leaves_both_partners_out(in_world, listed):
    listed({"case_0": LACKS_LEFT})
    assert made(in_world, nnUNetTrainerExtMirrorSwap).absent_in_cases() == {"case_0": [False, True, True, False]}


@pytest.mark.slow
def test_every_pass_of_a_refining_network_leaves_it_out(in_world, listed):
    listed({"case_0": LACKS_LEFT})
    trainer = made(in_world, nnUNetTrainerExtRefine)
    result = trainer.train_step(batch_of(trainer, ["case_0", "case_3"]))
    assert result["loss"] < 50  # a head at -10 000 beside a voxel of its organ would cost thousands


@pytest.mark.slow
def test_the_log_says_what_is_missing(in_world, listed):
    listed({"case_2": LACKS_LEFT, "case_3": [3]})
    trainer = made(in_world, nnUNetTrainerExtNoMirror)
    trainer.on_train_start()
    expected = "Not contoured, so not background either: Parotid_L in 2, Parotid_R in 1 of 4 training cases."
    assert expected in Path(trainer.log_file).read_text()


@pytest.mark.slow
def test_the_final_validation_counts_contoured_organs_even_where_the_training_leaves_both_sides_out(
    in_world, listed, monkeypatch
):
    counted = {}
    monkeypatch.setattr(nnUNetTrainer, "perform_actual_validation", lambda self, save_probabilities=False: None)
    monkeypatch.setattr(present, "count_contoured_only", lambda path, absent, ending: counted.update(absent))
    listed({"case_0": LACKS_LEFT, "case_1": [1, 2, 3]})
    made(in_world, nnUNetTrainerExtMirrorSwap).perform_actual_validation()
    assert counted == {"case_0": {(1,)}}
    counted.clear()
    made(in_world, nnUNetTrainerExtMirrorSwap, present_labels="background").perform_actual_validation()
    assert counted == {}


@pytest.mark.slow
def test_no_patch_is_drawn_for_an_absent_organ(in_world, listed):
    """Even where a contour lies in the file that the list says is none."""
    trainer = made(in_world, nnUNetTrainerExtNoMirror)
    complete = trainer.get_tr_and_val_datasets()[0].load_case("case_2")[3]["class_locations"]
    assert len(complete[1])
    listed({"case_2": LACKS_LEFT})
    trainer = made(in_world, nnUNetTrainerExtNoMirror)
    train, val = trainer.get_tr_and_val_datasets()
    found = train.load_case("case_2")[3]["class_locations"]
    assert not len(found[1])
    assert len(found[2]) == len(complete[2])
    assert len(train.load_case("case_3")[3]["class_locations"][1])
    assert trainer.cases == {"train": train.identifiers, "val": val.identifiers}
    trainer.on_train_start()
    assert "data" in next(trainer.dataloader_train)
