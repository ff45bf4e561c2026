"""The quality trainers on the tiny world: every kind of labels, single samples, resume, and what they leave behind."""

from __future__ import annotations

import copy
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn
from torch._dynamo import OptimizedModule
from torch.amp import GradScaler

from nnunet_ext.errors import InputError
from nnunet_ext.locations import expose_trainers
from nnunet_ext.losses.competition import Samples
from nnunet_ext.networks.context_unet import ContextUNet
from nnunet_ext.networks.deep_res_unet import DeepResUNet
from nnunet_ext.networks.original_unet import OriginalUNet
from nnunet_ext.networks.ras_unet import RASUNet
from nnunet_ext.networks.refinement_unet import RefinementUNet
from nnunet_ext.networks.se_res_unet import SEResUNet
from nnunet_ext.networks.se_unet import SEUNet3D
from nnunet_ext.settings import QualitySettings, TrainerSettings, resolve_settings
from nnunet_ext.training.checkpoint import read_checkpoint, write_checkpoint
from nnunet_ext.training.losses import ExclusiveBCELoss
from nnunet_ext.training.mirroring import nnUNetTrainerExtNoMirror
from nnunet_ext.training.networks import path_of, planned_architecture, replaced
from nnunet_ext.training.quality import nnUNetTrainerExtQuality
from nnunet_ext.training.quality_files import is_trained, quality_file
from nnunet_ext.training.quality_literal import nnUNetTrainerExtQualityLiteral
from nnunet_ext.training.quality_samples import case_number, exclusive_bce_per_sample
from nnunet_ext.training.refinement import nnUNetTrainerExtRefine

REGIONS = {"labels": {"background": 0, "both": [1, 2], "jaw": 3}, "regions_class_order": [1, 3]}
IGNORE = {"labels": {"background": 0, "a": 1, "b": 2, "ignore": 3}}
REGIONS_IGNORE = {"labels": {"background": 0, "both": [1, 2], "ignore": 3}, "regions_class_order": [1]}
KINDS = {"labels": None, "regions": REGIONS, "ignore": IGNORE, "regions with ignore": REGIONS_IGNORE}
AT_ONCE = {"burn_in": 0.0, "ramp": 0.0, "driver": "displacement", "min_foreground": 0}
"""Quality settings under which all samples compete from the first step."""


class QualityRefine(nnUNetTrainerExtQuality, nnUNetTrainerExtRefine):
    """Both at once."""


# --- settings --------------------------------------------------------------------------------------------------------


def test_recommended_settings():
    assert resolve_settings(nnUNetTrainerExtQuality, {}, "test") == TrainerSettings(
        mirror="auto", oversample_foreground_percent=0.66
    )
    assert QualitySettings() == QualitySettings(
        qam_lr=1e-4,
        lambda_=2.0,
        ocm=True,
        centre=True,
        burn_in=0.1,
        ramp=0.4,
        driver="readiness",
        ready_dice=0.6,
        min_foreground=100,
        memory=31,
        accumulate=1,
        case_memory=False,
    )


def test_published_settings():
    assert resolve_settings(nnUNetTrainerExtQualityLiteral, {}, "test") == TrainerSettings(
        mirror="auto",
        optimizer="Adam",
        initial_lr=1e-3,
        weight_decay=0.0,
        batch_size=32,
        loss="bce",
        deep_supervision=False,
        quality=QualitySettings(burn_in=0.0, ramp=0.0, centre=False, driver="loss", min_foreground=0, memory=0),
    )


# --- a step ----------------------------------------------------------------------------------------------------------


def started(
    in_world: Any,
    configuration: str = "2d",
    dataset: dict[str, Any] | None = None,
    trainer: type = nnUNetTrainerExtQuality,
    architecture: dict[str, Any] | None = None,
    **settings: Any,
) -> Any:
    """A trainer at the start of its first epoch; every patch contains foreground."""
    quality = {**AT_ONCE, **settings.pop("quality", {})}
    block = {"oversample_foreground_percent": 1.0, "deep_supervision": True, **settings, "quality": quality}
    planned = {"architecture": architecture} if architecture else {}
    made = in_world(trainer, configuration, dataset=dataset, nnunet_ext=block, **planned)
    made.initialize()
    made.dataloader_train, _ = made.get_dataloaders()
    made.set_deep_supervision_enabled(made.enable_deep_supervision)
    made.on_epoch_start()
    made.on_train_epoch_start()
    return made


def state(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in network.state_dict().items()}


def changed(before: dict[str, torch.Tensor], network: nn.Module) -> bool:
    return any(not torch.equal(before[name], weight) for name, weight in network.state_dict().items())


def in_double(trainer: Any) -> Any:
    """The same trainer in double precision, where exactness can be seen."""
    trainer.network.double()
    trainer.qam.double()
    return trainer


def as_double(batch: dict[str, Any]) -> dict[str, Any]:
    return {**batch, "data": batch["data"].double()}


