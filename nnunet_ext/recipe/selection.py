"""Owners of the organs from cross-validation, and what the composed model is worth on patients it never saw."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_ext.errors import InputError
from nnunet_ext.evaluation.dataset import contained_organs
from nnunet_ext.evaluation.laterality import side_confusion
from nnunet_ext.evaluation.metrics import OrganScore, inner_labels, score_case
from nnunet_ext.evaluation.report import summarise
from nnunet_ext.fusion.merge import fuse_labels
from nnunet_ext.fusion.rules import FusionTable, default_priority
from nnunet_ext.fusion.select import CaseScore, NestedEstimate, choose_owners, nested_estimate, selection_table
from nnunet_ext.geometry import Grid, grid_difference
from nnunet_ext.io.atomic import read_json, write_json, write_text
from nnunet_ext.io.nifti import read_labels, write_labels
from nnunet_ext.labels import swap_pairs
from nnunet_ext.locations import FILE_ENDING
from nnunet_ext.recipe.places import Places
from nnunet_ext.recipe.schema import Recipe
from nnunet_ext.roi.agreement import check_trained_on
from nnunet_ext.roi.pasting import paste_predictions, renumbered
from nnunet_ext.roi.provenance import ignore_number, label_numbers
from nnunet_ext.roi.raw_data import contoured_in
from nnunet_ext.roi.sides import frame_labels

FUSED, NESTED = "fused", "fused (nested)"
Labels = NDArray[np.integer]


@dataclass(frozen=True)
class HeldOutCase:
    """A held-out case with what every model says about it, all in the recipe's label numbers.

    Args:
        case: Identifier.
        fold: Fold that held it out.
        grid: Its grid.
        truth: (Z, Y, X) reference.
        predictions: Model to (Z, Y, X) label map.
        contoured: Labels that were contoured in this case; None where that was not recorded.
        inside: Organ to the labels that count as part of it, such as the lens of an eye.
        ignore: Number of the truth's voxels that nobody judged; None where the dataset has no such label.
    """

    case: str
    fold: int
    grid: Grid
    truth: Labels
    predictions: Mapping[str, Labels]
    contoured: Sequence[int] | None
    inside: Mapping[str, Sequence[int]] = field(default_factory=dict)
    ignore: int | None = None

    def judged(self, labels: Labels) -> Labels:
        """A label map without what it says of voxels that nobody judged."""
        return labels if self.ignore is None else np.where(self.truth == self.ignore, 0, labels)


@dataclass(frozen=True)
class Row:
    """One organ of one held-out case by one model."""

    model: str
    fold: int
    case: str
    score: OrganScore


def select(places: Places, say: Callable[[str], None]) -> FusionTable:
    """Choose the owner of every organ, write the fusion table, and report its honest worth.

    Writes ``fusion.json``, ``selection.txt``, ``crossval.csv``, ``crossval.json`` and the fused held-out label maps
    (``crossval_fused/``) into the recipe's folder.

    Args:
        places: Folders of the recipe, all models trained and validated.
        say: Receives the tables.

    Raises:
        InputError: a model or fold has no validation predictions, their grids differ from the truth's, or a model was
            trained on another region than the recipe's.
    """
    recipe = places.recipe
    rows, volumes = _score_models(places)
    scores = [CaseScore(r.model, r.fold, r.case, r.score.organ, r.score.dsc) for r in rows]
    order = list(recipe.models)
    nested = nested_estimate(scores, recipe.organs, order, recipe.fusion.min_gain)
    choices = choose_owners(scores, recipe.organs, order, recipe.fusion.min_gain)
    owners = {organ: choice.owner for organ, choice in choices.items()}
    if isinstance(recipe.fusion.owners, dict):
        owners = dict(recipe.fusion.owners)
        choices = {o: replace(c, owner=owners[o], reason="fixed by the recipe") for o, c in choices.items()}
        nested = NestedEstimate({}, float("nan"), dict.fromkeys(recipe.folds, owners))
    table = _table(places, owners, volumes)
    fused_rows, confusion = _score_fused(places, table, nested)
    table.save(places.fusion_table)
    overview = _overview([*rows, *fused_rows], recipe.organs, order, table)
    text = f"{selection_table(choices, nested)}\n{overview}{_chosen_without(recipe, nested)}\n"
    write_text(places.summary / "selection.txt", text)
    write_text(places.summary / "crossval.csv", _csv([*rows, *fused_rows]))
    write_json(places.summary / "crossval.json", _summary_json([*rows, *fused_rows], table, nested, confusion))
    say(text)
    for model, worst in confusion.items():
        count = f"{worst['voxels']} voxels in {worst['cases']} cases"
        say(f"left-right confusion beyond 5 mm of the midline, {model}: {count}")
    return table


def held_out_cases(places: Places) -> Iterator[HeldOutCase]:
    """Every held-out case of the recipe's folds with the predictions of all models on it."""
    recipe = places.recipe
    name = places.dataset_name(recipe.dataset)
    numbers = {organ: i for i, organ in enumerate(recipe.organs, 1)}
    truth_labels = label_numbers(places.dataset_json(name))
    missing = [organ for organ in recipe.organs if organ not in truth_labels]
    if missing:
        raise InputError(f"{name} has no organ {', '.join(missing)}; it has {', '.join(truth_labels)}.")
    inside = inner_labels(contained_organs(places.dataset_json(name), truth_labels), numbers)
    present = contoured_in(places.raw / name)
    back = {truth_labels[organ]: number for organ, number in numbers.items()}
    unjudged = ignore_number(places.dataset_json(name))
    ignore = None if unjudged is None else len(numbers) + 1
    in_truth = back if unjudged is None else {**back, unjudged: len(numbers) + 1}
    for fold in recipe.folds:
        folders = {
            model: (prepare_full_frame(places, model, fold), model_labels(places, model)) for model in recipe.models
        }
        for case in places.validation_cases(fold):
            truth, grid = read_labels(places.truth_folder() / f"{case}{FILE_ENDING}")
            predictions = {
                model: renumbered(
                    _prediction(folder / f"{case}{FILE_ENDING}", grid), {v: numbers[o] for o, v in labels.items()}
                )
                for model, (folder, labels) in folders.items()
            }
            contoured = [back[v] for v in present[case] if v in back] if case in present else None
            yield HeldOutCase(case, fold, grid, renumbered(truth, in_truth), predictions, contoured, inside, ignore)


