from __future__ import annotations

import inspect
from typing import Any, ClassVar

import pytest
import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_ext.errors import InputError
from nnunet_ext.settings import QualitySettings, TrainerSettings, resolve_settings

WHERE = "plans, configurations.2d.nnunet_ext"


class Trainer:
    num_epochs = 10
    optimizer = "AdamW"
    some_attribute = "no setting"


@pytest.fixture
def stock(tmp_path, monkeypatch) -> nnUNetTrainer:
    """nnU-Net's own trainer, made from the smallest plans that it accepts."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(tmp_path / name))
    configuration = {"data_identifier": "x_2d", "architecture": {}, "batch_size": 2, "patch_size": [8, 8]}
    plans: dict[str, Any] = {
        "dataset_name": "Dataset101_Drawn",
        "plans_name": "x",
        "configurations": {"2d": configuration},
        "label_manager": "LabelManager",
        "continue_training": False,
    }
    dataset = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "a": 1}}
    trainer = nnUNetTrainer(plans, "2d", 0, dataset, torch.device("cpu"))
    trainer.network = torch.nn.Linear(1, 1)
    return trainer


@pytest.mark.parametrize(
    "name",
    ["num_epochs", "num_iterations_per_epoch", "num_val_iterations_per_epoch", "initial_lr", "weight_decay",
     "oversample_foreground_percent", "save_every"],
)  # fmt: skip
def test_defaults_are_nnunets(stock, name):
    assert getattr(TrainerSettings(), name) == getattr(stock, name)


def test_deep_supervision_is_on_as_in_nnunet(stock):
    assert TrainerSettings().deep_supervision is stock.enable_deep_supervision is True


def test_default_optimiser_and_schedule_are_nnunets(stock):
    optimizer, schedule = stock.configure_optimizers()
    assert type(optimizer).__name__ == TrainerSettings().optimizer
    assert isinstance(schedule, PolyLRScheduler)
    assert TrainerSettings().lr_schedule == "poly"
    assert inspect.signature(PolyLRScheduler).parameters["exponent"].default == 0.9


def test_default_batch_size_is_the_plans():
    assert TrainerSettings().batch_size is None


def test_an_empty_block_leaves_the_defaults():
    assert resolve_settings(object, {}, WHERE) == TrainerSettings()


def test_a_class_attribute_replaces_the_default():
    settings = resolve_settings(Trainer, {}, WHERE)
    assert (settings.num_epochs, settings.optimizer) == (10, "AdamW")


def test_the_plans_replace_the_class_attribute():
    settings = resolve_settings(Trainer, {"num_epochs": 3}, WHERE)
    assert (settings.num_epochs, settings.optimizer) == (3, "AdamW")


def test_an_unknown_key_is_refused_with_the_valid_ones():
    with pytest.raises(InputError) as caught:
        resolve_settings(Trainer, {"epochs": 3}, WHERE)
    message = str(caught.value)
    assert message.startswith(f"{WHERE}: epochs: ")
    assert "got 3" in message
    for name in TrainerSettings.model_fields:
        assert name in message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_epochs", "10"),
        ("num_epochs", 10.5),
        ("num_epochs", True),
        ("num_epochs", 0),
        ("initial_lr", "1e-3"),
        ("initial_lr", 0.0),
        ("initial_lr", float("nan")),
        ("optimizer", "RMSprop"),
        ("batch_size", 0),
        ("oversample_foreground_percent", 33),
        ("deep_supervision", 1),
        ("seed", -1),
        ("cpu_threads", 0),
        ("lr_schedule", "step"),
        ("pass_weights", []),
        ("pass_weights", (1, 2, 3)),
    ],
)
def test_a_wrong_type_or_value_is_refused_with_what_came(name, value):
    with pytest.raises(InputError) as caught:
        resolve_settings(Trainer, {name: value}, WHERE)
    assert f"{name}: " in str(caught.value)
    assert f"got {value!r}" in str(caught.value)


def test_a_wrong_class_attribute_is_refused_too():
    with pytest.raises(InputError, match="save_every"):
        resolve_settings(type("Wrong", (), {"save_every": 0.5}), {}, WHERE)


def test_every_fault_is_named_at_once():
    with pytest.raises(InputError, match=r"num_epochs.*seed"):
        resolve_settings(object, {"num_epochs": "3", "seed": "4"}, WHERE)


def test_whole_numbers_from_json_are_fine_where_a_fraction_is_meant():
    assert resolve_settings(object, {"initial_lr": 1}, WHERE).initial_lr == 1.0


def test_weights_of_passes_are_numbers_from_zero():
    assert resolve_settings(object, {"pass_weights": [0, 1, 2.5]}, WHERE).pass_weights == [0, 1, 2.5]
    with pytest.raises(InputError, match=r"pass_weights\.1: .*got -1"):
        resolve_settings(object, {"pass_weights": [1, -1]}, WHERE)


# --- quality ---------------------------------------------------------------------------------------------------------


class Weighing:
    quality: ClassVar = {"driver": "loss", "memory": 0}


def test_quality_of_the_plans_is_added_to_that_of_the_class():
    settings = resolve_settings(Weighing, {"quality": {"memory": 5}}, WHERE).quality
    assert settings == QualitySettings(driver="loss", memory=5)


def test_quality_of_the_plans_alone_leaves_its_other_defaults():
    assert resolve_settings(object, {"quality": {"lambda_": 1}}, WHERE).quality == QualitySettings(lambda_=1.0)


def test_an_unknown_key_of_quality_is_refused_with_the_valid_ones():
    with pytest.raises(InputError, match=r"quality\.lambda: .*got 1") as caught:
        resolve_settings(Weighing, {"quality": {"lambda": 1}}, WHERE)
    for name in QualitySettings.model_fields:
        assert name in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("qam_lr", 0.0),
        ("lambda_", -1.0),
        ("ocm", 1),
        ("centre", "yes"),
        ("burn_in", 10),
        ("ramp", 1.5),
        ("driver", "dice"),
        ("min_foreground", -1),
        ("memory", 31.5),
        ("accumulate", 0),
        ("case_memory", "yes"),
    ],
)
def test_a_wrong_value_of_quality_is_refused(name, value):
    with pytest.raises(InputError, match=rf"quality\.{name}: .*got {value!r}"):
        resolve_settings(object, {"quality": {name: value}}, WHERE)


def test_a_ramp_that_ends_before_burn_in_is_refused():
    with pytest.raises(InputError, match=r"ramp must not be less than burn_in, got 0\.2 and 0\.3"):
        resolve_settings(object, {"quality": {"burn_in": 0.3, "ramp": 0.2}}, WHERE)


@pytest.mark.parametrize(
    ("progress", "strength"), [(0.0, None), (0.09, None), (0.1, 0.0), (0.25, 0.5), (0.4, 1.0), (0.99, 1.0)]
)
def test_scores_rise_from_the_end_of_burn_in_to_the_end_of_the_ramp(progress, strength):
    assert QualitySettings().strength(progress) == pytest.approx(strength)


def test_without_burn_in_and_ramp_scores_have_full_strength_at_once():
    assert QualitySettings(burn_in=0.0, ramp=0.0).strength(0.0) == 1.0


def test_burn_in_to_the_end_never_asks_the_qam():
    assert QualitySettings(burn_in=1.0, ramp=1.0).strength(0.999) is None
