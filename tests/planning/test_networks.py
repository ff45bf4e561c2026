from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import nn

from nnunet_ext.networks.context_unet import ContextUNet
from nnunet_ext.networks.deep_res_unet import DeepResUNet
from nnunet_ext.networks.original_unet import OriginalUNet
from nnunet_ext.networks.ras_unet import RASUNet
from nnunet_ext.networks.refinement_unet import RefinementUNet
from nnunet_ext.networks.se_res_unet import SEResUNet
from nnunet_ext.networks.se_unet import SEUNet3D
from nnunet_ext.planning import names, plan
from nnunet_ext.planning.networks import (
    PLANNERS,
    ContextPlanner,
    DeepResPlanner,
    NetworkPlanner,
    OriginalPlanner,
    RASPlanner,
    RefinePlainPlanner,
    RefineSEResPlanner,
    SEPlanner,
    SEResPlanner,
    dotted_path,
)

pytestmark = pytest.mark.slow

CLASSES = {
    "context": ContextUNet,
    "original": OriginalUNet,
    "ras": RASUNet,
    "se": SEUNet3D,
    "se-res": SEResUNet,
    "deep-res": DeepResUNet,
    "refine:plain": RefinementUNet,
    "refine:se-res": RefinementUNet,
}
SUFFIXES = {
    "context": "Context",
    "original": "Original",
    "ras": "RAS",
    "se": "SE",
    "se-res": "SERes",
    "deep-res": "DeepRes",
    "refine:plain": "RefinePlain",
    "refine:se-res": "Refine",
}
NAMES = {
    (network, preset): f"nnUNetPlansExt{'CPU' if preset == 'cpu' else ''}{suffix}"
    for network, suffix in SUFFIXES.items()
    for preset in ("default", "cpu")
}


def configuration(path: Path, name: str = "3d_fullres") -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())["configurations"][name]
    return content


def built(settings: dict[str, Any]) -> nn.Module:
    architecture = settings["architecture"]
    kwargs, lookups = architecture["arch_kwargs"], architecture["_kw_requires_import"]
    with torch.device("meta"):
        return get_network_from_plans(
            architecture["network_class_name"], kwargs, lookups, 1, 4, allow_init=False, deep_supervision=False
        )


@pytest.mark.parametrize(("network", "preset"), NAMES)
class TestPlans:
    def test_have_their_own_name_and_build_the_network_for_2d_and_3d(self, planned, network, preset):
        path = planned(network, preset)
        assert path.stem == NAMES[network, preset]
        for name in ("2d", "3d_fullres"):
            settings = configuration(path, name)
            unet, patch = built(settings), settings["patch_size"]
            assert type(unet) is (PlainConvUNet if (network, name) == ("ras", "2d") else CLASSES[network])
            assert unet(torch.empty(1, 1, *patch, device="meta")).shape == (1, 4, *patch)
            assert settings["architecture"]["arch_kwargs"]["strides"][0] == [1] * len(patch)
            assert settings["data_identifier"] == f"{path.stem}_{name}"

    def test_a_second_planning_changes_nothing(self, planned, network, preset):
        path = planned(network, preset)
        before = path.read_text()
        assert planned(network, preset).read_text() == before

    def test_another_patch_and_width_can_be_asked_for(self, planned, network, preset):
        path = planned(network, preset)
        plan.override(901, path.stem, "3d_fullres", {"patch_size": [16, 64, 64], "base_features": 4, "max_features": 9})
        settings = configuration(path)
        kwargs = settings["architecture"]["arch_kwargs"]
        assert kwargs["features_per_stage"] == [4, 8, 9, 9, 9]
        assert kwargs["n_stages"] == len(kwargs["strides"]) == len(kwargs["kernel_sizes"]) == 5
        assert len(set(kwargs["n_conv_per_stage"])) == 1
        assert built(settings)(torch.empty(1, 1, 16, 64, 64, device="meta")).shape == (1, 4, 16, 64, 64)


def test_the_layers_of_the_context_network_are_in_its_plans(planned):
    path = planned("context")
    for name, dim in (("2d", 2), ("3d_fullres", 3)):
        unet = built(configuration(path, name))
        dropout, norm = (getattr(nn, f"{kind}{dim}d") for kind in ("Dropout", "InstanceNorm"))
        kinds = {type(layer) for layer in unet.modules()}
        assert {dropout, norm, nn.LeakyReLU} <= kinds
        assert {layer.p for layer in unet.modules() if isinstance(layer, dropout)} == {0.3}
    kwargs = configuration(path)["architecture"]["arch_kwargs"]
    assert (kwargs["context_dropout_p"], kwargs["supervision"]) == (0.3, "aux")