def prepare_full_frame(places: Places, model: str, fold: int) -> Path:
    """Folder with a fold's validation predictions on whole images; a region model's are pasted there first.

    Raises:
        InputError: the fold was not validated, or the model was trained on another region.
    """
    validation = places.fold_folder(model, fold) / "validation"
    if not any(validation.glob(f"*{FILE_ENDING}")):
        raise InputError(f"{validation} holds no predictions; `nnunet-ext train` finishes model {model}, fold {fold}.")
    target, region = places.full_frame(model, fold), places.recipe.models[model].region
    if region is not None:
        folder = places.model_folder(model)
        check_trained_on(folder, read_json(folder / "dataset.json"), region)
        paste_predictions(places.sidecar(model), validation, places.truth_folder(), target)
    return target


def model_labels(places: Places, model: str) -> dict[str, int]:
    """Organs that a model can own, with their numbers in its own maps."""
    region = places.recipe.models[model].region
    labels = frame_labels(region) if region else label_numbers(places.dataset_json(places.dataset_of(model)))
    return {organ: labels[organ] for organ in places.recipe.organs_of(model) if organ in labels}


def _prediction(path: Path, grid: Grid) -> Labels:
    labels, other = read_labels(path)
    difference = grid_difference(grid, other)
    if difference:
        raise InputError(f"{path} lies on another grid than the reference: {difference}; predict again.")
    return labels


def _score_models(places: Places) -> tuple[list[Row], dict[str, float]]:
    """Scores of all models, and the median volume of every organ in ml."""
    rows: list[Row] = []
    volumes: dict[str, list[float]] = {organ: [] for organ in places.recipe.organs}
    for item in held_out_cases(places):
        for model, labels in item.predictions.items():
            known = {o: i for i, o in enumerate(places.recipe.organs, 1) if o in model_labels(places, model)}
            rows += _rows(model, item, labels, known)
        for number, organ in enumerate(places.recipe.organs, 1):
            count = int(np.count_nonzero(item.truth == number))
            if count:
                volumes[organ].append(count * item.grid.voxel_ml)
    return rows, {organ: median(found) if found else 0.0 for organ, found in volumes.items()}


def _rows(model: str, item: HeldOutCase, labels: Labels, organs: Mapping[str, int]) -> list[Row]:
    scores = score_case(labels, item.truth, organs, item.grid.spacing_mm, item.contoured, ignore=item.ignore,
                        inside=item.inside)  # fmt: skip
    return [Row(model, item.fold, item.case, score) for score in scores]


def _table(places: Places, owners: Mapping[str, str], volumes: Mapping[str, float]) -> FusionTable:
    recipe = places.recipe
    channels = places.dataset_json(places.dataset_name(recipe.dataset))["channel_names"]
    return FusionTable(
        organs={organ: i for i, organ in enumerate(recipe.organs, 1)},
        owner=dict(owners),
        models={model: model_labels(places, model) for model in recipe.models},
        priority=default_priority(volumes, recipe.fusion.first),
        on_conflict=recipe.fusion.on_conflict,
        channels=tuple(channels[number] for number in sorted(channels, key=int)),
    )


