"""Whole volume against cascade on held-out patients, end to end; and with a broken localiser.

Every held-out patient is predicted by the networks of his fold alone, exactly as ``nnunet-ext predict`` does it
(regions grow, organs fall back), once with the whole-image model as the owner of all organs and once with the region
model. Prints DSC, HD95, time and memory.

    nnunet-ext train sarcoma_ctmr_cpu
    python benchmarks/cascade.py sarcoma_ctmr_cpu --owners whole region
    python benchmarks/cascade.py sarcoma_ctmr_cpu --owners region --sabotage
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from nnunet_ext.evaluation.metrics import score_case
from nnunet_ext.fusion.rules import FusionTable
from nnunet_ext.io.nifti import read_image, read_labels
from nnunet_ext.recipe.composed import Composed
from nnunet_ext.recipe.models import LoadedModel
from nnunet_ext.recipe.places import Places
from nnunet_ext.recipe.schema import Recipe, locators_of
from nnunet_ext.recipe.selection import model_labels
from nnunet_ext.roi.pasting import renumbered
from nnunet_ext.roi.provenance import label_numbers

Labels = NDArray[np.integer]
OFF_MM = 60.0


@dataclass
class Row:
    owner: str
    localiser: str
    case: str
    organ: str
    dsc: float
    hd95_mm: float
    seconds: float
    peak_mb: float
    rung: str
    grown: int
    warned: bool
    origin: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--owners", nargs="+", required=True, help="models that own all organs, one run each")
    parser.add_argument("--sabotage", action="store_true", help="break the localiser in three ways as well")
    parser.add_argument("--csv", type=Path, help="write one line per case here")
    arguments = parser.parse_args()
    recipe = Recipe.load(arguments.recipe)
    rows = [row for owner in arguments.owners for row in run(recipe, owner, arguments.sabotage)]
    if arguments.csv:
        with arguments.csv.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(vars(rows[0])))
            writer.writeheader()
            writer.writerows(vars(row) for row in rows)
    print(table(rows))
    if arguments.sabotage:
        print(repaired(rows))


def run(recipe: Recipe, owner: str, sabotage: bool) -> Iterator[Row]:
    places = Places.of(recipe)
    organs = {organ: i for i, organ in enumerate(recipe.organs, 1)}
    known = {name: model_labels(places, name) for name in recipe.models}
    rule = FusionTable(organs, dict.fromkeys(organs, owner), known, list(organs))
    for fold in recipe.folds:
        composed = Composed.load(recipe, folds=(fold,), table=rule)
        locators = locators_of(recipe.models[owner])
        genuine = dict(composed.models)
        for name, change in (SABOTAGE if sabotage else {"as trained": None}).items():
            if change is not None:
                composed.models[locators[0]] = Sabotaged(genuine[locators[0]], change)  # type: ignore[assignment]
            else:
                composed.models.update(genuine)
            for case in places.validation_cases(fold):
                yield from score(composed, places, case, owner, name)


def score(composed: Composed, places: Places, case: str, owner: str, localiser: str) -> Iterator[Row]:
    dataset = places.raw / places.dataset_name(composed.recipe.dataset)
    numbers = {name: i for i, name in places.dataset_json(dataset.name)["channel_names"].items()}
    files = [dataset / "imagesTr" / f"{case}_{int(numbers[c]):04d}.nii.gz" for c in composed.needed]
    images, grids = zip(*(read_image(file) for file in files), strict=True)
    labels, report = composed.predict(np.stack(images), grids[0])
    truth, grid = read_labels(dataset / "labelsTr" / f"{case}.nii.gz")
    own = label_numbers(places.dataset_json(dataset.name))
    organs = dict(composed.table.organs)
    truth = renumbered(truth, {own[organ]: number for organ, number in organs.items()})
    region = report["regions"].get(owner, {})
    for found in score_case(labels, truth, organs, grid.spacing_mm):
        yield Row(
            owner, localiser, case, found.organ, found.dsc, found.hd95_mm,
            sum(stage["seconds"] for stage in report["stages"].values()),
            max(stage.get("peak_mb", float("nan")) for stage in report["stages"].values()),
            region.get("rung", "-"), region.get("grown", 0), bool(report["warnings"]),
            region.get("organs", {}).get(found.organ, owner),
        )  # fmt: skip


# --- a localiser that fails ------------------------------------------------------------------------------------------


@dataclass
class Sabotaged:
    """A loaded model whose label maps are spoiled on their way out."""

    model: LoadedModel
    change: Callable[[Labels, Any], Labels]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def predict(self, images: NDArray[np.float32], spacing_mm: Any, *more: Any) -> Labels:
        return self.change(self.model.predict(images, spacing_mm, *more), spacing_mm)


def emptied(labels: Labels, spacing_mm: Any) -> Labels:
    return np.zeros_like(labels)


def moved(labels: Labels, spacing_mm: Any) -> Labels:
    """60 mm to the patient's left or right, wherever there is more room."""
    by = round(OFF_MM / spacing_mm[2])
    x = float(np.argwhere(labels)[:, 2].mean()) if labels.any() else 0.0
    return np.asarray(ndimage.shift(labels, (0, 0, by if x < labels.shape[2] / 2 else -by), order=0))


