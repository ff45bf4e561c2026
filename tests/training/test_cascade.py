"""The trainers of a cascade's second stage, and which mirrors a dataset of one organ allows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform

from nnunet_ext.errors import InputError
from nnunet_ext.settings import TrainerSettings, resolve_settings
from nnunet_ext.training.cascade import nnUNetTrainerExtCascade, nnUNetTrainerExtCascadePublished
from nnunet_ext.training.laterality import has_side
from nnunet_ext.training.mirroring import nnUNetTrainerExtMirrorSwap, nnUNetTrainerExtNoMirror

CHIASM = {"labels": {"background": 0, "OpticChiasm": 1}}
LENS = {"labels": {"background": 0, "Lens_L": 1}}
CHIASM_AND_STEM = {"labels": {"background": 0, "OpticChiasm": 1, "Brainstem": 2}}


def test_the_recommended_trainer_is_nnunets_but_for_rotation_and_mirrors():
    settings = resolve_settings(nnUNetTrainerExtCascade, {}, "test")
    assert settings == TrainerSettings(limit_rotation=True, mirror="auto")


def test_the_published_trainer_has_the_published_settings():
    settings = resolve_settings(nnUNetTrainerExtCascadePublished, {}, "test")
    assert settings == TrainerSettings(
        optimizer="Adam",
        initial_lr=2e-4,
        weight_decay=0.0,
        lr_schedule="constant",
        batch_size=1,
        loss="dice",
        augmentation="flips_noise",
        mirror="auto",
        num_epochs=150,
        early_stop=30,
    )


@pytest.mark.parametrize(
    "name", ["Lens_L", "Eye_R", "left parotid", "OpticNerveRight", "l kidney", "eye-r", "Parotis L"]
)
def test_a_name_that_says_left_or_right_has_a_side(name):
    assert has_side(name)


@pytest.mark.parametrize("name", ["OpticChiasm", "Brainstem", "Larynx", "Lips", "PTV_70", "Rectum"])
def test_a_name_that_does_not_has_none(name):
    assert not has_side(name)


@pytest.mark.slow
class TestMirror:
    def axes(self, in_world: Any, dataset: dict[str, Any] | None, mirror: str) -> tuple[int, ...]:
        trainer = in_world(nnUNetTrainerExtNoMirror, "3d_fullres", dataset=dataset, nnunet_ext={"mirror": mirror})
        chosen = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()[-1]
        assert trainer.inference_allowed_mirroring_axes == chosen
        return tuple(chosen)

    @pytest.mark.parametrize(
        ("mirror", "dataset", "axes"),
        [
            ("legal", CHIASM, (0, 1)),
            ("auto", CHIASM, (0, 1, 2)),
            ("auto", LENS, (0, 1)),
            ("auto", CHIASM_AND_STEM, (0, 1)),
            ("auto", None, (0, 1)),
            ("all", CHIASM, (0, 1, 2)),
            ("all", LENS, (0, 1, 2)),
            ("all", CHIASM_AND_STEM, (0, 1, 2)),
        ],
    )
    def test_the_setting_and_the_organs_decide(self, in_world, mirror, dataset, axes):
        assert self.axes(in_world, dataset, mirror) == axes

    @pytest.mark.parametrize(
        ("dataset", "names"),
        [(None, "Parotid_L, Parotid_R"), ({**CHIASM_AND_STEM, "nnunet_ext": {"swap_pairs": [[1, 2]]}}, "swap_pairs")],
    )
    def test_all_is_refused_where_a_pair_would_be_confused(self, in_world, dataset, names):
        with pytest.raises(InputError, match=rf"organs on both sides \(.*{names}\)"):
            self.axes(in_world, dataset, "all")

    def test_a_side_outside_the_rotated_plane_is_free_too(self, in_world):
        trainer = in_world(nnUNetTrainerExtNoMirror, "2d", dataset=CHIASM, nnunet_ext={"mirror": "auto"})
        assert trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()[-1] == (0, 1)

    def test_the_trainer_that_swaps_pairs_never_mirrors_freely(self, in_world):
        trainer = in_world(nnUNetTrainerExtMirrorSwap, "3d_fullres", nnunet_ext={"mirror": "auto"})
        assert trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()[-1] == (0, 1)


@pytest.mark.slow
@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_the_published_trainer_takes_a_step_with_one_case(in_world, configuration):
    block = {"optimizer": "Adam", "initial_lr": 2e-4, "batch_size": 1, "deep_supervision": True}
    trainer = in_world(nnUNetTrainerExtCascadePublished, configuration, nnunet_ext=block)
    trainer.initialize()
    assert type(trainer.optimizer) is torch.optim.Adam
    trainer.dataloader_train, _ = trainer.get_dataloaders()
    before = [p.clone() for p in trainer.network.parameters()]
    batch = next(trainer.dataloader_train)
    assert len(batch["data"]) == 1
    loss = float(trainer.train_step(batch)["loss"])
    assert -1 <= loss <= 0  # Dice alone
    assert any(not torch.equal(a, b) for a, b in zip(before, trainer.network.parameters(), strict=True))
    mirrors = [t for t in trainer.dataloader_train.data_loader.transforms.transforms if isinstance(t, MirrorTransform)]
    assert tuple(mirrors[0].allowed_axes) == ((0,) if configuration == "2d" else (0, 1))
