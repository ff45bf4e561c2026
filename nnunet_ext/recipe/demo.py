"""The main job end to end: train, select, predict unseen cases, evaluate, draw."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nnunet_ext.conversion.convert import convert
from nnunet_ext.conversion.source import NiftiCase, Source
from nnunet_ext.errors import InputError
from nnunet_ext.evaluation.folder import evaluate_folder
from nnunet_ext.evaluation.overlay import draw_overlay
from nnunet_ext.io.atomic import write_json
from nnunet_ext.io.nifti import read_image, read_labels, write_image, write_labels
from nnunet_ext.locations import FILE_ENDING
from nnunet_ext.phantom import ORGANS, draw_case
from nnunet_ext.recipe.composed import Composed
from nnunet_ext.recipe.predict import predict_folder
from nnunet_ext.recipe.schema import Recipe
from nnunet_ext.recipe.train import default_at_once, result_folder, train
from nnunet_ext.roi.region import region_of

RECIPE = "demo_phantom_cpu"
TRAINING_PHANTOMS = 12
UNSEEN_PHANTOMS = 3
UNSEEN_SHARE = 0.2
MIN_CASES = 6
MARGIN_MM = 20.0
"""Around the largest extent of the tiny organ; our choice, about the localiser's error."""


@dataclass(frozen=True)
class Split:
    """Cases to train on and cases that no model sees.

    Args:
        training: For cross-validation.
        unseen: For the final evaluation.
    """

    training: Source
    unseen: Sequence[NiftiCase]


def draw_phantoms(folder: Path) -> None:
    """Write phantom cases as ``images/`` and ``labels/``, the form that ``convert nifti`` reads."""
    for seed in range(TRAINING_PHANTOMS + UNSEEN_PHANTOMS):
        name = f"phantom_{seed:03d}{FILE_ENDING}"
        if (folder / "labels" / name).exists():
            continue
        image, labels, grid = draw_case(seed)
        write_image(folder / "images" / name, image, grid)
        write_labels(folder / "labels" / name, labels, grid)


def phantom_labels() -> str:
    """The phantom's organs, as ``convert nifti --labels`` reads them."""
    return ",".join(f"{name}={number}" for name, number in ORGANS.items())


def run(source: Source, output: Path, say: Callable[[str], None], recipe: Recipe | None = None) -> None:
    """Train a composed model on most cases of a source, judge it on the others, and draw the result.

    Args:
        source: Cases with labels.
        output: Folder for everything, nnU-Net's three folders included; run again after an interruption.
        say: Receives one line per event.
        recipe: None is the demo's recipe, fitted to the organs of the source.

    Raises:
        InputError: fewer than six labelled cases.
    """
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        folder = output / "nnunet" / variable.removeprefix("nnUNet_")
        folder.mkdir(parents=True, exist_ok=True)
        os.environ[variable] = str(folder)
    os.environ.setdefault("nnUNet_def_n_proc", "2")
    split = _split(source)
    recipe = recipe or fitted_recipe(split.training)
    raw = Path(os.environ["nnUNet_raw"])
    if not (raw / f"Dataset{recipe.dataset:03d}_Demo" / "dataset.json").exists():
        done = convert(split.training, raw, recipe.dataset, "Demo", folds=len(recipe.folds), quiet=True)
        for name, cause in done.failed.items():
            say(f"{name} is left out: {cause}")
    for case in split.unseen:  # before training, so that a bad file is named now and not after it
        _copy_unseen(case, source, output)
    say(f"{len(split.training.cases)} cases to train on, {len(split.unseen)} kept unseen")
    train(recipe, default_at_once(recipe.device), say)
    _judge(recipe, split, output, say)
    say(f"cross-validation, fusion table, logs: {result_folder(recipe)}")
    say(f"unseen cases: {output / 'predictions'}, scores: {output / 'evaluation'}, picture: {output / 'overlay.png'}")
    say("next, on your own contours: nnunet-ext convert nifti FOLDER -d 102 --labels ..., then nnunet-ext train RECIPE")


