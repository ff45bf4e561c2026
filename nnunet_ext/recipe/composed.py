"""A composed model in memory, and what it does with one image: locate, crop, predict, paste, fuse, check the sides."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_ext.conversion.orientation import from_lps, to_lps
from nnunet_ext.errors import InputError
from nnunet_ext.evaluation.laterality import check_laterality
from nnunet_ext.fusion.merge import fuse_labels
from nnunet_ext.fusion.rules import FusionTable
from nnunet_ext.geometry import LEFT_RIGHT, MAX_OBLIQUE_DEG, Box, Grid, body_axis
from nnunet_ext.io.atomic import read_json
from nnunet_ext.labels import swap_pairs
from nnunet_ext.recipe.models import LoadedModel, load_model
from nnunet_ext.recipe.places import Places
from nnunet_ext.recipe.schema import Model, Recipe, locators_of
from nnunet_ext.roi.boxes import crop, paste
from nnunet_ext.roi.centre import Centre, Located, centre_of, locate
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
        channels: Channel names in the order of the files ``_0000``, ``_0001``, ...: those of the first model, then what
            later ones add.
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
            folds: Folds whose networks are averaged; None is the page's choice.
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
        averaged = {n: folds or recipe.models[n].folds or recipe.folds for n in names}
        models = {n: load_model(places.model_folder(n), averaged[n], device or recipe.device) for n in names}
        regions = [n for n in names if recipe.models[n].region is not None]
        described = {n: read_json(places.model_folder(n) / "dataset.json") for n in regions}
        positions = {n: described[n]["nnunet_ext"]["position_in_body"] for n in regions}
        channels = dict.fromkeys(channel for model in models.values() for channel in model.channels)
        return cls(recipe, table, list(channels), models, positions)

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

    def _channels(self, name: str) -> list[str]:
        return list(self.composed.models[name].channels or self.composed.channels)

    def _image(self, channel: str) -> NDArray[np.float32]:
        image: NDArray[np.float32] = self.images[list(self.composed.channels).index(channel)]
        return image

    def _whole(self, name: str) -> Labels:
        images = np.stack([self._image(channel) for channel in self._channels(name)])
        return self.composed.models[name].predict(images, self.grid.spacing_mm)

    def _region(self, name: str, model: Model, region: Region) -> Labels:
        located = self._locate(name, model, region)
        box = region.box(self.grid, located.centre)
        parts = np.stack([crop(self._image(c), box, region.padding(c)) for c in self._channels(name)])
        labels = self.composed.models[name].predict(parts, self.grid.spacing_mm).astype(np.uint8)
        touches = _touches_border(labels, box, self.grid)
        self.regions[name] = {"rung": located.rung, **box_entry(box), "touches_border": touches}
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
        names = {number: organ for organ, number in self.composed.table.organs.items()}
        lines = [f"{names[s.left]} and {names[s.right]} lie on each other's side" for s in sides if not s.plausible]
        oblique_deg = body_axis(self.grid.direction, LEFT_RIGHT)[1]
        if oblique_deg > MAX_OBLIQUE_DEG:
            lines.append(f"the image is {oblique_deg:.0f}° oblique, more than any that was trained on")
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


def _touches_border(labels: Labels, box: Box, grid: Grid) -> bool:
    """Whether a contour reaches a side of its region that lies inside the image, where it may be cut off."""
    sides = [(axis, 0) for axis in range(3) if box.start[axis] > 0]
    sides += [(axis, -1) for axis in range(3) if box.stop[axis] < grid.shape[axis]]
    return any(bool(np.take(labels, side, axis=axis).any()) for axis, side in sides)
