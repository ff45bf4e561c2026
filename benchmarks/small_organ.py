"""A tiny organ in a large volume: one network for the whole volume against a coarse localiser and a small region.

Digital patients of 128×256×256 voxels (1.5×1×1 mm): a body, a brainstem and two eyes of easy contrast, and a chiasm
of about 30 voxels whose contrast is 1.8 times the noise. It lies within a few millimetres of one place as the landmarks
see it, and within centimetres as the body does. Three networks of the CPU preset get the same number of steps:

- ``whole``: all organs, original voxels, whole volume;
- ``coarse``: all organs at 4 mm, where the chiasm is less than a voxel: it finds the landmarks only;
- ``small``: the chiasm in a region that follows the landmarks which ``coarse`` found.

Two ways of contouring the same held-out patients are then compared end to end: ``whole`` alone, and ``coarse`` for the
landmarks with ``small`` for the chiasm. Measured are DSC and HD95, which rung placed the region and how far from the
true chiasm, and CPU seconds, wall seconds and peak memory per patient. ``coarse`` is trained a second time on the
held-out patients, only to place the training regions of ``small``: a model never locates what it was trained on.

The phantom has white noise and no other small structure, so it says nothing about patients. Prints Markdown rows.

    python benchmarks/small_organ.py [--iterations 500] [--folder FOLDER]
    python benchmarks/small_organ.py --quick          # two CPU minutes: shows that it runs, learns nothing
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nnunet_ext.conversion.convert import READER
from nnunet_ext.evaluation.metrics import OrganScore, score_case
from nnunet_ext.evaluation.report import Spread, spread
from nnunet_ext.geometry import Grid
from nnunet_ext.io.atomic import read_json, write_json
from nnunet_ext.io.nifti import read_image, read_labels, write_labels, write_voxels

if TYPE_CHECKING:
    from nnunet_ext.fusion.rules import FusionTable
    from nnunet_ext.recipe.schema import Recipe

TINY = "OpticChiasm"
ORGANS = {"Brainstem": 1, "Eye_L": 2, "Eye_R": 3, TINY: 4}
SHAPE, QUICK_SHAPE = (128, 256, 256), (32, 64, 64)
SPACING_MM = (1.5, 1.0, 1.0)
COARSE_MM = (4.0, 4.0, 4.0)
REGION_MM = (24.0, 32.0, 32.0)
"""The chiasm (5×5×8 mm) with what the landmarks may be off, and the jitter of the training copies."""
PLAUSIBLE_MM = 8.0
"""The landmarks are 2 to 4 mm off; what the coarse model takes for a chiasm farther away than this is none."""
WHOLE_PATCH = (24, 64, 64)
"""Twice the preset's voxels: more surroundings, and a third of the preset's time per patient at prediction."""
EPOCH = 250
DATASET, REGION_DATASET = 811, 812
NAME = f"Dataset{DATASET:03d}_SmallOrgan"
WHOLE, CASCADE = "whole volume", "coarse, then region"

Triple = tuple[float, float, float]


# --- the patients -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ball:
    """An ellipsoid in the average patient; shares are of the half edges of the volume, (z, y, x) as everywhere here.

    Args:
        hu: Its density; soft tissue around it has 40 HU.
        centre: Share, −1 to 1.
        radii: Share.
        radii_mm: In mm instead; a tiny organ stays tiny in a smaller volume.
    """

    hu: float
    centre: Triple
    radii: Triple = (0.0, 0.0, 0.0)
    radii_mm: Triple | None = None


BODY = Ball(40.0, (0.0, 0.0, 0.0), (0.80, 0.72, 0.60))
LANDMARKS = {
    "Brainstem": Ball(140.0, (-0.05, 0.20, 0.0), (0.28, 0.13, 0.13)),
    "Eye_L": Ball(-60.0, (0.05, -0.45, 0.27), (0.13, 0.10, 0.10)),
    "Eye_R": Ball(-60.0, (0.05, -0.45, -0.27), (0.13, 0.10, 0.10)),
}
CHIASM = Ball(40.0, (0.15, -0.10, 0.0), radii_mm=(2.0, 1.9, 2.9))
"""46 mm³ are 31 voxels; its density follows from noise and contrast."""
AIR_HU, NOISE_HU = -1000, 20.0
SIZE, PLACE, ORGAN_PLACE = 0.07, 0.07, 0.012
"""Uniform ±: size of a patient; place of the body on the couch and of all organs in the body; place of every organ for
itself, as shares (0.07 are 7 mm to 9 mm, 0.012 are 1.2 mm to 1.5 mm); our choice."""
CHIASM_PLACE_MM = 2.5
"""Uniform ±, beside the landmarks' own; our choice."""


