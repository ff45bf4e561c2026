"""A whole recipe on new cases in one process: locate, crop, predict, paste, fuse; every file whole or not there."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_ext.conversion.checks import read_checked_image
from nnunet_ext.conversion.orientation import from_lps, to_lps
from nnunet_ext.errors import BusyError, CasesFailedError, InputError, NnunetExtError
from nnunet_ext.evaluation.laterality import check_laterality
from nnunet_ext.fusion.merge import fuse_labels
from nnunet_ext.fusion.rules import FusionTable
from nnunet_ext.geometry import Grid, grid_difference
from nnunet_ext.io.atomic import read_json, write_json
from nnunet_ext.io.lock import locked
from nnunet_ext.io.nifti import write_labels
from nnunet_ext.labels import swap_pairs
from nnunet_ext.recipe.inputs import InputCase, find_cases
from nnunet_ext.recipe.models import LoadedModel, load_model
from nnunet_ext.recipe.places import Places
from nnunet_ext.recipe.schema import Model, Recipe, locators_of
from nnunet_ext.roi.boxes import crop, paste
from nnunet_ext.roi.centre import Centre, Located, centre_of, locate
from nnunet_ext.roi.provenance import FILE_ENDING, sha256_of
from nnunet_ext.roi.region import CENTRE, Region, box_entry

Labels = NDArray[np.integer]
SPACING_FACTOR = 3.0
"""Our choice: a voxel edge this many times larger or smaller than in training is reported."""


@dataclass
class Composed:
    """A composed model in memory.

    Args:
        recipe: Its page.
        table: Owners, numbers and priority.
        channels: Channel names in order.
        models: Name to loaded model, in the order to run.
        positions: Region model to the organs' usual place in the body.
    """

    recipe: Recipe
    table: FusionTable
    channels: Sequence[str]
    models: dict[str, LoadedModel]
    positions: dict[str, Sequence[float]]

    @property
    def digest(self) -> str:
        """Hash of everything that decides a result except the image."""
        content = [self.recipe.digest, self.table.as_dict(), {n: m.digest for n, m in self.models.items()}]
        return hashlib.sha256(repr(content).encode()).hexdigest()

    @classmethod
    def load(cls, recipe: Recipe, folds: Sequence[int] | None = None, device: str | None = None) -> Composed:
        """Load the models that own an organ or locate a region for one.

        Args:
            recipe: A trained recipe.
            folds: Folds whose networks are averaged; None is all that the recipe trains.
            device: None is the recipe's.

        Raises:
            InputError: the recipe was not trained, or a model cannot be loaded.
        """
        places = Places.of(recipe)
        if not places.fusion_table.exists():
            raise InputError(
                f"{places.fusion_table} is missing; run `nnunet-ext train` for recipe {recipe.name} first."
            )
        table = FusionTable.load(places.fusion_table)
        names = needed_models(recipe, table.owners)
        models = {n: load_model(places.model_folder(n), folds or recipe.folds, device or recipe.device) for n in names}
        regions = [n for n in names if recipe.models[n].region is not None]
        described = {n: read_json(places.model_folder(n) / "dataset.json") for n in names}
        positions = {n: described[n]["nnunet_ext"]["position_in_body"] for n in regions}
        channels = described[names[0]]["channel_names"]
        return cls(recipe, table, [channels[key] for key in sorted(channels, key=int)], models, positions)

    def predict(self, images: NDArray[np.float32], grid: Grid) -> tuple[Labels, dict[str, Any]]:
        """Contour one image.

        Shape:
            images: (C, Z, Y, X) in any orientation that ``grid`` declares.
            returns: (Z, Y, X) label map on the same grid in the recipe's numbers, and the report.
        """
        turned = [to_lps(channel, grid) for channel in images]
        lps, lps_grid = np.stack([channel for channel, _ in turned]).astype(np.float32), turned[0][1]
        run = _Run(self, lps, lps_grid)
        for name in self.models:
            run.add(name)
        fused = fuse_labels({name: run.maps[name] for name in self.table.owners}, self.table)
        sides = check_laterality(fused.labels, lps_grid, swap_pairs(dict(self.table.organs)))
        missing = [organ for organ, number in self.table.organs.items() if not (fused.labels == number).any()]
        report = {
            "owner": dict(self.table.owner),
            "regions": run.regions,
            "laterality": [asdict(side) for side in sides],
            "contested_voxels": fused.contested,
            "missing_organs": missing,
            "volumes_ml": {
                o: round(int((fused.labels == n).sum()) * grid.voxel_ml, 3) for o, n in self.table.organs.items()
            },
            "warnings": [*(f"{o} was not found" for o in missing), *run.warnings(sides)],
            "seconds": run.seconds,
        }
        return from_lps(fused.labels, grid), report


@dataclass
class _Run:
    """One image on its way through the models."""

    composed: Composed
    images: NDArray[np.float32]
    grid: Grid
    maps: dict[str, Labels] = field(default_factory=dict)
    regions: dict[str, dict[str, Any]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, name: str) -> None:
        """Predict with one model, in its region if it has one."""
        start = time.perf_counter()
        model = self.composed.recipe.models[name]
        self.maps[name] = self._whole(name) if model.region is None else self._region(name, model, model.region)
        self.seconds[name] = round(time.perf_counter() - start, 2)

    def _whole(self, name: str) -> Labels:
        return self.composed.models[name].predict(self.images, self.grid.spacing_mm)

    def _region(self, name: str, model: Model, region: Region) -> Labels:
        located = self._locate(name, model, region)
        box = region.box(self.grid, located.centre)
        pads = [region.pad_value, *[0.0] * (len(self.images) - 1)]
        parts = np.stack([crop(image, box, pad) for image, pad in zip(self.images, pads, strict=True)])
        labels = self.composed.models[name].predict(parts, self.grid.spacing_mm).astype(np.uint8)
        self.regions[name] = {"rung": located.rung, **box_entry(box), "touches_border": _touches_border(labels)}
        return paste(np.zeros(self.grid.shape, dtype=np.uint8), labels, box)

    def _locate(self, name: str, model: Model, region: Region) -> Located:
        if region.source == CENTRE:
            return Located(Region.middle(self.grid), CENTRE)
        found: dict[str, Centre | None] = {}
        for i, locator in enumerate(locators_of(model)):
            numbers = [n for o, n in self.composed.models[locator].labels.items() if o in region.organs]
            rung = "located" if i == 0 else f"fallback:{locator}"
            found[rung] = centre_of(self.maps[locator], numbers, self.grid.spacing_mm)
        return locate(self.images[0], found, self.composed.positions[name])

    def warnings(self, sides: Iterable[Any]) -> list[str]:
        """What a reader of the contours must know."""
        lines = [
            f"labels {s.left} and {s.right} lie on each other's side" for s in sides if s.judged and not s.plausible
        ]
        for name, region in self.regions.items():
            if region["rung"].startswith("fallback"):
                lines.append(f"region of {name}: organ not found, {region['rung']}")
            if region["touches_border"]:
                lines.append(f"region of {name}: a contour touches its border and may be cut off")
        for name, model in self.composed.models.items():
            usual = model.predictor.plans_manager.plans["original_median_spacing_after_transp"]
            factors = [a / b for a, b in zip(sorted(self.grid.spacing_mm), sorted(usual), strict=True)]
            if max(factors) > SPACING_FACTOR or min(factors) < 1 / SPACING_FACTOR:
                lines.append(f"voxel size far from what {name} was trained on")
        return lines


def needed_models(recipe: Recipe, owners: Iterable[str]) -> list[str]:
    """Models to run for some owners, with those that locate their regions, in running order."""
    needed = set(owners)
    while True:
        more = {locator for name in needed for locator in locators_of(recipe.models[name])} - needed
        if not more:
            return [name for name in recipe.in_order() if name in needed]
        needed |= more


def predict_folder(composed: Composed, source: Path, output: Path, say: Callable[[str], None]) -> None:
    """Contour every case of a folder; a bad one is isolated, the others finish.

    Writes ``<case>.nii.gz`` on the grid of the input and ``<case>.json`` (owners, regions, fall-backs, laterality). A
    case is skipped when its outputs are whole and were made from the same image by the same models; run again after a
    kill.

    Args:
        composed: The loaded model.
        source: Folder with ``<case>_0000.nii.gz``.
        output: Folder to write.
        say: Receives one line per case.

    Raises:
        InputError: no folder or no images.
        CasesFailedError: some cases failed; each is named with its cause.
        BusyError: another process writes there.
    """
    cases, failed = find_cases(source, len(composed.channels))
    with locked(output / ".lock"):
        write_json(output / "dataset.json", _output_dataset_json(composed))
        for i, case in enumerate(cases, 1):
            try:
                line = _predict_case(composed, case, output)
            except BusyError:
                raise
            except (NnunetExtError, ValueError, OSError, RuntimeError, MemoryError) as error:
                failed[case.case] = str(error) or type(error).__name__
                line = f"{case.case}: FAILED, {failed[case.case]}"
            say(f"[{i}/{len(cases)}] {line}")
    if failed:
        listed = "\n  ".join(f"{name}: {cause}" for name, cause in sorted(failed.items()))
        raise CasesFailedError(f"{len(failed)} inputs failed, {len(cases)} cases were tried:\n  {listed}")


def _predict_case(composed: Composed, case: InputCase, output: Path) -> str:
    paths = case.require_channels(composed.channels)
    key = {"models": composed.digest, "inputs": [sha256_of(path) for path in paths]}
    target, report_path = output / f"{case.case}{FILE_ENDING}", output / f"{case.case}.json"
    if _is_done(report_path, target, key):
        return f"{case.case}: done before, kept"
    start = time.perf_counter()
    images, grid, repairs = _read(paths, composed.channels)
    labels, report = composed.predict(images, grid)
    write_labels(target, labels, grid)
    entry = {"case": case.case, **key, "output_sha256": sha256_of(target), "repairs": repairs, **report}
    write_json(report_path, entry)
    warnings = "".join(f"; {line}" for line in report["warnings"])
    return f"{case.case}: {time.perf_counter() - start:.1f} s{warnings}"


def _read(paths: Sequence[Path], channels: Sequence[str]) -> tuple[NDArray[np.float32], Grid, list[str]]:
    images, repairs = [], []
    first: Grid | None = None
    for path, channel in zip(paths, channels, strict=True):
        image, grid, repaired = read_checked_image(path, channel)
        first = first or grid
        difference = grid_difference(first, grid)
        if difference:
            raise InputError(f"{path} lies on another grid than {paths[0].name}: {difference}; resample it.")
        images.append(image)
        repairs += repaired
    if first is None:
        raise InputError("the recipe has no channel.")
    return np.stack(images), first, repairs


def _is_done(report_path: Path, target: Path, key: dict[str, Any]) -> bool:
    if not report_path.exists() or not target.exists():
        return False
    try:
        entry = dict(read_json(report_path))
    except (ValueError, TypeError):
        return False
    return all(entry.get(k) == v for k, v in key.items()) and entry.get("output_sha256") == sha256_of(target)


def _touches_border(labels: Labels) -> bool:
    return any(bool(np.take(labels, side, axis=axis).any()) for axis in range(3) for side in (0, -1))


def _output_dataset_json(composed: Composed) -> dict[str, Any]:
    return {
        "channel_names": {str(i): name for i, name in enumerate(composed.channels)},
        "labels": {"background": 0, **composed.table.organs},
        "file_ending": FILE_ENDING,
        "nnunet_ext": {"recipe": composed.recipe.name, "models": composed.digest},
    }
