"""The datasets of a study: planned once on clean contours; a noisy one shares all that noise does not change."""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunet_ext.conversion.noise import Noise, add_noise, lines_of, link
from nnunet_ext.errors import InputError
from nnunet_ext.evaluation.dataset import NOISE_FILE, PRESENT_FILE
from nnunet_ext.io.atomic import read_json, sha256_of, write_json
from nnunet_ext.locations import FILE_ENDING
from nnunet_ext.roi.raw_data import contoured_in, digest_of
from nnunet_ext.settings import PLANS_BLOCK, TrainerSettings, resolve_settings
from nnunet_ext.study.world import ALL, CLEAN, PLANS, Run, World

MANIFEST = "study_data.json"
"""In a preprocessed dataset, written last: what it was made from."""
Say = Callable[[str], None]


def prepare(world: World, runs: Sequence[Run], say: Say) -> None:
    """Everything that the trainings read, as far as it is missing.

    Raises:
        InputError: what is there was made for another page or other data.
    """
    with world.entered(), _quietly(world):
        made_from = _made_from(world)
        _prepare_clean(world, made_from, say)
        for (row, seed), dataset in world.datasets().items():
            noise = world.study.noise(row, seed)
            if noise is not None:
                _prepare_noisy(world, dataset, noise, made_from, say)
        for run in runs:
            _write_plans(world, run)


def data_identifier(world: World) -> str:
    """Name of the folder with preprocessed data."""
    plans = read_json(world.preprocessed / world.clean / f"{PLANS}.json")
    return str(plans["configurations"][world.study.configuration]["data_identifier"])


@contextlib.contextmanager
def _quietly(world: World) -> Iterator[None]:
    """What nnU-Net prints goes to a file."""
    with (world.root / "planning.log").open("a") as log, contextlib.redirect_stdout(log):
        yield


# --- the clean dataset -----------------------------------------------------------------------------------------------


def _prepare_clean(world: World, made_from: Mapping[str, Any], say: Say) -> None:
    """Plan on the training cases; then add the test cases, whose intensities must not decide a plan, and preprocess."""
    manifest = world.preprocessed / world.clean / MANIFEST
    if manifest.exists():
        if read_json(manifest) == made_from:
            return
        raise InputError(
            f"{world.root} was made for other images, labels, cases or plans than study {world.study.name} has now; "
            "delete it or give the study another name."
        )
    from nnunet_ext.planning import plan  # torch and nnU-Net: seconds

    study, raw = world.study, world.raw / world.clean
    for unfinished in (raw, manifest.parent):  # by another page, perhaps; links and derived data
        _remove(unfinished)
    processes = int(os.environ.get("nnUNet_def_n_proc", "2"))
    say(f"planning {world.clean} and preprocessing it")
    _link_cases(world, world.training, "imagesTr", "labelsTr")
    _write_dataset_json(raw, world, len(world.training))
    plan.make_fingerprint(1, processes)
    wish = study.planning
    plan.make_plans(1, wish.preset, axial=wish.axial, gpu_gb=wish.gpu_gb, plans_name=PLANS,
                    spacing_mm=wish.spacing_mm, network=wish.network)  # fmt: skip
    plan.override(1, PLANS, study.configuration, wish.model_dump())
    of_test = ("imagesTs", "labelsTs") if study.held_out == "test" else ("imagesTr", "labelsTr")
    _link_cases(world, world.test, *of_test)
    _write_dataset_json(raw, world, len(world.training) + len(world.test))
    plan.preprocess(1, PLANS, [study.configuration], processes)
    write_json(world.preprocessed / world.clean / "splits_final.json", _splits(world, world.training))
    write_json(manifest, made_from)


def _made_from(world: World) -> dict[str, Any]:
    """What decides the clean preprocessed data; images by size and time, because to read them all takes long."""
    labels = [path for folder in ("labelsTr", "labelsTs") for path in sorted((world.source / folder).glob("*"))]
    images = {path: path.stat() for folder in ("imagesTr", "imagesTs") for path in (world.source / folder).glob("*")}
    content = [
        world.study.configuration,
        world.study.planning.model_dump_json(),
        world.dataset_json["labels"],
        [world.training, world.test],
        [[path.name, sha256_of(path)] for path in labels],
        [[path.name, found.st_size, found.st_mtime_ns] for path, found in sorted(images.items())],
        contoured_in(world.source),
    ]
    return {"dataset": world.source.name, "digest": digest_of(content)}


def _link_cases(world: World, cases: Sequence[str], images: str, labels: str) -> None:
    raw = world.raw / world.clean
    for case in cases:
        found = sorted((world.source / images).glob(f"{glob.escape(case)}_[0-9][0-9][0-9][0-9]{FILE_ENDING}"))
        if not found:
            raise InputError(f"{world.source / images} has no image of case {case}.")
        for path in found:
            link(path, raw / "imagesTr" / path.name)
        link(world.source / labels / f"{case}{FILE_ENDING}", raw / "labelsTr" / f"{case}{FILE_ENDING}")