@pytest.mark.slow
@pytest.mark.parametrize(
    "network", [ContextUNet, DeepResUNet, OriginalUNet, RASUNet, RefinementUNet, SEResUNet, SEUNet3D]
)
def test_weighs_with_every_network_that_can_be_planned(in_world, world, network):
    plans = PlansManager(json.loads((world.preprocessed / f"{world.plans}.json").read_text()))
    planned = planned_architecture(plans.get_configuration("3d_fullres"))
    if network is RefinementUNet:
        again = {**planned.keywords, "base": planned.name, "every_pass": False, "regions": False}
        name, keywords, classes = path_of(network), again, planned.classes
    else:
        name, keywords, classes = replaced(planned, network, "the test")
    block = {"network_class_name": name, "arch_kwargs": keywords, "_kw_requires_import": classes}
    trainer = started(in_world, "3d_fullres", architecture=block, batch_size=1, quality={"accumulate": 2})
    before = [(part, state(part)) for part in (trainer.network, trainer.qam)]
    assert np.isfinite(trainer.train_step(next(trainer.dataloader_train))["loss"])
    assert type(trainer.network) is network
    assert all(changed(weights, part) for part, weights in before)


@pytest.mark.slow
class TestStep:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
    @pytest.mark.parametrize("deep", [True, False])
    def test_trains_both_networks_on_every_kind_of_labels(self, in_world, kind, configuration, deep):
        trainer = started(in_world, configuration, KINDS[kind], deep_supervision=deep)
        networks = [(n, state(n)) for n in (trainer.network, trainer.qam)]
        losses = [trainer.train_step(next(trainer.dataloader_train))["loss"] for _ in range(2)]
        assert np.isfinite(losses).all()
        assert all(changed(before, network) for network, before in networks)

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("loss", ["dice_ce", "dice", "bce_dice", "bce"])
    def test_the_loss_that_it_reports_is_the_plain_trainers(self, in_world, kind, loss):
        trainer = started(in_world, dataset=KINDS[kind], loss=loss, batch_size=1)
        batch = next(trainer.dataloader_train)
        with torch.no_grad():
            expected = trainer.loss(trainer.network(batch["data"]), batch["target"])
        assert trainer.train_step(batch)["loss"] == pytest.approx(expected.item(), abs=1e-5)

    @pytest.mark.parametrize("kind", ["labels", "regions"])
    def test_during_burn_in_it_is_a_plain_step_and_leaves_the_qam_alone(self, in_world, kind):
        quality = started(
            in_world, dataset=KINDS[kind], quality={"burn_in": 0.5, "ramp": 0.5}, batch_size=1, optimizer="SGD"
        )
        block = {"batch_size": 1, "mirror": "auto", "deep_supervision": True, "optimizer": "SGD"}
        plain = in_world(nnUNetTrainerExtNoMirror, "2d", dataset=KINDS[kind], nnunet_ext=block)
        plain.initialize()
        before, batch = state(quality.qam), next(quality.dataloader_train)
        for trainer in (quality, plain):
            trainer.network.double()
            trainer.on_train_epoch_start()
            trainer.train_step(as_double(copy.deepcopy(batch)))
        assert not changed(before, quality.qam)
        for name, weight in plain.network.state_dict().items():
            torch.testing.assert_close(quality.network.state_dict()[name], weight, rtol=0, atol=1e-7)

    def test_without_lambda_it_is_the_plain_step_to_the_last_bit(self, in_world):
        quality = started(in_world, quality={"lambda_": 0.0})
        plain = in_world(nnUNetTrainerExtNoMirror, "2d", nnunet_ext={"deep_supervision": True})
        plain.initialize()
        plain.on_train_epoch_start()
        for _ in range(2):
            batch = next(quality.dataloader_train)
            for trainer in (quality, plain):
                trainer.train_step(copy.deepcopy(batch))
        assert quality.qam is None
        assert not changed(state(plain.network), quality.network)

    def test_single_samples_need_something_to_compete_with(self, in_world):
        with pytest.raises(InputError, match=r"a batch of 1 has nothing to compete with; set quality\.memory"):
            started(in_world, batch_size=1, quality={"memory": 0})

    def test_single_samples_compete_with_remembered_ones(self, in_world):
        trainer = started(in_world, batch_size=1)
        before = state(trainer.qam)
        trainer.train_step(next(trainer.dataloader_train))
        assert not changed(before, trainer.qam)  # nobody to compete with yet
        trainer.train_step(next(trainer.dataloader_train))
        assert changed(before, trainer.qam)
        assert len(trainer.competition.memory.entries()) == 2

    @pytest.mark.parametrize("size", [1, 2])
    def test_batches_that_accumulate_are_one_batch_of_them(self, in_world, size):
        """In double precision; the norms of both networks do not mix samples."""
        parts = started(in_world, batch_size=size, quality={"accumulate": 4 // size, "memory": 0})
        one = started(in_world, batch_size=4, quality={"memory": 0})
        batches = [as_double(next(parts.dataloader_train)) for _ in range(4 // size)]
        together = {
            "data": torch.cat([batch["data"] for batch in batches]),
            "target": [torch.cat(level) for level in zip(*(batch["target"] for batch in batches), strict=True)],
            "keys": [key for batch in batches for key in batch["keys"]],
        }
        parts.dataloader_train = iter(batches[1:])
        for trainer, batch in ((parts, batches[0]), (one, together)):
            in_double(trainer).train_step(batch)
        for name in ("network", "qam"):
            theirs = getattr(one, name).named_parameters()
            for (key, a), (_, b) in zip(getattr(parts, name).named_parameters(), theirs, strict=True):
                torch.testing.assert_close(a.grad, b.grad, rtol=1e-6, atol=1e-9, msg=key)

    def test_both_passes_of_an_accumulated_step_see_the_same_dropout(self, in_world):
        trainer = started(in_world, batch_size=1, quality={"accumulate": 2, "memory": 0})
        trainer.network.decoder.register_forward_hook(
            lambda _, __, output: [nn.functional.dropout(level, 0.5) for level in output]
        )
        seen, answer = [], trainer.answer
        trainer.answer = lambda *given: seen.append(answer(*given)) or seen[-1]
        trainer.train_step(next(trainer.dataloader_train))
        losses = [answer.losses.item() for answer in seen]
        assert losses[:2] == losses[2:]
        assert losses[0] != losses[1]

    def test_a_refining_network_is_judged_by_its_last_pass_and_trained_on_all(self, in_world):
        trainer = started(in_world, trainer=QualityRefine, batch_size=1)
        batch = next(trainer.dataloader_train)
        with torch.no_grad():
            passes = trainer.network(batch["data"])
            expected = trainer.loss(passes, batch["target"])
        assert trainer.final_logits(passes, batch["target"]) is passes[-1][0]
        assert trainer.train_step(batch)["loss"] == pytest.approx(expected.item(), abs=1e-5)

    def test_an_organ_that_was_not_contoured_is_not_judged(self, in_world, world):
        trainer = started(in_world)
        network = trainer.network
        trainer._absent = {case: [False, True, False, False] for case in world.cases}
        seen = []
        trainer.qam.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
        answer = trainer.answer(next(trainer.dataloader_train), 1.0)
        assert answer.samples.displacement[:, 0].isnan().all()
        assert not answer.samples.predicted[:, 0].any()
        assert not seen[0][:, 2].any()
        assert trainer.network is network

    def test_the_loss_of_a_case_that_lacks_organs_says_nothing_about_its_contours(self, in_world, world):
        trainer = started(in_world, batch_size=8, quality={"driver": "loss", "memory": 0})
        few, none = world.splits[0]["train"][:2]
        trainer._absent = {few: [False, True, False, False], none: [False, True, True, True]}
        batch = next(trainer.dataloader_train)
        batch["keys"] = [few, none, *world.splits[0]["train"][2:], *world.splits[0]["train"][2:], few, none]
        trainer.train_step(batch)
        ((samples, outcome),) = trainer.journal._steps
        assert outcome.competed.tolist() == [False, False, True, True, True, True, False, False]
        assert outcome.verdict.weights[~outcome.competed].tolist() == [1.0] * 4
        assert not outcome.verdict.pull[~outcome.competed].any()
        assert samples.loss.isnan().equal(~outcome.competed)

    @pytest.mark.parametrize(("driver", "warned"), [("loss", True), ("displacement", False)])
    def test_cases_that_cannot_compete_are_counted_at_the_start(self, in_world, world, driver, warned):
        trainer = started(in_world, quality={"driver": driver})
        trainer._absent = {world.splits[0]["train"][0]: [False, True, False, False]}
        trainer.on_train_start()
        said = Path(trainer.log_file).read_text()
        assert ("1 of 4 training cases keep weight 1, because the loss of a case" in said) == warned

    def test_nothing_in_double_precision_goes_to_the_device(self, in_world, monkeypatch):
        """Apple's GPUs have none."""
        trainer, sent, original = started(in_world), [], torch.Tensor.to

        def spy(tensor: torch.Tensor, *to: Any, **options: Any) -> torch.Tensor:
            if tensor.dtype == torch.float64 and trainer.device in to:
                sent.append(tensor.shape)
            return original(tensor, *to, **options)

        monkeypatch.setattr(torch.Tensor, "to", spy)
        trainer.train_step(next(trainer.dataloader_train))
        assert sent == []

    def test_scores_grow_within_an_epoch(self, in_world, monkeypatch):
        """Strength 0 leaves the QAM as it was, and as untrained as it was."""
        trainer = started(in_world, quality={"ramp": 1.0})
        seen, judge = [], trainer.competition.judge
        trainer.competition.judge = lambda samples, strength: seen.append(strength) or judge(samples, strength)
        trainer.train_step(next(trainer.dataloader_train))
        assert not trainer.qam_trained
        trainer.train_step(next(trainer.dataloader_train))
        assert trainer.qam_trained
        epochs, steps = trainer.num_epochs, trainer.num_iterations_per_epoch
        assert seen == pytest.approx([0.0, 1 / (epochs * steps)])

    def test_no_option_is_without_effect_on_the_competition(self, in_world):
        asked = {"lambda_": 1.5, "ocm": False, "min_foreground": 7, "memory": 9, "case_memory": True, "qam_lr": 0.125,
                 "ready_dice": 0.25, "centre": False}  # fmt: skip
        trainer = started(in_world, quality=asked)
        competition = trainer.competition
        assert (competition.bound, competition.bounded, competition.min_foreground) == (1.5, False, 7)
        assert not competition.centre
        assert competition.memory.size == 9
        assert competition.readiness.known == 0.25
        assert competition.cases is not None
        assert trainer.qam_optimizer.param_groups[0]["lr"] == 0.125

    def test_gradients_of_both_networks_are_limited(self, in_world, monkeypatch):
        limited = []

        def limit(parameters: Any, norm: float) -> torch.Tensor:
            limited.append((len(list(parameters)), norm))
            return torch.tensor(1.0)

        monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", limit)
        trainer = started(in_world)
        trainer.train_step(next(trainer.dataloader_train))
        sizes = [len(list(network.parameters())) for network in (trainer.network, trainer.qam)]
        assert limited == [(size, 12) for size in sizes]

    def test_one_answer_that_is_not_a_number_leaves_the_qam_and_later_steps_alone(self, in_world):
        trainer = started(in_world)
        spoiled, before = trainer.qam.register_forward_hook(lambda _, __, out: out * torch.nan), state(trainer.qam)
        assert np.isfinite(trainer.train_step(next(trainer.dataloader_train))["loss"])
        assert not changed(before, trainer.qam)
        assert not trainer.qam_trained
        spoiled.remove()
        trainer.train_step(next(trainer.dataloader_train))
        assert changed(before, trainer.qam)
        for network in (trainer.network, trainer.qam):
            assert all(weight.isfinite().all() for weight in network.parameters())

    def test_what_all_answers_have_in_common_changes_nothing(self, in_world):
        one, other = (in_double(started(in_world, batch_size=4)) for _ in range(2))
        other.network.load_state_dict(one.network.state_dict())
        other.qam.load_state_dict(one.qam.state_dict())
        other.qam.head.bias.data += 10
        batch = as_double(next(one.dataloader_train))
        for trainer in (one, other):
            trainer.train_step(copy.deepcopy(batch))
        assert max(weight.grad.abs().max() for weight in one.qam.parameters()) > 1e-3
        for name in ("network", "qam"):
            theirs = getattr(other, name).parameters()
            for a, b in zip(getattr(one, name).parameters(), theirs, strict=True):
                torch.testing.assert_close(a.grad, b.grad, rtol=1e-6, atol=1e-9)


@pytest.fixture
def in_half(in_world: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Makes started trainers that compute in half precision, as they do on a GPU; here the CPU does it."""
    before = torch.get_autocast_dtype("cpu")
    torch.set_autocast_dtype("cpu", torch.float16)

    def make(*given: Any, scale: float = 2.0**10, **settings: Any) -> Any:
        trainer = started(in_world, *given, **settings)
        trainer.grad_scaler = GradScaler("cpu", init_scale=scale)
        step = trainer.train_step

        def half_step(batch: dict[str, Any]) -> Any:
            with monkeypatch.context() as patched:
                patched.setattr("nnunet_ext.training.quality.dummy_context", lambda: torch.autocast("cpu"))
                return step(batch)

        trainer.train_step = half_step
        return trainer

    yield make
    torch.set_autocast_dtype("cpu", before)


@pytest.mark.slow
class TestMixedPrecision:
    @pytest.mark.parametrize("accumulate", [1, 2])
    @pytest.mark.parametrize("kind", KINDS)
    def test_trains_both_networks_by_the_same_gradients(self, in_world, in_half, kind, accumulate):
        half = in_half("2d", KINDS[kind], quality={"accumulate": accumulate})
        full = started(in_world, "2d", KINDS[kind], quality={"accumulate": accumulate})
        for name in ("network", "qam"):
            getattr(full, name).load_state_dict(getattr(half, name).state_dict())
        batches = [next(half.dataloader_train) for _ in range(accumulate)]
        losses, types = [], []
        half.network.register_forward_hook(lambda _, __, levels: types.append(levels[0].dtype))
        half.qam.blocks[0].register_forward_hook(lambda _, __, maps: types.append(maps.dtype))
        for trainer in (half, full):
            trainer.dataloader_train = iter(copy.deepcopy(batches[1:]))
            losses.append(trainer.train_step(copy.deepcopy(batches[0]))["loss"])
        assert set(types) == {torch.float16}
        assert losses[0] == pytest.approx(losses[1], rel=1e-2)
        for name in ("network", "qam"):
            a, b = (
                torch.cat([w.grad.flatten() for w in getattr(trainer, name).parameters() if w.grad is not None])
                for trainer in (half, full)
            )
            assert nn.functional.cosine_similarity(a, b, dim=0) > 0.99
            assert a.norm().item() == pytest.approx(b.norm().item(), rel=0.05)

    def test_gradients_too_large_for_it_change_nothing_but_the_scale(self, in_half):
        trainer = in_half(scale=2.0**60)
        before = [(network, state(network)) for network in (trainer.network, trainer.qam)]
        trainer.train_step(next(trainer.dataloader_train))
        assert trainer.grad_scaler.get_scale() == 2.0**59
        assert not any(changed(weights, network) for network, weights in before)


@pytest.mark.slow
class TestWhatTheQamSees:
    @pytest.mark.parametrize(("kind", "channels"), list(zip(KINDS, (5, 3, 5, 3), strict=True)))
    def test_image_heads_and_validity(self, in_world, kind, channels):
        trainer = started(in_world, dataset=KINDS[kind])
        seen = []
        trainer.qam.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
        batch = next(trainer.dataloader_train)
        trainer.train_step(batch)
        assert seen[0].shape == (2, channels, 40, 40)
        assert torch.equal(seen[0][:, :1], batch["data"])
        labels = seen[0][:, 1:]
        assert set(labels.unique().tolist()) == {0, 1}
        if kind == "labels":
            assert torch.equal(labels.argmax(1, keepdim=True), batch["target"][0].long())
        if kind == "ignore":
            assert torch.equal(labels[:, -1:] == 0, batch["target"][0] == 3)
            assert not labels[:, :-1].sum(1, keepdim=True)[labels[:, -1:] == 0].any()
        if kind == "regions with ignore":
            assert not labels[:, :1][labels[:, -1:] == 0].any()

    def test_not_the_previous_segmentation_of_a_cascade(self, in_world):
        trainer = started(in_world)
        trainer.is_cascaded, trainer.num_input_channels = True, 1 + 3
        image, heads = torch.randn(2, 4, 8, 8), torch.zeros(2, 4, 8, 8, dtype=torch.bool)
        assert torch.equal(trainer.qam_inputs(image, heads, None)[:, :1], image[:, :1])
        assert trainer.qam_inputs(image, heads, None).shape[1] == trainer._build_qam().blocks[0][0].in_channels == 5

    def test_pools_as_the_planned_network_does(self, in_world):
        trainer = started(in_world, "3d_fullres")
        planned = [tuple(stride) for stride in trainer.configuration_manager.pool_op_kernel_sizes][1:5]
        assert trainer.qam.strides[: len(planned)] == planned
        assert trainer.qam.strides[len(planned) :] == [(2, 2, 2)] * (4 - len(planned))

    def test_displacements_are_in_mm_of_the_patch(self, in_world, monkeypatch):
        seen = []
        from nnunet_ext.training import quality_samples

        original = quality_samples.boundary_displacement
        monkeypatch.setattr(
            quality_samples,
            "boundary_displacement",
            lambda p, y, spacing, valid: seen.append(list(spacing)) or original(p, y, spacing, valid),
        )
        for configuration, spacing in (("2d", [1, 1]), ("3d_fullres", [3, 1, 1])):
            trainer = started(in_world, configuration)
            trainer.train_step(next(trainer.dataloader_train))
            assert seen.pop() == pytest.approx(spacing)


def test_exclusive_cross_entropy_of_a_sample_is_that_of_the_plain_loss():
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(3, 4, 5, 5, generator=generator), torch.randint(0, 4, (3, 1, 5, 5))
    for ignore in (None, 3):
        alone = [ExclusiveBCELoss(ignore)(logits[i : i + 1], labels[i]) for i in range(3)]
        torch.testing.assert_close(exclusive_bce_per_sample(logits, labels, ignore), torch.stack(alone))


def test_the_number_of_a_case_survives_as_a_double():
    numbers = [case_number(f"case_{i}") for i in range(1000)]
    assert len(set(numbers)) == 1000
    assert torch.tensor(numbers, dtype=torch.float64).long().tolist() == numbers


# --- an epoch --------------------------------------------------------------------------------------------------------


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "quality_weights.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.slow
class TestReport:
    def test_weights_of_the_cases_and_a_line_for_the_log(self, in_world, world):
        trainer = started(in_world)
        outputs = [trainer.train_step(next(trainer.dataloader_train)) for _ in range(4)]
        trainer.on_train_epoch_end(outputs)
        rows = table(Path(trainer.output_folder))
        assert sum(int(row["samples"]) for row in rows) == 8
        assert {row["case"] for row in rows} <= set(world.splits[0]["train"])
        total = sum(int(row["samples"]) * float(row["weight"]) for row in rows)
        found = trainer.journal.summary()
        assert total / 8 == pytest.approx(found.mean, rel=1e-4)
        assert all(row["score"] and row["driver"] for row in rows)
        assert str(found) in Path(trainer.log_file).read_text()

    def test_weights_that_cannot_move_are_said_to_and_why(self, in_world):
        for limit, warned in ((0.99, 1), (0.0, 0)):
            trainer = started(in_world, quality={"ready_dice": limit, "driver": "readiness"})
            trainer.train_step(next(trainer.dataloader_train))
            assert len(trainer.unknown_organs()) == warned
        assert "above quality.ready_dice 0.99" in self.unready_at(in_world, burn_in=0.0, ramp=0.0)[0]
        assert self.unready_at(in_world, burn_in=1.0, ramp=1.0) == []
        assert self.unready_at(in_world, burn_in=0.5, ramp=1.0) == []
        assert self.unready_at(in_world, driver="displacement") == []

    def test_organs_that_are_not_known_yet_are_named(self, in_world):
        trainer = started(in_world, quality={"ready_dice": 0.5, "driver": "readiness"})
        trainer.train_step(next(trainer.dataloader_train))
        recent = trainer.competition.readiness.recent
        trainer.competition.readiness.recent = torch.tensor([[0.9, 0.3, 0.9]], dtype=recent.dtype)[:, : recent.shape[1]]
        (line,) = trainer.unknown_organs()
        assert line.endswith(f"do not lose weight: {trainer.head_names[2]} 0.30")

    def unready_at(self, in_world, **quality):
        trainer = started(in_world, quality={"ready_dice": 0.99, "driver": "readiness", **quality})
        trainer.train_step(next(trainer.dataloader_train))
        return trainer.unknown_organs()

    def test_every_epoch_begins_with_an_empty_journal(self, in_world):
        trainer = started(in_world)
        trainer.train_step(next(trainer.dataloader_train))
        trainer.on_train_epoch_start()
        assert trainer.journal.summary().samples == 0

    def test_a_collapse_is_said(self, in_world):
        trainer = started(in_world)
        given = Samples.of_rows(torch.rand(40, 4 + 4 * 3, dtype=torch.float64))
        given = Samples(**{**vars(given), "case": torch.full((40,), float(case_number("case_3")), dtype=torch.float64),
                           "answer": torch.tensor([9.0] + [-9.0] * 39, dtype=torch.float64)})  # fmt: skip
        trainer.competition.bounded = False
        trainer.journal.add(given, trainer.competition.judge(given, 1.0))
        trainer.on_train_epoch_end([{"loss": np.array(1.0)}])
        assert "WARNING: 40 samples weigh as much as" in Path(trainer.log_file).read_text()


# --- checkpoints -----------------------------------------------------------------------------------------------------


def after_step(in_world: Any, epoch: int = 0) -> tuple[Any, Path]:
    trainer = started(in_world, quality={"case_memory": True})
    for _ in range(2):
        trainer.train_step(next(trainer.dataloader_train))
    trainer.current_epoch = epoch
    trainer.logger.log("mean_fg_dice", 0.5, 0)
    return trainer, Path(trainer.output_folder) / "checkpoint_latest.pth"


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return bool(a == b) or (a != a and b != b)


def quality_state(trainer: Any) -> dict[str, Any]:
    return copy.deepcopy(
        {
            "qam": trainer.bare_qam.state_dict(),
            "optimizer": trainer.qam_optimizer.state_dict(),
            "competition": trainer.competition.state_dict(),
        }
    )


@pytest.mark.slow
class TestCheckpoint:
    def test_weights_are_those_of_the_plain_network(self, in_world):
        trainer, latest = after_step(in_world)
        trainer.save_checkpoint(str(latest))
        plain = in_world(nnUNetTrainerExtNoMirror, "2d")
        plain.initialize()
        content = torch.load(latest, weights_only=True)
        plain.network.load_state_dict(content["network_weights"], strict=True)
        assert "qam_weights" not in content
        assert "quality" in content["nnunet_ext"]["settings"]

    def test_what_the_qam_needs_comes_back(self, in_world):
        trainer, latest = after_step(in_world)
        trainer.save_checkpoint(str(latest))
        again = started(in_world, quality={"case_memory": True})
        assert not equal(quality_state(trainer), quality_state(again))
        again.load_checkpoint(str(latest))
        assert equal(quality_state(trainer), quality_state(again))
        assert again.competition.cases.state_dict()

    def test_its_file_loads_without_running_code(self, in_world):
        trainer, latest = after_step(in_world)
        trainer.save_checkpoint(str(latest))
        with torch.serialization.safe_globals([]):
            assert torch.load(quality_file(latest), weights_only=True)["current_epoch"] == 1

    def test_it_says_whether_the_qam_was_trained(self, in_world):
        for quality, trained in (({}, True), ({"burn_in": 1.0, "ramp": 1.0}, False), ({"driver": "readiness"}, False)):
            trainer = started(in_world, quality={"ready_dice": 0.99, **quality})
            latest = Path(trainer.output_folder) / "checkpoint_latest.pth"
            for _ in range(2):
                trainer.train_step(next(trainer.dataloader_train))
            trainer.logger.log("mean_fg_dice", 0.5, 0)
            trainer.save_checkpoint(str(latest))
            content = read_checkpoint(quality_file(latest))
            assert content["qam_trained"] == is_trained(content) == trained
            del content["qam_trained"], content["competition"]["mean"]
            write_checkpoint(content, quality_file(latest))  # as older versions wrote it
            again = started(in_world, quality={"ready_dice": 0.99, **quality})
            again.load_checkpoint(str(latest))
            assert again.qam_trained == trained

    def test_a_missing_or_damaged_file_is_said_and_the_segmenter_loads(self, in_world):
        trainer, latest = after_step(in_world)
        trainer.save_checkpoint(str(latest))
        best = quality_file(latest.with_name("checkpoint_best.pth"))
        for spoil in (lambda path: path.write_bytes(path.read_bytes()[:1000]), lambda path: path.unlink()):
            for path in (quality_file(latest), best):
                spoil(path)
            again = started(in_world)
            fresh = quality_state(again)
            again.load_checkpoint(str(latest))
            assert equal(fresh, quality_state(again))
            assert not changed(state(trainer.network), again.network)
            assert "no readable checkpoint_latest.quality.pth of epoch 1" in Path(again.log_file).read_text()

    def test_without_its_file_nothing_of_another_epoch_stays(self, in_world):
        """nnU-Net loads the best checkpoint into the trainer that has just trained, for ``--val_best``."""
        trainer, latest = after_step(in_world)
        trainer.save_checkpoint(str(latest))
        quality_file(latest.with_name("checkpoint_best.pth")).unlink()
        assert trainer.qam_trained
        trainer.load_checkpoint(str(latest.with_name("checkpoint_best.pth")))
        assert not trainer.qam_trained
        assert not trainer.qam_optimizer.state
        assert equal(trainer.competition.state_dict(), trainer._build_competition().state_dict())
        for name, weights in trainer._untrained.items():
            assert torch.equal(trainer.bare_qam.state_dict()[name], weights)

    def test_a_learning_rate_that_was_changed_in_the_plans_holds(self, in_world):
        trainer, latest = after_step(in_world)
        trainer.save_checkpoint(str(latest))
        again = started(in_world, quality={"qam_lr": 1e-6})
        again.load_checkpoint(str(latest))
        assert [group["lr"] for group in again.qam_optimizer.param_groups] == [1e-6]
        assert again.qam_optimizer.state

    def test_a_run_killed_between_both_files_continues_with_those_of_one_epoch(self, in_world):
        trainer, latest = after_step(in_world)
        trainer.save_checkpoint(str(latest))
        wanted, whole = quality_state(trainer), latest.read_bytes()
        trainer.train_step(next(trainer.dataloader_train))
        trainer.current_epoch = 1
        trainer.save_checkpoint(str(latest))
        latest.write_bytes(whole)  # the quality file of epoch 2 was written, the checkpoint was not
        for path in latest.parent.glob("checkpoint_best*"):
            path.unlink()
        for _ in range(2):  # killed once more
            again = started(in_world, quality={"case_memory": True})
            again.load_checkpoint(str(latest))
            assert equal(wanted, quality_state(again))

    def test_a_finished_training_keeps_no_more_than_the_checkpoints_do(self, in_world):
        trainer, latest = after_step(in_world)
        for trainer.current_epoch in (1, 2):
            trainer.save_checkpoint(str(latest))
        names = {path.name for path in latest.parent.glob("*.pth")}
        assert {"checkpoint_previous.quality.pth", "checkpoint_latest.quality.pth"} <= names
        trainer.on_train_end()
        kept = sorted(path.name for path in latest.parent.glob("*.pth"))
        assert kept == [f"checkpoint_{n}.{e}" for n in ("best", "final") for e in ("pth", "quality.pth")]

    def test_without_checkpointing_nothing_is_written(self, in_world):
        trainer, latest = after_step(in_world)
        trainer.disable_checkpointing = True
        trainer.save_checkpoint(str(latest))
        assert not quality_file(latest).exists()


# --- whole runs ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def command(world: SimpleNamespace) -> list[str]:
    """Arguments that train one sample at a time, under plans in which all compete soon."""
    plans = json.loads((world.preprocessed / f"{world.plans}.json").read_text())
    plans["plans_name"] = "Weighing"
    quality = {"burn_in": 0.3, "ramp": 0.5, "ready_dice": 0.0, "min_foreground": 1, "case_memory": True,
               "accumulate": 2}  # fmt: skip
    plans["configurations"]["2d"]["nnunet_ext"].update(batch_size=1, num_iterations_per_epoch=4, quality=quality)
    (world.preprocessed / "Weighing.json").write_text(json.dumps(plans))
    return ["-m", "nnunet_ext.training.run", "901", "2d", "0", "-tr", "nnUNetTrainerExtQuality", "-p", "Weighing",
            "-device", "cpu"]  # fmt: skip


def fold_folder(results: Path) -> Path:
    return results / "Dataset901_Drawn" / "nnUNetTrainerExtQuality__Weighing__2d" / "fold_0"


@pytest.fixture(scope="module")
def undisturbed(world: SimpleNamespace, command: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of one whole training."""
    results = tmp_path_factory.mktemp("undisturbed")
    world.run(*command, nnUNet_results=str(results))
    return results


@pytest.mark.slow
class TestWholeRun:
    def test_a_killed_and_continued_training_ends_bit_identical(self, world, command, undisturbed, tmp_path):
        process = subprocess.Popen(
            [sys.executable, *command], env={**world.environment, "nnUNet_results": str(tmp_path)}, cwd="/",
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        fold = fold_folder(tmp_path)
        try:
            while not any("Epoch 2" in log.read_text() for log in fold.glob("training_log_*.txt")):
                assert process.poll() is None, "the training ended before it could be killed"
                time.sleep(0.02)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        assert not (fold / "checkpoint_final.pth").exists()
        world.run(*command, nnUNet_results=str(tmp_path))
        logs = "".join(log.read_text() for log in fold.glob("training_log_*.txt"))
        assert "Continuing from checkpoint_latest.pth" in logs
        assert "begin anew" not in logs
        for name, keys in (
            ("checkpoint_final.pth", ("network_weights", "optimizer_state")),
            ("checkpoint_final.quality.pth", ("qam_weights", "qam_optimizer", "competition", "current_epoch")),
        ):
            whole, continued = (read_checkpoint(fold_folder(results) / name) for results in (undisturbed, tmp_path))
            for key in keys:
                assert equal(whole[key], continued[key]), f"{name}: {key}"
        assert table(fold) == table(fold_folder(undisturbed))

    def test_the_table_covers_every_epoch_and_burn_in_weighs_alike(self, undisturbed):
        rows = table(fold_folder(undisturbed))
        assert {row["epoch"] for row in rows} == {"0", "1", "2"}
        first = [row for row in rows if row["epoch"] == "0"]
        assert {(row["weight"], row["score"]) for row in first} == {("1", "")}
        assert any(row["weight"] != "1" for row in rows)

    def test_stock_prediction_needs_nothing_beside_the_checkpoint(self, world, undisturbed, tmp_path):
        model = fold_folder(undisturbed).parent
        alone = tmp_path / model.name
        (alone / "fold_0").mkdir(parents=True)
        for name in ("plans.json", "dataset.json", "fold_0/checkpoint_final.pth"):
            shutil.copyfile(model / name, alone / name)
        expose_trainers()
        predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
        predictor.initialize_from_trained_model_folder(str(alone), (0,), "checkpoint_final.pth")
        image = world.raw / "imagesTr" / "case_0_0000.nii.gz"
        predictor.predict_from_files_sequential([[str(image)]], [str(tmp_path / "case_0")], save_probabilities=False)
        assert nibabel.load(tmp_path / "case_0.nii.gz").shape == nibabel.load(image).shape

    def test_the_published_trainer_trains(self, in_world):
        trainer = in_world(nnUNetTrainerExtQualityLiteral, "2d", nnunet_ext={"num_epochs": 1, "batch_size": 4})
        trainer.run_training()
        assert trainer.competition.memory.size == 0
        assert len(table(Path(trainer.output_folder))) > 0


# --- compiled --------------------------------------------------------------------------------------------------------


@pytest.mark.nightly
def test_compiled_networks_train_as_plain_ones_and_their_checkpoints_load(in_world, monkeypatch, tmp_path):
    """nnU-Net compiles on GPUs only; the compiler and what it wraps are the same on the CPU."""
    plain = started(in_world)
    monkeypatch.setattr(nnUNetTrainerExtQuality, "_do_i_compile", lambda self: True)
    compiled = started(in_world)
    plain.network.load_state_dict(compiled.bare_network.state_dict())
    plain.qam.load_state_dict(compiled.bare_qam.state_dict())
    for _ in range(2):
        batch = next(plain.dataloader_train)
        expected, found = (trainer.train_step(copy.deepcopy(batch))["loss"] for trainer in (plain, compiled))
        assert found == pytest.approx(expected, rel=1e-4)
    assert isinstance(compiled.qam, OptimizedModule)
    compiled.save_checkpoint(str(tmp_path / "checkpoint.pth"))
    plain.load_checkpoint(str(tmp_path / "checkpoint.pth"))
    for name in ("bare_network", "bare_qam"):
        assert not changed(state(getattr(compiled, name)), getattr(plain, name))
