"""Fingerprint, plan and preprocess a dataset with one of our planners, through nnU-Net's API."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props
from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprint_dataset, preprocess_dataset
from nnunetv2.utilities.dataset_name_id_conversion import convert_id_to_dataset_name

from nnunet_ext.errors import InputError
from nnunet_ext.evaluation.dataset import PRESENT_FILE, is_test_case, read_present
from nnunet_ext.io.atomic import read_json, write_json
from nnunet_ext.locations import nnunet_folder
from nnunet_ext.planning import published
from nnunet_ext.planning.networks import PLANNERS
from nnunet_ext.planning.training_files import check_training_files
from nnunet_ext.preprocessing.windows import SIGNED, ct_normalization_numbers
from nnunet_ext.settings import PLANS_BLOCK, TrainerSettings, resolve_settings


def dataset_name(dataset_id: int) -> str:
    """Name of a raw dataset.

    Raises:
        InputError: there is none with this number, or several.
    """
    try:
        return str(convert_id_to_dataset_name(dataset_id))
    except RuntimeError as error:
        reason = str(error).split(". ")[0]
        raise InputError(f"{reason}; convert it first (nnunet-ext convert), under exactly one name.") from error


def make_fingerprint(dataset_id: int, processes: int) -> Path:
    """Extract the dataset fingerprint unless it is there; returns its file.

    Raises:
        InputError: there is no such dataset, or training cases of it got lost.
    """
    name = dataset_name(dataset_id)
    check_training_files(nnunet_folder("nnUNet_raw") / name)
    target = nnunet_folder("nnUNet_preprocessed") / name / "dataset_fingerprint.json"
    if not target.exists():
        extract_fingerprint_dataset(dataset_id, num_processes=processes, verbose=False, show_progress_bar=False)
    return target


def make_plans(
    dataset_id: int,
    preset: str = "default",
    *,
    axial: bool = True,
    gpu_gb: float | None = None,
    plans_name: str | None = None,
    spacing_mm: Sequence[float] | None = None,
    network: str = "plain",
) -> str:
    """Plan a dataset whose fingerprint exists.

    Args:
        dataset_id: Number of the dataset.
        preset: "default" (nnU-Net's planner), "cpu", or "published" (what the paper of the network says, as in
            ``planning.published``).
        axial: Keep the head-foot axis first.
        gpu_gb: GPU memory to plan for; None is nnU-Net's 8 GB. The cpu preset ignores it, and the published one does in
            the paper's configuration.
        plans_name: Name of the plans; None is the planner's own.
        spacing_mm: Voxel size (Z, Y, X) of the 3D configuration; None is the paper's or nnU-Net's choice. Coarse voxels
            make a cheap localiser that sees the whole image at once.
        network: Key of ``planning.names.NETWORKS``.

    Returns:
        Name of the plans written.

    Raises:
        InputError: the published preset of a network without a paper, or without a CT channel for its window.
    """
    paper = published.published(network) if preset == "published" else None
    os.environ.setdefault("nnUNet_n_proc_DA", "1")
    if os.environ["nnUNet_n_proc_DA"] == "0":
        os.environ["nnUNet_n_proc_DA"] = "1"  # the planner crashes on 0
    kind = PLANNERS[network]["default" if paper else preset]
    if paper and spacing_mm is None:
        spacing_mm = paper.spacing_mm
    usual_name = published.plans_name(kind.default_plans_name) if paper else kind.default_plans_name
    options: dict[str, Any] = {} if gpu_gb is None else {"gpu_memory_target_in_gb": gpu_gb}
    if spacing_mm is not None:
        options["overwrite_target_spacing"] = tuple(map(float, spacing_mm))  # nnU-Net refuses whole numbers
    planner = kind(dataset_id, plans_name=plans_name or usual_name, **options)
    planner.keep_axial = axial
    planner.plan_experiment()
    name = str(planner.plans_identifier)
    if paper:
        try:
            _publish(dataset_id, name, paper)
        except InputError:
            _plans_file(dataset_id, name).unlink()  # half a paper is nobody's plans
            raise
    return name


def _publish(dataset_id: int, plans_name: str, paper: published.Published) -> None:
    """Write what a paper says over the planned values of its configuration."""
    path, plans = _plans(dataset_id, plans_name, paper.configuration)
    settings = plans["configurations"][paper.configuration]
    settings["patch_size"] = list(paper.patch_size)
    settings["batch_size"] = paper.settings["batch_size"]
    settings["architecture"]["arch_kwargs"].update(paper.architecture)
    settings[PLANS_BLOCK] = dict(paper.settings)
    write_json(path, plans)
    override(dataset_id, plans_name, paper.configuration, published.choices(paper))


def override(dataset_id: int, plans_name: str, configuration: str, wanted: Mapping[str, Any]) -> None:
    """Write a recipe's own choices over the planned ones of one configuration; None leaves the planned value.

    Args:
        dataset_id: Number of the dataset.
        plans_name: Name of its plans.
        configuration: Which configuration.
        wanted: ``patch_size``, ``base_features``, ``max_features``, ``resampling`` (False: every image keeps its
            grid), ``normalization`` and ``window_hu``, as in ``recipe.schema.Planning``; ``window_to`` is the range
            of the window, −1 to 1 where it is missing.

    Raises:
        InputError: unknown configuration, or a window without a CT channel.
    """
    path, plans = _plans(dataset_id, plans_name, configuration)
    before = copy.deepcopy(plans)
    settings = plans["configurations"][configuration]
    network = settings["architecture"]["arch_kwargs"]
    if wanted.get("patch_size"):
        _replan_patch(settings, list(wanted["patch_size"]))
    if wanted.get("base_features") or wanted.get("max_features") or wanted.get("patch_size"):
        first = wanted.get("base_features") or network["features_per_stage"][0]
        most = wanted.get("max_features") or max(network["features_per_stage"])
        network["features_per_stage"] = [min(most, first * 2**i) for i in range(network["n_stages"])]
    if wanted.get("resampling") is False:
        for kind in ("data", "seg", "probabilities"):
            settings[f"resampling_fn_{kind}"] = "no_resampling_hack"
            settings[f"resampling_fn_{kind}_kwargs"] = {}
    if wanted.get("normalization"):
        settings["normalization_schemes"] = [wanted["normalization"]] * len(settings["normalization_schemes"])
    if wanted.get("window_hu"):
        low, high = wanted["window_hu"]
        _set_window(plans, low, high, wanted.get("window_to", SIGNED))
    if plans != before:
        write_json(path, plans)


def _set_window(plans: dict[str, Any], low: float, high: float, to: tuple[float, float]) -> None:
    """Give nnU-Net's CTNormalization a window instead of the percentiles that it measured.

    Raises:
        InputError: no channel is normalised as CT.
    """
    schemes = [scheme for c in plans["configurations"].values() for scheme in c.get("normalization_schemes", [])]
    if "CTNormalization" not in schemes:
        raise InputError(f"{plans['plans_name']} has no channel that is normalised as CT, so window_hu has no meaning.")
    numbers = ct_normalization_numbers(low, high, to)
    for configuration in plans["configurations"].values():
        for channel, scheme in enumerate(configuration.get("normalization_schemes", [])):
            if scheme == "CTNormalization":
                plans["foreground_intensity_properties_per_channel"][str(channel)].update(numbers)


def _replan_patch(settings: dict[str, Any], patch: list[int]) -> None:
    """Give a configuration another patch, with the strides and kernels that nnU-Net's planner gives it."""
    if list(settings["patch_size"]) == patch:
        return
    network = settings["architecture"]["arch_kwargs"]
    _, strides, kernels, padded, _ = get_pool_and_conv_props(settings["spacing"], patch, 4, 999999)
    stages, convolutions = len(strides), network["n_conv_per_stage"][0]
    settings["patch_size"] = [int(n) for n in padded]
    network.update(
        n_stages=stages,
        strides=[[int(n) for n in s] for s in strides],
        kernel_sizes=kernels,
        n_conv_per_stage=[convolutions] * stages,
        n_conv_per_stage_decoder=[convolutions] * (stages - 1),
    )