def fitted_recipe(source: Source) -> Recipe:
    """The demo's recipe with the organs of a source, and the region around its smallest organ."""
    recipe = Recipe.load(RECIPE)
    if set(source.organs) == set(recipe.organs):
        return recipe
    smallest, extent_mm = _smallest_organ(source)
    z, y, x = (float(e + 2 * MARGIN_MM) for e in extent_mm)
    region = region_of(organs=(smallest,), source="3d", fallback=("2d",), size_mm=(z, y, x))
    small = recipe.models["small"].model_copy(update={"region": region})
    page = recipe.model_copy(
        update={
            "name": "demo_data",
            "organs": tuple(source.organs),
            "models": {**recipe.models, "small": small},
            "fusion": recipe.fusion.model_copy(update={"first": (smallest,)}),
        }
    )
    return Recipe.model_validate(page.model_dump(by_alias=True))


def _split(source: Source) -> Split:
    labelled = [case for case in source.cases if isinstance(case, NiftiCase) and case.label is not None]
    if len(labelled) < MIN_CASES:
        raise InputError(f"{source.folder} holds {len(labelled)} labelled cases; the demo needs at least {MIN_CASES}.")
    count = max(1, round(UNSEEN_SHARE * len(labelled)))
    kept = Source(**{**source.__dict__, "cases": tuple(labelled[:-count])})
    return Split(kept, labelled[-count:])


def _smallest_organ(source: Source) -> tuple[str, Sequence[float]]:
    """The organ of the smallest median volume, and its largest extent in mm."""
    volumes: dict[str, list[float]] = {organ: [] for organ in source.organs}
    extents: dict[str, list[Sequence[float]]] = {organ: [] for organ in source.organs}
    back = {number: value for value, number in source.values.items() if number}
    for case in source.cases:
        if not isinstance(case, NiftiCase) or case.label is None:
            continue
        labels, grid = read_labels(case.label)
        for organ, number in source.organs.items():
            found = np.argwhere(labels == back[number])
            if len(found):
                volumes[organ].append(len(found) * grid.voxel_ml)
                extents[organ].append((np.ptp(found, axis=0) + 1) * np.asarray(grid.spacing_mm))
    present = {organ: float(np.median(v)) for organ, v in volumes.items() if v}
    if not present:
        raise InputError(f"{source.folder} holds no contour of any organ.")
    smallest = min(present, key=lambda organ: present[organ])
    return smallest, np.max(extents[smallest], axis=0).tolist()


def _judge(recipe: Recipe, split: Split, output: Path, say: Callable[[str], None]) -> None:
    """Predict, evaluate and draw the unseen cases."""
    composed = Composed.load(recipe)
    predict_folder(composed, output / "unseen" / "images", output / "predictions", say)
    organs: Mapping[str, int] = composed.table.organs
    scores = evaluate_folder(
        output / "predictions", output / "unseen" / "labels", output / "evaluation", organs, quiet=True
    )
    say(scores.text())
    name = split.unseen[0].identifier
    image, grid = read_image(output / "unseen" / "images" / f"{name}_0000{FILE_ENDING}")
    truth, _ = read_labels(output / "unseen" / "labels" / f"{name}{FILE_ENDING}")
    predicted, _ = read_labels(output / "predictions" / f"{name}{FILE_ENDING}")
    contours = {"reference": truth, "prediction": predicted}
    draw_overlay(output / "overlay.png", image, grid, contours, organs, f"{name}, unseen in training")


def _copy_unseen(case: NiftiCase, source: Source, output: Path) -> None:
    """An unseen case under nnU-Net's names, its labels in the dataset's numbers."""
    for i, path in enumerate(case.images):
        target = output / "unseen" / "images" / f"{case.identifier}_{i:04d}{FILE_ENDING}"
        write_image(target, *read_image(path))
    if case.label is not None:
        labels, grid = read_labels(case.label)
        table = np.zeros(int(labels.max()) + 1, dtype=np.uint8)
        for value, number in source.values.items():
            if value < len(table):
                table[value] = number
        write_labels(output / "unseen" / "labels" / f"{case.identifier}{FILE_ENDING}", table[labels], grid)
    write_json(
        output / "unseen" / "dataset.json", {"labels": {"background": 0, **source.organs}, "file_ending": FILE_ENDING}
    )