def halved(labels: Labels, spacing_mm: Any) -> Labels:
    """The upper half of what was found is lost, so the region holds half of the organ."""
    result = labels.copy()
    found = np.flatnonzero(labels.any(axis=(1, 2)))
    if len(found):
        result[int(found.mean()) :] = 0
    return result


SABOTAGE: dict[str, Callable[[Labels, Any], Labels] | None] = {
    "as trained": None,
    "empty": emptied,
    "60 mm off": moved,
    "half the organ": halved,
}


def table(rows: list[Row]) -> str:
    lines = ["| owner | localiser | organ | DSC | HD95 mm | missing | s per case | peak MB | rungs | grown | warned |"]
    lines.append("|" + "---|" * 11)
    for owner, localiser, organ in dict.fromkeys((r.owner, r.localiser, r.organ) for r in rows):
        own = [r for r in rows if (r.owner, r.localiser, r.organ) == (owner, localiser, organ)]
        rungs = {rung: sum(r.rung == rung for r in own) for rung in sorted({r.rung for r in own})}
        dsc = [r.dsc for r in own]
        cells = [
            owner, localiser, organ, f"{np.mean(dsc):.3f} ± {np.std(dsc, ddof=1):.3f}",
            f"{np.nanmean([r.hd95_mm if np.isfinite(r.hd95_mm) else np.nan for r in own]):.1f}",
            str(sum(r.dsc == 0 for r in own)), f"{np.mean([r.seconds for r in own]):.1f}",
            f"{np.nanmean([r.peak_mb for r in own]):.0f}", ", ".join(f"{k} {v}" for k, v in rungs.items()),
            str(sum(r.grown > 0 for r in own)), str(sum(r.warned for r in own)),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def source(origin: str) -> str:
    """Where a contour comes from: the region, a whole-image model, or both where they disagree."""
    return "region" if origin == "region" else "both" if origin.startswith("region+") else "whole image"


def repaired(rows: list[Row]) -> str:
    """How far a broken localiser moves the result, apart for contours that the border test could bring whole into the
    region, for those that are the region's and a whole-image model's together, and for those of such a model alone."""
    lines = [
        "| owner | localiser | contour | n | DSC | as trained | within 0.02 | or better | worst |",
        "|" + "---|" * 9,
    ]
    before = {(r.owner, r.case, r.organ): r.dsc for r in rows if r.localiser == "as trained"}
    for owner, localiser in dict.fromkeys((r.owner, r.localiser) for r in rows if r.localiser != "as trained"):
        mine = [r for r in rows if (r.owner, r.localiser) == (owner, localiser)]
        for name in ("region", "both", "whole image"):
            if own := [r for r in mine if source(r.origin) == name]:
                was = np.array([before[r.owner, r.case, r.organ] for r in own])
                change = np.array([r.dsc for r in own]) - was
                cells = [owner, localiser, name, str(len(own)), f"{np.mean(was + change):.3f}", f"{np.mean(was):.3f}",
                         str(int(np.sum(np.abs(change) <= 0.02))), str(int(np.sum(change >= -0.02))),
                         f"{change.min():+.3f}"]  # fmt: skip
                lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