def _plans_file(dataset_id: int, plans_name: str) -> Path:
    return nnunet_folder("nnUNet_preprocessed") / dataset_name(dataset_id) / f"{plans_name}.json"


def _plans(dataset_id: int, plans_name: str, configuration: str) -> tuple[Path, dict[str, Any]]:
    path = _plans_file(dataset_id, plans_name)
    plans: dict[str, Any] = read_json(path)
    if configuration not in plans["configurations"]:
        raise InputError(f"{path} has no configuration {configuration}; it has {', '.join(plans['configurations'])}.")
    return path, plans


def write_settings(dataset_id: int, plans_name: str, configuration: str, settings: Mapping[str, Any]) -> None:
    """Write training settings into the ``nnunet_ext`` block of one configuration of a plans file.

    Raises:
        InputError: unknown configuration, unknown key or wrong type.
    """
    path, plans = _plans(dataset_id, plans_name, configuration)
    block = {**plans["configurations"][configuration].get(PLANS_BLOCK, {}), **settings}
    resolve_settings(TrainerSettings, block, f"settings of {configuration}")
    if plans["configurations"][configuration].get(PLANS_BLOCK, {}) != block:
        plans["configurations"][configuration][PLANS_BLOCK] = block
        write_json(path, plans)


def preprocess(dataset_id: int, plans_name: str, configurations: Sequence[str], processes: int) -> None:
    """Preprocess configurations of a dataset with nnU-Net's own preprocessor.

    The list of contoured labels goes along, without test cases, for machines that train without the raw data.
    """
    name = dataset_name(dataset_id)
    listed = nnunet_folder("nnUNet_raw") / name / PRESENT_FILE
    if listed.exists():
        training = {c: labels for c, labels in read_present(listed).items() if not is_test_case(listed.parent, c)}
        write_json(nnunet_folder("nnUNet_preprocessed") / name / PRESENT_FILE, training)
    preprocess_dataset(
        dataset_id, plans_name, tuple(configurations), [processes], verbose=False, show_progress_bar=False
    )
