"""Everything a recipe needs, in order: fingerprint, plan, preprocess, train, regions, train, select. Resumes."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunet_ext.errors import InputError, some_of
from nnunet_ext.evaluation.dataset import PRESENT_FILE
from nnunet_ext.fusion.rules import FusionTable
from nnunet_ext.io.atomic import read_json, write_json
from nnunet_ext.io.lock import locked
from nnunet_ext.locations import FILE_ENDING
from nnunet_ext.recipe.jobs import Job, check_device, run_jobs
from nnunet_ext.recipe.places import Places
from nnunet_ext.recipe.region_dataset import cut_regions
from nnunet_ext.recipe.schema import Model, Recipe, locators_of
from nnunet_ext.recipe.selection import select
from nnunet_ext.roi.raw_data import case_digests, changed_cases, digest_of, image_digests

MANIFEST = "nnunet_ext_job.json"
PREPROCESSING = (
    "preprocessor_name",
    "spacing",
    "normalization_schemes",
    "use_mask_for_norm",
    "resampling_fn_data",
    "resampling_fn_data_kwargs",
    "resampling_fn_seg",
    "resampling_fn_seg_kwargs",
)
"""What of a configuration decides its preprocessed data."""
Say = Callable[[str], None]


def train(recipe: Recipe, at_once: int, say: Say) -> FusionTable:
    """Train all models and folds of a recipe and choose the owners of the organs.

    What is done and valid is skipped, what was interrupted is continued, and a model that was trained with other
    settings than the recipe's, or on other images or contours than the dataset's, is refused, not reused.

    Args:
        recipe: The recipe; its dataset is already converted.
        at_once: Trainings side by side.
        say: Receives one line per event.

    Raises:
        InputError: dataset, folds, finished models or the device do not fit the recipe.
        BusyError: another process trains this recipe.
    """
    places = Places.of(recipe)
    if not all(_is_done(places, name, fold) for name in recipe.models for fold in recipe.folds):
        check_device(recipe.device)
    places.summary.mkdir(parents=True, exist_ok=True)
    with locked(places.summary / ".lock"):
        for fold in recipe.folds:
            places.validation_cases(fold)  # a fold that does not exist is refused now, not after preprocessing
        for stage in _stages(recipe):
            for name in stage:
                _forget_other_plans(places, name)
            with (places.summary / "planning.log").open("a") as log, contextlib.redirect_stdout(log):
                for name in stage:
                    _prepare(places, name, say)
                for name in stage:  # after all: models that share plans share their intensity window
                    _preprocess(places, name, say)
            jobs = [job for name in stage for job in _open_jobs(places, name, say)]
            run_jobs(jobs, at_once, recipe.device, say)
        say("all models are trained; choosing the owner of every organ")
        return select(places, say)


def _is_done(places: Places, name: str, fold: int) -> bool:
    """Whether a fold was trained to its end, on whatever data."""
    manifest = places.fold_folder(name, fold) / MANIFEST
    return manifest.exists() and bool(read_json(manifest)["done"])


def _stages(recipe: Recipe) -> Iterator[list[str]]:
    """Groups of models; every group needs only the ones before it."""
    done: list[str] = []
    waiting = recipe.in_order()
    while waiting:
        stage = [name for name in waiting if set(locators_of(recipe.models[name])) <= set(done)]
        yield stage
        done += stage
        waiting = [name for name in waiting if name not in stage]


# --- data ------------------------------------------------------------------------------------------------------------


def _forget_other_plans(places: Places, name: str) -> None:
    """Remove plans that were made for another page: a choice that the page no longer states must not linger in them."""
    plans, asked = _plans_file(places, name), _asked(places, name)
    if asked.exists() and read_json(asked) != _wish(places.recipe.models[name]):
        plans.unlink(missing_ok=True)


def _plans_file(places: Places, name: str) -> Path:
    return places.preprocessed / places.dataset_of(name) / f"{places.recipe.models[name].plans}.json"


def _asked(places: Places, name: str) -> Path:
    model = places.recipe.models[name]
    return _plans_file(places, name).with_name(f"{model.plans}_{model.configuration}_asked.json")


def _wish(model: Model) -> dict[str, Any]:
    """What the page says about the plans of a model, as JSON gives it back."""
    content = {"planning": model.planning.model_dump(), "settings": model.settings}
    return dict(json.loads(json.dumps(content)))


def _prepare(places: Places, name: str, say: Say) -> None:
    """Dataset, fingerprint and plans of a model, as far as they are missing."""
    from nnunet_ext.planning import plan  # torch and nnU-Net: seconds

    model = places.recipe.models[name]
    if model.region is not None:
        cut_regions(places, name, say)
    dataset = places.dataset_of(name)
    _check_channels(places, name, dataset)
    plan.make_fingerprint(model.dataset, _processes())
    if not _plans_file(places, name).exists():
        say(f"planning {dataset}")
        wish = model.planning
        plan.make_plans(model.dataset, wish.preset, axial=wish.axial, gpu_gb=wish.gpu_gb, plans_name=model.plans,
                        spacing_mm=wish.spacing_mm, network=wish.network)  # fmt: skip
    plan.override(model.dataset, model.plans, model.configuration, model.planning.model_dump())
    plan.write_settings(model.dataset, model.plans, model.configuration, model.settings)
    write_json(_asked(places, name), _wish(model))


def _processes() -> int:
    return int(os.environ.get("nnUNet_def_n_proc", "2"))


def _check_channels(places: Places, name: str, dataset: str) -> None:
    wanted = places.recipe.models[name].channels
    there = list(places.dataset_json(dataset)["channel_names"].values())
    if wanted is not None and list(wanted) != there:
        raise InputError(
            f"model {name} reads {', '.join(wanted)}, its dataset {dataset} has {', '.join(there)}; convert a dataset "
            "with these channels, or give the model a region."
        )


def _preprocess(places: Places, name: str, say: Say) -> None:
    """Preprocessed data of a model, unless they were made from the images and contours that the dataset has now."""
    from nnunet_ext.planning import plan

    model, dataset = places.recipe.models[name], places.dataset_of(name)
    folder = places.preprocessed / dataset
    plans = read_json(folder / f"{model.plans}.json")
    data = folder / plans["configurations"][model.configuration]["data_identifier"]
    decides = [plans["configurations"][model.configuration].get(key) for key in PREPROCESSING]
    decides += [plans["transpose_forward"], plans.get("foreground_intensity_properties_per_channel")]
    cases = case_digests(places.raw / dataset)
    expected = {"cases": cases, "digest": digest_of(decides)}
    manifest = folder / f"{data.name}_cases.json"  # beside the data: nnU-Net wants one file type inside
    if manifest.exists() and not _missing(data, cases) and _is_current(manifest, expected, places.raw / dataset):
        return
    say(f"preprocessing {dataset}, {model.configuration}")
    manifest.unlink(missing_ok=True)  # interrupted, it must not vouch for a mixture
    plan.preprocess(model.dataset, model.plans, [model.configuration], _processes())
    if missing := _missing(data, cases):
        raise InputError(f"{data} lacks {some_of(missing)} after preprocessing; run again.")
    write_json(manifest, expected)


def _missing(data: Path, cases: Collection[str]) -> list[str]:
    """Cases that have no preprocessed data; nnU-Net writes the .pkl of a case last."""
    return sorted(set(cases) - {path.stem for path in data.glob("*.pkl")})


def _is_current(manifest: Path, expected: Mapping[str, Any], raw: Path) -> bool:
    """Whether preprocessed data were made from what is there now; those that note no data, if all files are older."""
    content = read_json(manifest)
    if not isinstance(content["cases"], list):
        return bool(content == expected)
    files = [raw / PRESENT_FILE, *raw.glob("imagesTr/*"), *raw.glob("labelsTr/*")]
    newest = max((path.stat().st_mtime for path in files if path.exists()), default=0.0)
    same = content == {**expected, "cases": list(expected["cases"])} and newest < manifest.stat().st_mtime
    if same:
        write_json(manifest, expected)
    return same


# --- folds -----------------------------------------------------------------------------------------------------------


def _open_jobs(places: Places, name: str, say: Say) -> list[Job]:
    """Jobs for the folds of a model that are not finished.

    Raises:
        InputError: some were trained with or on something else than the recipe and its data are now; all are named.
    """
    dataset = places.raw / places.dataset_of(name)
    labelled, images = case_digests(dataset), image_digests(dataset)
    jobs, refused = [], []
    for fold in places.recipe.folds:
        state = _state(places, name, fold, _made_from(places, name, fold, labelled, images), say)
        match state:
            case "done":
                say(f"{name} fold {fold} is done, skipped")
            case "open":
                jobs.append(_job(places, name, fold))
            case _:
                refused.append(state)
    if refused:
        raise InputError(" ".join(refused))
    return jobs


def _made_from(
    places: Places, name: str, fold: int, labelled: Mapping[str, str], images: Mapping[str, str]
) -> dict[str, Any]:
    """What decides a training and its validation, as its fold's folder notes it.

    Args:
        places: Folders of the recipe.
        name: Model.
        fold: Fold.
        labelled: Case to the hash of its images and contours.
        images: Case to the hash of its images.

    Returns:
        ``digest`` of trainer, configuration with its settings, labels and folds; ``intensities``, a hash of the numbers
        that images are normalised with (one for all configurations, and where the window of a recipe is); ``cases``,
        the hashes of what was trained on and of the images that were predicted.
    """
    model, dataset = places.recipe.models[name], places.dataset_of(name)
    plans, split = read_json(_plans_file(places, name)), places.splits(dataset)[fold]
    content = [
        model.trainer,
        plans["configurations"][model.configuration],
        plans["transpose_forward"],
        places.dataset_json(dataset)["labels"],
        split,
    ]
    of_images = {case: images.get(case, "") for case in split["val"]}
    return {
        "digest": digest_of(content),
        "intensities": digest_of(plans.get("foreground_intensity_properties_per_channel")),
        "cases": {**of_images, **{case: labelled.get(case, "") for case in split["train"]}},
    }


def _state(places: Places, name: str, fold: int, made_from: Mapping[str, Any], say: Say) -> str:
    """``done``, ``open``, or the sentence that refuses what the fold's folder holds."""
    folder = places.fold_folder(name, fold)
    manifest = folder / MANIFEST
    if not manifest.exists():
        if (folder / "checkpoint_final.pth").exists() or (folder / "checkpoint_latest.pth").exists():
            raise InputError(f"{folder} was trained outside this recipe; move it away or train under other plans.")
        write_json(manifest, {**made_from, "done": False})
        return "open"
    content = read_json(manifest)
    if content["digest"] != made_from["digest"]:
        return f"{folder} was trained with other settings, labels or folds than the recipe has now; delete it."
    if "cases" not in content:
        say(
            f"{folder} does not say which contours and intensities it was trained with; delete it if they changed since"
        )
    elif content["intensities"] != made_from["intensities"]:
        return f"{folder} was trained with another window or scale of intensities than the plans have now; delete it."
    elif changed := changed_cases(content["cases"], made_from["cases"]):
        return f"{folder} was trained on other images or contours of {changed} than the dataset has now; delete it."
    wanted = places.splits(places.dataset_of(name))[fold]["val"]
    whole = all((folder / "validation" / f"{case}{FILE_ENDING}").exists() for case in wanted)
    return "done" if content["done"] and whole and (folder / "checkpoint_final.pth").exists() else "open"


def _job(places: Places, name: str, fold: int) -> Job:
    model, folder = places.recipe.models[name], places.fold_folder(name, fold)
    manifest = folder / MANIFEST
    return Job(
        name=f"{name} fold {fold}",
        command=_command(places.recipe.device, model, fold),
        log=places.summary / "logs" / f"{name}_fold{fold}.log",
        fold_folder=folder,
        done=lambda: write_json(manifest, {**read_json(manifest), "done": True}),
    )


def _command(device: str, model: Model, fold: int) -> Sequence[str]:
    return ["nnunet_ext.training.run", str(model.dataset), model.configuration, str(fold), "-tr", model.trainer,
            "-p", model.plans, "-device", device]  # fmt: skip


def default_at_once(device: str) -> int:
    """Trainings side by side: one per core on a CPU (each uses one thread), one on a GPU."""
    return max(1, (os.cpu_count() or 1) if device == "cpu" else 1)


def result_folder(recipe: Recipe) -> Path:
    """Where the recipe's tables are written."""
    return Places.of(recipe).summary
