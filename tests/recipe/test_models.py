"""Opening a model must not run what its files say, and must say what is wrong with them."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from nnunet_ext.errors import InputError
from nnunet_ext.recipe.inference import Preprocessed
from nnunet_ext.recipe.models import LoadedModel, load_model
from nnunet_ext.training.checkpoint import write_checkpoint

ARCHITECTURE = {
    "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
    "arch_kwargs": {
        "n_stages": 2,
        "features_per_stage": [4, 8],
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[1, 3, 3], [3, 3, 3]],
        "strides": [[1, 1, 1], [1, 2, 2]],
        "n_conv_per_stage": [1, 1],
        "n_conv_per_stage_decoder": [1],
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    },
    "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
}
LABELS = {"background": 0, "Parotid_L": 1, "Parotid_R": 2}
Change = Callable[[dict[str, Any]], None]


def plans() -> dict[str, Any]:
    resampling = {}
    for kind in ("data", "seg", "probabilities"):
        resampling[f"resampling_fn_{kind}"] = "resample_data_or_seg_to_shape"
        resampling[f"resampling_fn_{kind}_kwargs"] = {"is_seg": kind == "seg", "order": 1}
    return {
        "dataset_name": "Dataset011_Drawn",
        "plans_name": "nnUNetPlansExtCPU",
        "original_median_spacing_after_transp": [3.0, 1.0, 1.0],
        "image_reader_writer": "SimpleITKIOWithReorient",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "experiment_planner_used": "ExtPlannerCPU",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            "0": {"mean": 0.0, "std": 1.0, "percentile_00_5": -1000.0, "percentile_99_5": 1000.0}
        },
        "configurations": {
            "3d_fullres": {
                "data_identifier": "drawn",
                "preprocessor_name": "DefaultPreprocessor",
                "batch_size": 2,
                "patch_size": [4, 8, 8],
                "spacing": [3.0, 1.0, 1.0],
                "normalization_schemes": ["CTNormalization"],
                "use_mask_for_norm": [False],
                "architecture": json.loads(json.dumps(ARCHITECTURE)),
                "batch_dice": True,
                **resampling,
            }
        },
    }


def write_model(folder: Path, change: Change = lambda plans: None, folds: int = 1, **content: Any) -> Path:
    """A model with random weights, as a training leaves it."""
    folder.mkdir(exist_ok=True)
    dataset = {"labels": LABELS, "channel_names": {"0": "CT"}, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(dataset))
    network = get_network_from_plans(
        ARCHITECTURE["network_class_name"],
        ARCHITECTURE["arch_kwargs"],
        ARCHITECTURE["_kw_requires_import"],
        1,
        len(LABELS),
        deep_supervision=False,
    )
    page = plans()
    change(page)
    (folder / "plans.json").write_text(json.dumps(page))
    for fold in range(folds):
        checkpoint = {
            "network_weights": network.state_dict(),
            "init_args": {"configuration": "3d_fullres", "plans": page},
            "trainer_name": "nnUNetTrainerExtNoMirror",
            "inference_allowed_mirroring_axes": None,
            "fold": fold,
        }
        write_checkpoint(checkpoint | content, folder / f"fold_{fold}" / "checkpoint_final.pth")
    return folder


def refusal(folder: Path, folds: tuple[int, ...] = (0,)) -> str:
    with pytest.raises(InputError) as caught:
        load_model(folder, folds, "cpu")
    return str(caught.value)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    torch.manual_seed(0)
    return load_model(write_model(tmp_path_factory.mktemp("model"), folds=2), [0, 1], "cpu")


def test_a_model_gives_labels_on_the_grid_of_its_image(model: LoadedModel) -> None:
    image = np.random.default_rng(0).normal(0, 500, (1, 7, 13, 11)).astype(np.float32)
    labels = model.predict(image, (3.0, 1.0, 1.0))
    assert labels.shape == (7, 13, 11)
    assert set(np.unique(labels)) <= set(LABELS.values())
    np.testing.assert_array_equal(model.predict(image, (3.0, 1.0, 1.0)), labels)


def test_a_model_knows_its_organs_and_hashes_the_weights_of_all_its_folds(model: LoadedModel, tmp_path: Path) -> None:
    assert model.labels == {"Parotid_L": 1, "Parotid_R": 2}
    other = load_model(write_model(tmp_path), [0], "cpu")
    assert len(model.digest.split("-")) == len(other.digest.split("-")) + 1
    assert other.digest != load_model(write_model(tmp_path), [0], "cpu").digest  # other random weights


@pytest.mark.parametrize("name", ["plans.json", "dataset.json"])
def test_other_plans_or_labels_are_another_model(tmp_path: Path, name: str) -> None:
    folder = write_model(tmp_path / "model")
    before = load_model(folder, [0], "cpu").digest
    assert load_model(folder, [0], "cpu").digest == before
    content = json.loads((folder / name).read_text())
    if name == "plans.json":  # the window
        content["foreground_intensity_properties_per_channel"]["0"]["percentile_99_5"] = 300.0
    else:
        content["labels"] = {"background": 0, "Parotid_R": 1, "Parotid_L": 2}
    (folder / name).write_text(json.dumps(content))
    assert load_model(folder, [0], "cpu").digest != before


def test_a_device_that_is_not_there_is_refused_with_the_option_that_helps(tmp_path: Path) -> None:
    device = "mps" if torch.cuda.is_available() else "cuda"
    with pytest.raises(InputError, match=rf"^device {device} cannot be used here \(.+\); predict with -device cpu"):
        load_model(write_model(tmp_path / "model"), [0], device)


@pytest.mark.parametrize("fold", [0, 1])
def test_weights_that_do_not_fit_the_plans_are_refused_by_their_path(tmp_path: Path, fold: int) -> None:
    folder = write_model(tmp_path / "model", folds=2)
    path = folder / f"fold_{fold}" / "checkpoint_final.pth"
    content = torch.load(path, weights_only=False)
    content["network_weights"] = dict(list(content["network_weights"].items())[:-1])
    write_checkpoint(content, path)
    message = refusal(folder, (0, 1))
    assert message.startswith(f"{path} does not fit the network that plans.json and dataset.json beside it describe (")
    assert "\n" not in message


def test_the_network_sees_right_and_front_first_as_stock_hands_it_ras(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[np.ndarray] = []

    def remember(images: np.ndarray, spacing_mm: Sequence[float]) -> Preprocessed:
        seen.append(images)
        return Preprocessed(torch.from_numpy(np.ascontiguousarray(images)), {})

    monkeypatch.setattr(model.predictor, "preprocess", remember)
    monkeypatch.setattr(model.predictor, "predict_logits_from_preprocessed_data", lambda data: data)
    monkeypatch.setattr(model.predictor, "labels", lambda logits, properties: (logits[0] > 0).numpy())
    image = np.zeros((1, 3, 4, 5), np.float32)
    image[0, 0, 0, 4] = 1.0
    labels = model.predict(image, (3.0, 1.0, 1.0))
    assert np.argwhere(seen[0]).tolist() == [[0, 0, 3, 0]]
    assert np.argwhere(labels).tolist() == [[0, 0, 4]]


def network_named(name: str) -> Change:
    return lambda page: page["configurations"]["3d_fullres"]["architecture"].update(network_class_name=name)


def argument_named(key: str, name: str, **kwargs: Any) -> Change:
    def change(page: dict[str, Any]) -> None:
        architecture = page["configurations"]["3d_fullres"]["architecture"]
        architecture["arch_kwargs"].update({key: name, f"{key}_kwargs": kwargs})

    return change


FOREIGN = [
    "os.system",
    "torch.hub.load",
    "drawn_evil.Network",
    "dynamic_network_architectures.building_blocks.helper.convert_dim_to_conv_op",
    "dynamic_network_architectures.architectures.unet.torch.hub.load",
    "dynamic_network_architectures.architectures.unet.torch.nn.Identity",
    "dynamic_network_architectures.architectures.missing.Network",
    "dynamic_network_architectures.architectures.unet",
]


@pytest.fixture
def evil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that the module ``drawn_evil`` writes when somebody imports it."""
    (tmp_path / "drawn_evil.py").write_text("open(__file__ + '.ran', 'w').close()\nclass Network: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path / "drawn_evil.py.ran"


@pytest.mark.parametrize("name", FOREIGN)
def test_plans_that_name_a_foreign_network_are_refused_before_it_is_imported(
    tmp_path: Path, evil: Path, name: str
) -> None:
    message = refusal(write_model(tmp_path / "model", network_named(name)))
    assert f"plans.json names {name}, which is no known network; refused" in message
    assert not evil.exists()


@pytest.mark.parametrize("key", ["conv_op", "norm_op", "nonlin"])
@pytest.mark.parametrize(
    "name", ["os.system", "drawn_evil.Network", "torch.nn.functional.torch.hub.load", "torch.nn.init.warnings.warn"]
)
def test_plans_that_name_a_foreign_building_block_are_refused(tmp_path: Path, evil: Path, key: str, name: str) -> None:
    message = refusal(write_model(tmp_path / "model", argument_named(key, name, command="true")))
    assert name in message
    assert "refused" in message
    assert not evil.exists()


def test_a_foreign_network_behind_an_inherited_configuration_is_refused_too(tmp_path: Path) -> None:
    def inherit(page: dict[str, Any]) -> None:
        network_named("os.system")(page)
        page["configurations"]["child"] = {"inherits_from": "3d_fullres"}

    folder = write_model(tmp_path / "model", inherit, init_args={"configuration": "child"})
    assert "names os.system" in refusal(folder)


@pytest.mark.parametrize(
    ("base", "reason"),
    [
        ("drawn_evil.Network", "base must be the dotted path of a network"),
        ("nnunet_ext.networks.refinement_unet.RefinementUNet", "RefinementUNet itself"),
        (None, "argument: 'base'"),
    ],
)
def test_a_refinement_of_something_that_is_no_network_is_refused_with_the_file(
    tmp_path: Path, evil: Path, base: str | None, reason: str
) -> None:
    def refine(page: dict[str, Any]) -> None:
        network_named("nnunet_ext.networks.refinement_unet.RefinementUNet")(page)
        if base is not None:
            page["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["base"] = base

    folder = tmp_path / "model"
    message = refusal(write_model(folder, refine))
    assert message.startswith(f"{folder}/plans.json describes a network that cannot be built: ")
    assert reason in message
    assert message.endswith("plan and train it anew.")
    assert not evil.exists()


def test_a_checkpoint_that_needs_code_to_load_is_refused_and_the_code_does_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "ran"),)

    folder = write_model(tmp_path / "model")
    torch.save({"network_weights": Evil()}, folder / "fold_0" / "checkpoint_final.pth")
    assert "is damaged or needs code to load" in refusal(folder)
    (folder / "fold_0" / "checkpoint_final.pth").write_bytes(pickle.dumps(Evil(), protocol=2))
    assert "is damaged or needs code to load" in refusal(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("left", [0.0, 0.3, 0.9])
def test_a_cut_checkpoint_is_refused_by_its_path(tmp_path: Path, left: float) -> None:
    path = write_model(tmp_path / "model") / "fold_0" / "checkpoint_final.pth"
    path.write_bytes(path.read_bytes()[: int(left * path.stat().st_size)])
    assert f"{path} is damaged" in refusal(tmp_path / "model")


def test_a_fold_that_was_not_trained_is_named(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    assert f"{folder / 'fold_3' / 'checkpoint_final.pth'} is missing" in refusal(folder, (0, 3))


def test_a_model_that_was_trained_with_another_reader_is_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", lambda page: page.update(image_reader_writer="SimpleITKIO"))
    assert "reader SimpleITKIO, expected SimpleITKIOWithReorient" in refusal(folder)


def test_a_trainer_that_is_not_installed_is_named(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", trainer_name="nnUNetTrainerOfSomebodyElse")
    assert "was trained by nnUNetTrainerOfSomebodyElse, which is not installed" in refusal(folder)


@pytest.mark.parametrize("name", ["plans.json", "dataset.json"])
@pytest.mark.parametrize("content", [None, "{"])
def test_a_missing_or_broken_description_is_refused_by_its_path(tmp_path: Path, name: str, content: str | None) -> None:
    folder = write_model(tmp_path / "model")
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(content)
    assert str(folder / name) in refusal(folder)


@pytest.mark.parametrize(
    ("name", "missing"),
    [("plans.json", "configurations, image_reader_writer"), ("dataset.json", "labels, channel_names")],
)
def test_a_description_of_something_else_is_refused_with_what_it_lacks(tmp_path: Path, name: str, missing: str) -> None:
    folder = write_model(tmp_path / "model")
    (folder / name).write_text("{}")
    message = refusal(folder)
    assert message.startswith(f"{folder / name} has no {missing}")
    assert message.endswith("so nnU-Net did not write it; copy the model again.")


def test_plans_without_a_reader_are_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", lambda page: page.pop("image_reader_writer"))
    assert refusal(folder).startswith(f"{folder}/plans.json has no image_reader_writer, so nnU-Net")


@pytest.mark.parametrize("content", [{"x": 1}, [1], 3])
def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path, content: object) -> None:
    folder = write_model(tmp_path / "model")
    path = folder / "fold_0" / "checkpoint_final.pth"
    torch.save(content, path)
    assert refusal(folder).startswith(f"{path} has no network_weights, init_args, trainer_name, ")


def without(*keys: str) -> Change:
    """Plans without a key somewhere below their configuration."""

    def change(page: dict[str, Any]) -> None:
        found = page["configurations"]["3d_fullres"]
        for key in keys[:-1]:
            found = found[key]
        for key in keys[-1:]:
            found.pop(key)

    return change


@pytest.mark.filterwarnings("ignore:Detected old nnU-Net plans format")
@pytest.mark.parametrize(
    ("change", "init_args", "cause"),
    [
        (without("architecture"), {}, "'UNet_class_name' is missing"),
        (without("architecture", "network_class_name"), {}, "'network_class_name' is missing"),
        (without("architecture", "arch_kwargs", "strides"), {}, "strides"),
        (without(), {"configuration": "2d"}, "Requested configuration 2d not found in plans"),
        (without(), {"configuration": None}, "Requested configuration None"),
    ],
)  # fmt: skip
def test_plans_in_which_something_is_missing_are_refused(
    tmp_path: Path, change: Change, init_args: dict[str, Any], cause: str
) -> None:
    folder = write_model(tmp_path / "model", change, **({"init_args": init_args} if init_args else {}))
    message = refusal(folder)
    assert message.startswith(f"{folder}/plans.json describes a network that cannot be built: ")
    assert cause in message