def draw_patient(seed: int, grid: Grid, contrast: float) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """CT and label map of a patient; the same seed gives the same patient.

    Args:
        seed: Number of the patient.
        grid: To draw on.
        contrast: Of the chiasm, in standard deviations of the noise.
    """
    rng = np.random.default_rng(seed)
    half_mm = np.asarray(grid.shape) * grid.spacing_mm / 2
    size = rng.uniform(1 - SIZE, 1 + SIZE, 3)
    couch, inside = rng.uniform(-PLACE, PLACE, (2, 3)) * half_mm
    hu = np.full(grid.shape, float(AIR_HU))
    labels = np.zeros(grid.shape, dtype=np.uint8)

    def paint(ball: Ball, number: int, moved_mm: NDArray[np.float64]) -> None:
        centre_mm = half_mm * (1 + np.asarray(ball.centre) * size) + moved_mm
        radii_mm = np.asarray(ball.radii_mm or np.asarray(ball.radii) * half_mm * size)
        box, mask = _ellipsoid(grid, centre_mm, radii_mm)
        hu[box][mask], labels[box][mask] = ball.hu, number

    paint(BODY, 0, couch)
    for organ, ball in LANDMARKS.items():
        paint(ball, ORGANS[organ], couch + inside + rng.uniform(-ORGAN_PLACE, ORGAN_PLACE, 3) * half_mm)
    chiasm = dataclasses.replace(CHIASM, hu=BODY.hu + contrast * NOISE_HU)
    paint(chiasm, ORGANS[TINY], couch + inside + rng.uniform(-CHIASM_PLACE_MM, CHIASM_PLACE_MM, 3))
    noise = rng.normal(0.0, NOISE_HU, grid.shape)
    return np.rint(np.where(hu > AIR_HU, hu + noise, hu)).astype(np.int16), labels


def _ellipsoid(
    grid: Grid, centre_mm: NDArray[np.float64], radii_mm: NDArray[np.float64]
) -> tuple[tuple[slice, ...], NDArray[np.bool_]]:
    """Its box in the volume, and its voxels in that box."""
    spacing = np.asarray(grid.spacing_mm)
    low = np.maximum(0, np.floor((centre_mm - radii_mm) / spacing - 0.5)).astype(int)
    high = np.minimum(grid.shape, np.ceil((centre_mm + radii_mm) / spacing + 0.5)).astype(int)
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    edges = [(np.arange(a, b) + 0.5) * mm for a, b, mm in zip(low, high, spacing, strict=True)]
    z, y, x = (((e - c) / r) ** 2 for e, c, r in zip(edges, centre_mm, radii_mm, strict=True))
    return box, np.asarray(z[:, None, None] + y[None, :, None] + x[None, None, :] <= 1)


def write_dataset(folder: Path, study: Study) -> None:
    """The patients as nnU-Net's raw dataset; drawn once, refused when they belong to another study."""
    page, drawn = folder / "dataset.json", f"{study.shape}, contrast {study.contrast}, {study.train}+{study.held_out}"
    if page.exists():
        if read_json(page)["description"] != drawn:
            raise SystemExit(f"{folder} was drawn for another study ({read_json(page)['description']}); delete it.")
        return
    grid = study.grid
    for seed, case in enumerate(study.cases):
        image, labels = draw_patient(seed, grid, study.contrast)
        write_voxels(folder / "imagesTr" / f"{case}_0000.nii.gz", image, grid)
        write_labels(folder / "labelsTr" / f"{case}.nii.gz", labels, grid)
    train, held_out = study.cases[: study.train], study.cases[study.train :]
    splits = [{"train": train, "val": held_out}, {"train": held_out, "val": train}]
    write_json(folder / "splits_final.json", splits)
    dataset = {"channel_names": {"0": "CT"}, "labels": {"background": 0, **ORGANS}, "numTraining": len(study.cases),
               "file_ending": ".nii.gz", "overwrite_image_reader_writer": READER, "description": drawn}  # fmt: skip
    write_json(page, dataset)