def _remove(folder: Path) -> None:
    """The manifest goes first: what is left of a folder that was removed halfway is not whole."""
    (folder / MANIFEST).unlink(missing_ok=True)
    if folder.exists():
        shutil.rmtree(folder)


def _write_dataset_json(raw: Path, world: World, count: int) -> None:
    present = contoured_in(world.source)
    if present:  # a copy, because people edit it
        mine = {*world.training, *world.test}
        write_json(raw / PRESENT_FILE, {case: labels for case, labels in present.items() if case in mine})
    content = {**world.dataset_json, "numTraining": count}
    for folder in (raw, world.preprocessed / world.clean):
        write_json(folder / "dataset.json", content)


def _splits(world: World, clean: Sequence[str]) -> list[dict[str, list[str]]]:
    splits = {ALL: list(world.training), CLEAN: list(clean)}
    return [{"train": splits[fold], "val": list(world.test)} for fold in sorted(splits)]


# --- noisy datasets --------------------------------------------------------------------------------------------------


def _prepare_noisy(world: World, dataset: str, noise: Noise, clean_from: Mapping[str, Any], say: Say) -> None:
    """Corrupt the contours, and preprocess the corrupted cases with the clean dataset's plans; link all others."""
    folder = world.preprocessed / dataset
    made_from = {**clean_from, "noise": [noise.seed, noise.ratio, noise.unit, noise.low, noise.high, noise.in_plane]}
    if (folder / MANIFEST).exists() and read_json(folder / MANIFEST) == made_from:
        return
    _remove(folder)
    number, _, name = dataset.removeprefix("Dataset").partition("_")
    clean = world.raw / world.clean
    _, sidecar = add_noise(clean, world.raw, int(number), name, noise, cases=world.training, overwrite=True)
    say(f"{name}: {' '.join(lines_of(sidecar))}")
    noisy = [case for case, entry in sidecar["cases"].items() if entry is not None]
    data = folder / data_identifier(world)
    for path in sorted((world.preprocessed / world.clean / data.name).iterdir()):
        if not path.name.startswith(".") and _case_of(path) not in noisy:
            link(path, data / path.name)
    _preprocess(world, dataset, noisy, data)
    source = world.preprocessed / world.clean
    for file in ("dataset_fingerprint.json", PRESENT_FILE):
        if (source / file).exists():
            write_json(folder / file, read_json(source / file))
    write_json(folder / "dataset.json", read_json(world.raw / dataset / "dataset.json"))
    write_json(folder / "splits_final.json", _splits(world, [case for case in world.training if case not in noisy]))
    write_json(folder / MANIFEST, made_from)


def _case_of(path: Path) -> str:
    """Case of a preprocessed file: ``a.b2nd``, ``a_seg.b2nd`` or ``a.pkl``."""
    return path.name.rpartition(".")[0].removesuffix("_seg")


def _preprocess(world: World, dataset: str, cases: Sequence[str], data: Path) -> None:
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans = PlansManager(str(world.preprocessed / world.clean / f"{PLANS}.json"))
    configuration = plans.get_configuration(world.study.configuration)
    preprocessor = configuration.preprocessor_class(verbose=False)
    raw = world.raw / dataset
    data.mkdir(parents=True, exist_ok=True)
    for case in cases:
        images = sorted(
            str(p) for p in (raw / "imagesTr").glob(f"{glob.escape(case)}_[0-9][0-9][0-9][0-9]{FILE_ENDING}")
        )
        labels = str(raw / "labelsTr" / f"{case}{FILE_ENDING}")
        preprocessor.run_case_save(str(data / case), images, labels, plans, configuration, world.dataset_json)


# --- plans -----------------------------------------------------------------------------------------------------------


def _write_plans(world: World, run: Run) -> None:
    """The shared plans with the settings of a method and the seed of a run.

    No run stops early, whatever plans or trainer say: the running Dice is that of the test cases.
    """
    plans = read_json(world.preprocessed / world.clean / f"{PLANS}.json")
    block = plans["configurations"][run.configuration].get(PLANS_BLOCK, {})
    block = merged(merged(block, world.study.settings), world.study.methods[run.method].settings)
    block["seed"] = run.seed
    block["early_stop"] = None
    resolve_settings(TrainerSettings, block, f"settings of {run.method}")
    plans["configurations"][run.configuration][PLANS_BLOCK] = block
    path = world.preprocessed / run.dataset / f"{run.plans}.json"
    content = {**plans, "plans_name": run.plans, "dataset_name": run.dataset}
    if not path.exists() or read_json(path) != content:
        write_json(path, content)


def merged(block: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """The later value wins; blocks within (``quality``) are merged key by key."""
    both = {key: {**block[key], **more[key]} for key in more if isinstance(more[key], dict) and key in block}
    return {**block, **more, **both}


def noise_of(world: World, dataset: str) -> dict[str, Any]:
    """noise.json of a dataset; empty for the clean one."""
    path = world.raw / dataset / NOISE_FILE
    return dict(read_json(path)) if path.exists() else {}