def test_the_layers_of_the_original_network_are_in_its_plans(planned):
    path = planned("original")
    for name, dim in (("2d", 2), ("3d_fullres", 3)):
        unet = built(configuration(path, name))
        norms = [layer for layer in unet.modules() if isinstance(layer, getattr(nn, f"BatchNorm{dim}d"))]
        assert norms
        assert not any(layer.track_running_stats for layer in norms)
        assert not any(isinstance(layer, nn.LeakyReLU) for layer in unet.modules())


def test_every_network_that_has_a_name_has_a_planner_for_every_preset():
    assert list(PLANNERS) == list(names.NETWORKS)
    assert {frozenset(presets) for presets in PLANNERS.values()} == {frozenset({"default", "cpu"})}
    every = [kind.default_plans_name for presets in PLANNERS.values() for kind in presets.values()]
    assert len(set(every)) == len(every)


def test_names_of_networks_load_no_torch(world):
    world.run("-c", "import sys, nnunet_ext.planning.names; assert 'torch' not in sys.modules")


def test_ras_plans_name_the_axis_and_the_dropout_and_have_nnunets_network_in_2d(planned):
    for preset, dropout in (("default", 0.5), ("cpu", 0.0)):
        path = planned("ras", preset)
        kwargs = configuration(path)["architecture"]["arch_kwargs"]
        assert (kwargs["through_axis"], kwargs["encoder_dropout_p"], kwargs["attention"]) == (0, dropout, True)
        flat = configuration(path, "2d")["architecture"]
        stock = configuration(planned("plain", preset), "2d")["architecture"]
        assert flat == stock


@pytest.mark.parametrize(("network", "nonlin"), [("se-res", nn.ELU), ("deep-res", nn.ReLU), ("se", nn.LeakyReLU)])
def test_activations_are_the_papers(planned, network, nonlin):
    path = planned(network)
    for name in ("2d", "3d_fullres"):
        unet = built(configuration(path, name))
        inside = {type(layer) for layer in unet.modules()} & {nn.ELU, nn.ReLU, nn.LeakyReLU}
        assert inside - ({nn.ReLU} if network.startswith("se") else set()) == {nonlin}  # gates have a ReLU


def test_refinement_plans_keep_the_layers_of_their_base_and_any_trainer_can_use_them(planned):
    kwargs = configuration(planned("refine:se-res"))["architecture"]["arch_kwargs"]
    assert kwargs["base"] == dotted_path(SEResUNet)
    assert (kwargs["passes"], kwargs["every_pass"], kwargs["regions"]) == (3, False, False)
    assert kwargs["nonlin_first"] is True
    unet = built(configuration(planned("refine:plain")))
    assert type(unet.unet) is PlainConvUNet
    assert unet.fed_back == 3


def test_refinement_feeds_every_class_back_where_classes_overlap(planned):
    before = planned("refine:se-res")
    planner = PLANNERS["refine:se-res"]["cpu"](901)
    planner.dataset_json["labels"]["Parotids"] = [1, 2]
    planner.dataset_json["regions_class_order"] = [1, 2, 3, 1]
    planner.plan_experiment()
    kwargs = configuration(before)["architecture"]["arch_kwargs"]
    assert kwargs["regions"] is True
    assert built(configuration(before)).fed_back == 4


def test_networks_get_other_patches_or_batches_for_the_same_memory(planned):
    found = set()
    for network in ("plain", "ras", "se-res"):
        settings = configuration(planned(network, "default", gpu_gb=0.02))
        found.add((tuple(settings["patch_size"]), settings["batch_size"]))
    assert len(found) == 3


@pytest.mark.parametrize(("network", "base"), [("context", 16), ("original", 32)])
def test_default_plans_have_the_papers_width(planned, network, base):
    features = configuration(planned(network, "default"))["architecture"]["arch_kwargs"]["features_per_stage"]
    assert features[:2] == [base, 2 * base]


def test_memory_is_planned_for_the_gpu_that_is_asked_for(planned):
    counts = [
        built(configuration(planned("context", "default", gpu_gb=gb))).compute_conv_feature_map_size(
            configuration(planned("context", "default", gpu_gb=gb))["patch_size"]
        )
        for gb in (0.002, 8)
    ]
    assert counts[0] < counts[1]


def test_plain_plans_stay_nnunets(planned):
    path = planned("plain")
    assert path.stem == "nnUNetPlansExtCPU"
    assert configuration(path)["architecture"]["network_class_name"] == dotted_path(PlainConvUNet)


def test_an_unknown_network_is_refused(planned):
    with pytest.raises(KeyError, match="transformer"):
        planned("transformer")


def kept_bytes_per_count(network: nn.Module, image: torch.Tensor) -> float:
    """Bytes that a forward pass saves for the backward pass, parameters aside, over what the planner counts."""
    parameters = {p.untyped_storage().data_ptr() for p in network.parameters()}
    saved: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        outputs = network(image)
    assert outputs
    return sum(saved.values()) / len(image) / network.compute_conv_feature_map_size(image.shape[2:])