def _score_fused(
    places: Places, table: FusionTable, nested: NestedEstimate
) -> tuple[list[Row], dict[str, dict[str, int]]]:
    """Scores of the fused held-out maps: with the final owners, and with owners chosen without the case's fold."""
    organs = dict(table.organs)
    same = {model: {o: organs[o] for o in known} for model, known in table.models.items()}
    rows: list[Row] = []
    confusion: dict[str, dict[str, int]] = {}
    for item in held_out_cases(places):
        maps = {}
        honest = {NESTED: nested.owners[item.fold]} if item.fold in nested.owners else {}
        for name, owners in {FUSED: table.owner, **honest}.items():
            rule = FusionTable(organs, dict(owners), same, table.priority, table.on_conflict)
            maps[name] = fuse_labels(item.predictions, rule).labels
            rows += _rows(name, item, maps[name], organs)
        write_labels(places.summary / "crossval_fused" / f"{item.case}{FILE_ENDING}", maps[FUSED], item.grid)
        for name, labels in {**item.predictions, FUSED: maps[FUSED]}.items():
            _count_confusion(confusion.setdefault(name, {"voxels": 0, "cases": 0}), labels, item, swap_pairs(organs))
    return rows, confusion


def _count_confusion(
    total: dict[str, int], labels: Labels, item: HeldOutCase, pairs: Sequence[tuple[int, int]]
) -> None:
    found = side_confusion(item.judged(labels), item.truth, item.grid, pairs)
    voxels = sum((c.left_on_right or 0) + (c.right_on_left or 0) for c in found)
    total["voxels"] += voxels
    total["cases"] += voxels > 0


def _by_model(rows: Sequence[Row]) -> dict[str, dict[str, list[OrganScore]]]:
    found: dict[str, dict[str, list[OrganScore]]] = {}
    for row in rows:
        found.setdefault(row.model, {}).setdefault(row.case, []).append(row.score)
    return found


def _overview(rows: Sequence[Row], organs: Sequence[str], models: Sequence[str], table: FusionTable) -> str:
    """Organs × (models, fused, nested): DSC mean ± SD and HD95 over the held-out cases."""
    summaries = {model: summarise(cases) for model, cases in _by_model(rows).items()}
    columns = [*models, *(name for name in (FUSED, NESTED) if name in summaries)]
    lines = ["Held-out cases, DSC mean ± SD / HD95 in mm; fused maps, overlaps resolved."]
    lines.append("  ".join([f"{'organ':<16}", *(f"{c:>22}" for c in columns), "owner"]))
    for organ in organs:
        cells = [_cell(summaries[c].get(organ)) for c in columns]
        lines.append("  ".join([f"{organ:<16}", *(f"{c:>22}" for c in cells), table.owner[organ]]))
    means = [_mean_of(summaries[c], organs) for c in columns]
    lines.append("  ".join([f"{'mean':<16}", *(f"{m:>22}" for m in means)]))
    return "\n".join(lines) + "\n"


def _chosen_without(recipe: Recipe, nested: NestedEstimate) -> str:
    if isinstance(recipe.fusion.owners, dict):
        return "owners: fixed by the recipe, so the nested column equals the fused one"
    owners = "; ".join(
        f"fold {f}: {', '.join(f'{o} {m}' for o, m in chosen.items())}" for f, chosen in nested.owners.items()
    )
    return f"owners chosen without the scored fold: {owners or 'not possible with a single fold'}"


def _cell(summary: Any) -> str:
    if summary is None:
        return "-"
    return f"{summary.dsc.mean:.3f} ± {summary.dsc.sd:.3f} / {summary.hd95_mm.mean:.1f}"


def _mean_of(summary: Mapping[str, Any], organs: Sequence[str]) -> str:
    known = [summary[o].dsc.mean for o in organs if o in summary and np.isfinite(summary[o].dsc.mean)]
    return f"{np.mean(known):.3f} ({len(known)} organs)" if known else "-"


def _csv(rows: Sequence[Row]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["model", "fold", "case", "label", "organ", "status", "dsc", "hd95_mm", "assd_mm", "rve"])
    for row in rows:
        numbers = asdict(row.score)
        writer.writerow([row.model, row.fold, row.case, *(numbers[k] for k in ("label", "organ", "status")),
                         *(f"{numbers[k]:.6g}" for k in ("dsc", "hd95_mm", "assd_mm", "rve"))])  # fmt: skip
    return stream.getvalue()


def _summary_json(
    rows: Sequence[Row], table: FusionTable, nested: NestedEstimate, confusion: Mapping[str, Any]
) -> dict[str, Any]:
    means = {
        model: {organ: round(s.dsc.mean, 4) for organ, s in summarise(cases).items() if np.isfinite(s.dsc.mean)}
        for model, cases in _by_model(rows).items()
    }
    return {"owner": dict(table.owner), "dsc": means, "nested_owners": nested.owners, "side_confusion": confusion}