# --- the study --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Study:
    """What the command line asks for.

    Args:
        shape: Voxels (Z, Y, X).
        train: Patients to train on.
        held_out: Patients to judge on.
        iterations: Optimiser steps of every model.
        features: Of the first stage of every network; the preset's own 16 take about twice the time.
        contrast: Of the chiasm, in standard deviations of the noise.
    """

    shape: tuple[int, int, int]
    train: int
    held_out: int
    iterations: int
    features: int
    contrast: float

    @property
    def grid(self) -> Grid:
        z, y, x = self.shape
        return Grid((z, y, x), SPACING_MM)

    @property
    def cases(self) -> list[str]:
        return [f"patient_{seed:02d}" for seed in range(self.train + self.held_out)]

    @property
    def settings(self) -> dict[str, int]:
        epoch = min(EPOCH, self.iterations)
        return {"num_epochs": self.iterations // epoch, "num_iterations_per_epoch": epoch}

    def model(self, plans: str, dataset: int = DATASET, **more: Any) -> dict[str, Any]:
        planning = {"preset": "cpu", "base_features": self.features, **more.pop("planning", {})}
        return {"dataset": dataset, "configuration": "3d_fullres", "trainer": "nnUNetTrainerExtNoMirror",
                "plans": plans, "planning": planning, "settings": self.settings, **more}  # fmt: skip

    def recipes(self) -> tuple[Recipe, Recipe]:
        """The localiser alone, in both folds, and the study in the fold that is judged."""
        from nnunet_ext.recipe.schema import Recipe

        plans = "nnUNetPlansExtCPU"
        coarse = self.model(f"{plans}Coarse", planning={"spacing_mm": COARSE_MM})
        region: dict[str, Any] = {
            "organs": [TINY],
            "from": "coarse",
            "size_mm": REGION_MM,
            "plausible_mm": PLAUSIBLE_MM,
        }
        region["min_retention"] = 0.0  # a poor localiser shall show in the result, not stop the study
        models = {
            "coarse": coarse,
            "whole": self.model(plans, planning={"patch_size": WHOLE_PATCH}),
            "small": self.model(plans, REGION_DATASET, region=region),
        }
        page = {"title": "A tiny organ in a large volume.", "dataset": DATASET, "organs": list(ORGANS), "device": "cpu"}

        def recipe(name: str, folds: Sequence[int], owner: str, models: dict[str, Any]) -> Recipe:
            fusion = {"owners": dict.fromkeys(ORGANS, owner), "first": [TINY]}
            return Recipe.model_validate({**page, "name": name, "folds": folds, "models": models, "fusion": fusion})

        return (
            recipe("small_organ_localiser", (0, 1), "coarse", {"coarse": coarse}),
            recipe("small_organ", (0,), "whole", models),
        )


@dataclass
class Way:
    """One way of contouring, over the held-out patients.

    Args:
        scores: Patient to the scores of its organs.
        cpu_s: Per patient.
        wall_s: Per patient.
        peak_mb: Per patient, of the whole process.
        stages: Stage to its wall seconds per patient.
        rungs: What placed the region.
        off_mm: Middle of the region to the true chiasm.
    """

    scores: list[list[OrganScore]] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    wall_s: list[float] = field(default_factory=list)
    peak_mb: list[float] = field(default_factory=list)
    stages: dict[str, list[float]] = field(default_factory=dict)
    rungs: Counter[str] = field(default_factory=Counter)
    off_mm: list[float] = field(default_factory=list)

    def of(self, organs: Iterable[str]) -> list[OrganScore]:
        return [row for case in self.scores for row in case if row.organ in organs]


def predict_way(recipe: Recipe, table: FusionTable, raw: Path, cases: Sequence[str]) -> Way:
    """Contour and judge the held-out patients with the models that a table needs."""
    from nnunet_ext.recipe.composed import Composed

    composed, way = Composed.load(recipe, folds=(0,), table=table), Way()
    for case in cases:
        image, grid = read_image(raw / "imagesTr" / f"{case}_0000.nii.gz")
        truth, _ = read_labels(raw / "labelsTr" / f"{case}.nii.gz")
        wall, cpu = time.perf_counter(), time.process_time()
        labels, report = composed.predict(image[None], grid)
        way.wall_s.append(time.perf_counter() - wall)
        way.cpu_s.append(time.process_time() - cpu)
        way.peak_mb.append(max(stage.get("peak_mb", math.nan) for stage in report["stages"].values()))
        for name, stage in report["stages"].items():
            way.stages.setdefault(name, []).append(stage["seconds"])
        for entry in report["regions"].values():
            way.rungs[entry["rung"]] += 1
            if entry["start"] is None:  # no place inside the image was found
                continue
            middle = (np.asarray(entry["start"]) + entry["stop"]) / 2 - 0.5
            centre = np.argwhere(truth == ORGANS[TINY]).mean(axis=0)
            way.off_mm.append(float(np.linalg.norm((middle - centre) * grid.spacing_mm)))
        way.scores.append(score_case(labels, truth, ORGANS, grid.spacing_mm))
    return way


def run(study: Study, folder: Path, say: Callable[[str], None]) -> dict[str, Way]:
    """Draw, train, and contour in both ways."""
    os.environ.update(OMP_NUM_THREADS="1", nnUNet_n_proc_DA="0", nnUNet_def_n_proc="1", nnUNet_compile="f")
    for name in ("raw", "preprocessed", "results"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        os.environ[f"nnUNet_{name}"] = str(folder / name)
    raw = folder / "raw" / NAME
    write_dataset(raw, study)
    import torch

    from nnunet_ext.recipe.train import train

    torch.set_num_threads(1)
    localiser, recipe = study.recipes()
    train(localiser, 1, say)
    table = train(recipe, 1, say)
    cascade = {organ: "small" if organ == TINY else "coarse" for organ in ORGANS}
    owners = {WHOLE: dict.fromkeys(ORGANS, "whole"), CASCADE: cascade}
    held_out = study.cases[study.train :]
    return {
        name: predict_way(recipe, dataclasses.replace(table, owner=owner), raw, held_out)
        for name, owner in owners.items()
    }


# --- the report -------------------------------------------------------------------------------------------------------


def print_ways(ways: dict[str, Way]) -> None:
    print("| way | chiasm DSC | chiasm HD95 mm | missing | landmarks DSC | CPU s | wall s | peak MB |")
    print("|---|---|---|---|---|---|---|---|")
    for name, way in ways.items():
        tiny, landmarks = way.of([TINY]), way.of(LANDMARKS)
        missing = sum(row.status == "missed" for row in tiny)
        cells = [_pm([row.dsc for row in tiny], 3), _pm([row.hd95_mm for row in tiny], 2), f"{missing} of {len(tiny)}"]
        cells += [_pm([row.dsc for row in landmarks], 3), _pm(way.cpu_s, 1), _pm(way.wall_s, 1), _pm(way.peak_mb, 0)]
        print(f"| {name} | {' | '.join(cells)} |")
    whole, cascade = (ways[name] for name in (WHOLE, CASCADE))
    ratios = [sum(getattr(cascade, what)) / sum(getattr(whole, what)) for what in ("cpu_s", "wall_s", "peak_mb")]
    print(f"| {CASCADE} / {WHOLE} | | | | | {' | '.join(f'{ratio:.2f}' for ratio in ratios)} |")
    rungs = ", ".join(f"{rung} {count}" for rung, count in cascade.rungs.most_common())
    print(f"\nRegions: {rungs}; middle {_pm(cascade.off_mm, 1)} mm from the true chiasm.")
    for name, way in ways.items():
        print(f"Stages of {name}, wall s: {', '.join(f'{k} {spread(v).mean:.1f}' for k, v in way.stages.items())}.")


def _pm(values: Sequence[float], digits: int) -> str:
    found: Spread = spread(values)
    if not found.cases:
        return "–"
    return f"{found.mean:.{digits}f}" + (f" ± {found.sd:.{digits}f}" if math.isfinite(found.sd) else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, help=f"Steps of every model; above {EPOCH} a multiple. Default 500.")
    parser.add_argument("--shape", type=int, nargs=3, metavar=("Z", "Y", "X"), help="Voxels; the anatomy scales along.")
    parser.add_argument("--features", type=int, default=8, help="Of the first stage; the preset has 16.")
    parser.add_argument("--contrast", type=float, default=1.8, help="Of the chiasm, over the noise.")
    parser.add_argument("--held-out", type=int, help="Patients to judge on. Default 6; about a minute each.")
    parser.add_argument("--quick", action="store_true", help="32×64×64 voxels, 10 steps, five patients.")
    parser.add_argument("--folder", type=Path, help="Work here, keep it, resume; default: a temporary folder.")
    given = parser.parse_args()
    iterations = given.iterations or (10 if given.quick else 500)
    if iterations < 1 or (iterations > EPOCH and iterations % EPOCH):
        parser.error(f"--iterations {iterations} is neither 1 to {EPOCH} nor a multiple of {EPOCH}.")
    z, y, x = given.shape or (QUICK_SHAPE if given.quick else SHAPE)
    train, held_out = (3, given.held_out or 2) if given.quick else (8, given.held_out or 6)
    study = Study((z, y, x), train, held_out, iterations, given.features, given.contrast)
    with tempfile.TemporaryDirectory() as temporary:
        ways = run(study, given.folder or Path(temporary), lambda line: print(line, file=sys.stderr, flush=True))
    used = time.process_time() + _children_s()
    print(f"    python benchmarks/small_organ.py {' '.join(sys.argv[1:])}".rstrip() + "\n")
    print(
        f"{train} patients to train on, {held_out} held out, {z}×{y}×{x} voxels, {iterations} steps per model, "
        f"{given.features} features; mean ± SD; {used / 60:.1f} CPU minutes for everything.\n"
    )
    print_ways(ways)


def _children_s() -> float:
    import resource

    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