PLANNED = (
    ContextPlanner,
    OriginalPlanner,
    RASPlanner,
    SEPlanner,
    SEResPlanner,
    DeepResPlanner,
    RefinePlainPlanner,
    RefineSEResPlanner,
)


@pytest.mark.parametrize(("planner", "dim"), [(planner, dim) for planner in PLANNED for dim in planner.memory_scale])
def test_the_memory_scale_is_what_a_step_keeps(planner: type[NetworkPlanner], dim: int):
    given: dict[str, Any] = {
        "n_stages": 4,
        "features_per_stage": [8, 16, 32, 64],
        "conv_op": dotted_path((nn.Conv2d, nn.Conv3d)[dim - 2]),
        "kernel_sizes": 3,
        "strides": [1, 2, 2, 2],
        "n_conv_per_stage": 2,
        "n_conv_per_stage_decoder": 2,
        "conv_bias": True,
        "norm_op": dotted_path((nn.InstanceNorm2d, nn.InstanceNorm3d)[dim - 2]),
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    own = {**given, **planner.layers(dim)}
    image = torch.randn(2, 1, *([32] * dim))
    bytes_per_count = [
        kept_bytes_per_count(
            get_network_from_plans(
                dotted_path(kind), kwargs, ("conv_op", "norm_op", "dropout_op", "nonlin"), 1, 4, deep_supervision=True
            ),
            image,
        )
        for kind, kwargs in ((PlainConvUNet, given), (planner.network, own))
    ]
    assert bytes_per_count[0] / bytes_per_count[1] == pytest.approx(planner.memory_scale[dim], rel=0.06)


# --- the stock commands ----------------------------------------------------------------------------------------------


PREPARE = """
import json, sys
from nnunet_ext.planning import plan

name = plan.make_plans(901, "cpu", network=sys.argv[1])
for configuration in ("2d", "3d_fullres"):
    plan.override(901, name, configuration, {"base_features": 4})
    plan.write_settings(901, name, configuration, json.loads(sys.argv[2]))
plan.preprocess(901, name, ["2d", "3d_fullres"], 1)
"""

TRAIN_STOCK = """
import sys
import torch
from nnunetv2.run.run_training import get_trainer_from_args

trainer = get_trainer_from_args("901", sys.argv[1], 0, "nnUNetTrainer", sys.argv[2], device=torch.device("cpu"))
trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = 1, 2, 1
trainer.run_training()
trainer.perform_actual_validation()
"""


IN_EVERY_RUN = ("context", "refine:se-res")
"""Our two ways to build a network; the stock commands on all the others run at night."""
STOCK = [n if n in IN_EVERY_RUN else pytest.param(n, marks=pytest.mark.nightly) for n in CLASSES]


@pytest.fixture(scope="module", params=STOCK)
def prepared(request: pytest.FixtureRequest, world: SimpleNamespace) -> str:
    """Name of plans with one of our networks; the data are preprocessed."""
    world.run("-c", PREPARE, request.param, json.dumps({**world.settings, "num_epochs": 1}))
    return NAMES[request.param, "cpu"]


def stock_command(world: SimpleNamespace, results: Path, name: str, *arguments: str) -> None:
    from nnunet_ext.locations import trainer_search_path

    command = [str(Path(sys.executable).parent / name), *arguments, "-device", "cpu"]
    environment = {**world.environment, "nnUNet_results": str(results), "nnUNet_extTrainer": trainer_search_path()}
    done = subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.mark.parametrize(("trainer", "name"), [("nnUNetTrainer", "3d_fullres"), ("nnUNetTrainerExtCascade", "2d")])
def test_stock_nnunet_trains_and_predicts_with_our_plans(world, prepared, tmp_path, name, trainer):
    if trainer == "nnUNetTrainer":
        world.run("-c", TRAIN_STOCK, name, prepared, nnUNet_results=str(tmp_path))
    else:
        stock_command(world, tmp_path, "nnUNetv2_train", "901", name, "0", "-tr", trainer, "-p", prepared)
    fold = tmp_path / world.dataset / f"{trainer}__{prepared}__{name}" / "fold_0"
    assert len(list((fold / "validation").glob("*.nii.gz"))) == 2
    images, output = tmp_path / "images", tmp_path / "output"
    images.mkdir()
    (images / "case_0_0000.nii.gz").symlink_to(world.raw / "imagesTr" / "case_0_0000.nii.gz")
    stock_command(world, tmp_path, "nnUNetv2_predict", "-d", "901", "-c", name, "-f", "0", "-tr", trainer,
                  "-p", prepared, "-npp", "1", "-nps", "1", "-i", str(images), "-o", str(output))  # fmt: skip
    labels = sitk.GetArrayFromImage(sitk.ReadImage(str(output / "case_0.nii.gz")))
    assert labels.shape == (20, 40, 40)
    assert set(np.unique(labels)) <= {0, 1, 2, 3}
