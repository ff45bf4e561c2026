"""A composed model in memory, and what it does with one image: locate, crop, predict, paste, fuse, check the sides."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_ext import __version__
from nnunet_ext.errors import InputError
from nnunet_ext.evaluation.laterality import check_laterality
from nnunet_ext.fusion.merge import fuse_labels
from nnunet_ext.fusion.rules import FusionTable
from nnunet_ext.geometry import Grid
from nnunet_ext.io.atomic import read_json
from nnunet_ext.io.orientation import from_lps, to_lps
from nnunet_ext.labels import swap_pairs
from nnunet_ext.preprocessing.steps import apply_steps
from nnunet_ext.recipe.inference import PreprocessedCache
from nnunet_ext.recipe.likeness import Extent, oblique_warnings, spacing_warnings, usual_extent_mm
from nnunet_ext.recipe.meter import Meter
from nnunet_ext.recipe.models import LoadedModel, load_model
from nnunet_ext.recipe.places import Places
from nnunet_ext.recipe.region_prediction import LocatorMap, RegionalPrediction, region_warnings
from nnunet_ext.recipe.schema import Recipe, locators_of
from nnunet_ext.roi.agreement import check_trained_on
from nnunet_ext.roi.learned import Learned
from nnunet_ext.roi.region import CENTRE, Region
from nnunet_ext.roi.sides import WHOLE, frame_labels

Labels = NDArray[np.integer]


@dataclass
class Composed:
    """A composed model in memory.

    Args:
        recipe: Its page.
        table: Owners, numbers and priority of the organs to contour.
        channels: Channel names of the recipe's dataset, in the order of the files ``_0000``, ``_0001``, ...
        models: Name to loaded model, in the order to run.
        learned: Region model to what its training cases taught, per part of the region.
        steps: Channel to the preprocessing that the training images had and new ones get.
        extents: Model to what was made of the extent of its training scans.
    """

    recipe: Recipe
    table: FusionTable
    channels: Sequence[str]
    models: dict[str, LoadedModel]
    learned: dict[str, dict[str, Learned]] = field(default_factory=dict)
    steps: Mapping[str, Sequence[str]] = field(default_factory=dict)
    extents: Mapping[str, Extent] = field(default_factory=dict)

    @property
    def needed(self) -> dict[str, int]:
        """Channel to the number of its file: those that a model reads, and the first one where the body is looked for.

        In the order of the files. Other files may be there and are not read.
        """
        read = {channel for model in self.models.values() for channel in model.channels or self.channels}
        regions = [self.recipe.models[name].region for name in self.models]
        if any(region is not None and region.source != CENTRE for region in regions):
            read.add(self.channels[0])
        return {channel: number for number, channel in enumerate(self.channels) if channel in read}

    @property
    def digest(self) -> str:
        """Hash of everything that decides a result except the image, the version of this package included."""
        models = {n: m.digest for n, m in self.models.items()}
        learned = {n: {part: known.as_dict() for part, known in parts.items()} for n, parts in self.learned.items()}
        known = [self.table.as_dict(), list(self.channels), models, learned, dict(self.steps)]
        content = [__version__, self.recipe.digest, *known]
        return hashlib.sha256(repr(content).encode()).hexdigest()

    @classmethod
    def load(
        cls,
        recipe: Recipe,
        folds: Sequence[int] | None = None,
        device: str | None = None,
        table: FusionTable | None = None,
        organs: Collection[str] | None = None,
    ) -> Composed:
        """Load the models that own an organ or locate a region for one.

        Args:
            recipe: A trained recipe.
            folds: Folds whose networks are averaged; None is the page's choice.
            device: None is the recipe's.
            table: Owners of the organs; None is the table that ``nnunet-ext select`` wrote.
            organs: Organs to contour; None is all of the recipe.

        Raises:
            InputError: the recipe was not trained, it has no such organ, or a model cannot be loaded or was trained on
                another region than the recipe's.
        """
        places = Places.of(recipe)
        if table is None and not places.fusion_table.exists():
            raise InputError(
                f"{places.fusion_table} is missing; run `nnunet-ext train` for recipe {recipe.name} first."
            )
        table = table or FusionTable.load(places.fusion_table)
        if organs is not None:
            table = table.only(organs)
        names = needed_models(recipe, table.owners)
        averaged = {n: folds or recipe.models[n].folds or recipe.folds for n in names}
        models = {n: load_model(places.model_folder(n), averaged[n], device or recipe.device) for n in names}
        described = {n: read_json(places.model_folder(n) / "dataset.json") for n in names}
        notes = {n: content.get("nnunet_ext", {}) for n, content in described.items()}
        learned = {}
        for name in names:
            region, folder = recipe.models[name].region, places.model_folder(name)
            if region is not None:
                check_trained_on(folder, described[name], region)
                learned[name] = _learned(notes[name], folder)
        channels = _dataset_channels(recipe, table, models)
        steps = _common_steps(notes, {n: model.channels for n, model in models.items()})
        extents = {n: Extent.of(note) for n, note in notes.items()}
        return cls(recipe, table, channels, models, learned, steps, extents)

    def only_needed(self, image: Any) -> Any:
        """The channels of ``needed`` from a list or an array of all ``channels`` in order; anything else as it is."""
        numbers = list(self.needed.values())
        if isinstance(image, np.ndarray):
            return image[numbers] if image.ndim == 4 and len(image) == len(self.channels) else image
        if isinstance(image, str | Path | Mapping) or len(image) != len(self.channels):
            return image
        return [image[number] for number in numbers]

    def predict(
        self, images: NDArray[np.float32], grid: Grid, say: Callable[[str], None] | None = None
    ) -> tuple[Labels, dict[str, Any]]:
        """Contour one image.

        Args:
            images: The channels of ``needed``, in its order.
            grid: Of all of them.
            say: Receives the progress of slow preprocessing, such as ``T1w: n4 35 %``.

        Shape:
            images: (C, Z, Y, X) in any orientation that ``grid`` declares.
            returns: (Z, Y, X) label map on the same grid in the recipe's numbers, and the report.
        """
        lps_grid = to_lps(images[0], grid)[1]
        named = {
            name: to_lps(image, grid)[0].astype(np.float32, copy=False)
            for name, image in zip(self.needed, images, strict=True)
        }
        meter = Meter()
        notes: list[str] = []
        steps = {channel: names for channel, names in self.steps.items() if channel in named}
        if steps:
            with meter.stage("preprocessing"):
                named, notes = apply_steps(named, lps_grid, steps, say=say)
        whole = [model for name, model in self.models.items() if self.recipe.models[name].region is None]
        shared = PreprocessedCache(model.preprocessing(lps_grid.spacing_mm) for model in whole)
        run = _Run(self, named, lps_grid, shared)
        for name in self.models:
            with meter.stage(name):
                run.add(name)
        with meter.stage("fusion"):
            fused = fuse_labels({name: run.maps[name] for name in self.table.owners}, self.table)
        sides = check_laterality(fused.labels, lps_grid, swap_pairs(dict(self.table.organs)))
        missing = [organ for organ, number in self.table.organs.items() if not (fused.labels == number).any()]
        report = {
            "organs": list(self.table.organs),
            "owner": dict(self.table.owner),
            "regions": run.regions,
            "laterality": [asdict(side) for side in sides],
            "contested_voxels": fused.contested,
            "missing_organs": missing,
            "volumes_ml": {
                o: round(int((fused.labels == n).sum()) * grid.voxel_ml, 3) for o, n in self.table.organs.items()
            },
            "warnings": [*(f"{o} was not found" for o in missing), *run.warnings(sides)],
            "preprocessing": notes,
            "stages": meter.stages,
        }
        return from_lps(fused.labels, grid), report


@dataclass
class _Run:
    """One image on its way through the models."""

    composed: Composed
    images: Mapping[str, NDArray[np.float32]]
    grid: Grid
    shared: PreprocessedCache
    maps: dict[str, Labels] = field(default_factory=dict)
    regions: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, name: str) -> None:
        """Predict with one model, in its region if it has one."""
        region = self.composed.recipe.models[name].region
        self.maps[name] = self._whole(name) if region is None else self._region(name, region)

    def _channels(self, name: str) -> dict[str, NDArray[np.float32]]:
        return {c: self.images[c] for c in self.composed.models[name].channels or self.composed.channels}

    def _whole(self, name: str) -> Labels:
        channels = list(self._channels(name).values())
        images = np.stack(channels) if len(channels) > 1 else channels[0][None]  # one channel needs no copy
        return self.composed.models[name].predict(images, self.grid.spacing_mm, self.shared)

    def _region(self, name: str, region: Region) -> Labels:
        model = self.composed.models[name]
        prediction = RegionalPrediction(
            region=region,
            learned=self.composed.learned.get(name, {}),
            images=self._channels(name),
            anatomy=self.images.get(self.composed.channels[0]),
            grid=self.grid,
            locators=[self._seen(locator) for locator in locators_of(self.composed.recipe.models[name])],
            predict=lambda parts: model.predict(parts, self.grid.spacing_mm),
        )
        labels = prediction.run()
        self.regions |= {name if part == WHOLE else f"{name} {part}": e for part, e in prediction.report.items()}
        return labels

    def _seen(self, name: str) -> LocatorMap:
        region = self.composed.recipe.models[name].region
        numbers = self.composed.models[name].labels if region is None else frame_labels(region)
        return LocatorMap(name, self.maps[name], numbers, whole_image=region is None)

    def warnings(self, sides: Iterable[Any]) -> list[str]:
        """What a reader of the contours must know."""
        names = {number: organ for organ, number in self.composed.table.organs.items()}
        lines = [f"{names[s.left]} and {names[s.right]} lie on each other's side" for s in sides if not s.plausible]
        lines += oblique_warnings(self.grid)
        for name, region in self.regions.items():
            lines += region_warnings(name, region)
        for name, model in self.composed.models.items():
            lines += spacing_warnings(name, self.grid, model.predictor.plans_manager.plans)
        return lines + self._extent_warnings()

    def _extent_warnings(self) -> list[str]:
        """Once for each way to crop or resample; whole-image models first, for their plans know the usual extent."""
        models, specs = self.composed.models, self.composed.recipe.models
        lines: dict[Extent, list[str]] = {}
        for name in sorted(self.composed.extents, key=lambda name: specs[name].region is not None):
            whole = specs[name].region is None
            usual_mm = usual_extent_mm(models[name].predictor.plans_manager.plans) if whole else None
            extent = self.composed.extents[name]
            if extent not in lines:
                lines[extent] = list(extent.warnings(name, self.grid, usual_mm))
        return [line for found in lines.values() for line in found]


def needed_models(recipe: Recipe, owners: Iterable[str]) -> list[str]:
    """Models to run for some owners, with those that locate their regions, in running order."""
    needed = set(owners)
    while True:
        more = {locator for name in needed for locator in locators_of(recipe.models[name])} - needed
        if not more:
            return [name for name in recipe.in_order() if name in needed]
        needed |= more


def _learned(note: Mapping[str, Any], folder: Path) -> dict[str, Learned]:
    """What the training cases of a region taught, per part.

    Raises:
        InputError: the region was cut by a version that did not note it.
    """
    if "learned" not in note:
        raise InputError(
            f"{folder} was trained on regions of an older version, which say nothing of the organ's usual place; "
            "delete it and its dataset, and run `nnunet-ext train` again."
        )
    return {part: Learned.from_dict(known) for part, known in note["learned"].items()}


def _dataset_channels(recipe: Recipe, table: FusionTable, models: Mapping[str, LoadedModel]) -> Sequence[str]:
    """Channel names of the recipe's dataset, in the order of its files.

    A table of an older version does not list them; then a whole-image model that was trained on the dataset itself
    says them, for it reads all of its channels.

    Raises:
        InputError: nothing says them, or a model reads a channel that the dataset does not have.
    """
    on_it = [n for n in models if recipe.models[n].region is None and recipe.models[n].dataset == recipe.dataset]
    channels = list(table.channels or (models[on_it[0]].channels if on_it else ()))
    if not channels:
        raise InputError(
            f"fusion.json of recipe {recipe.name} is of an older version and does not say which file holds which "
            "channel; run `nnunet-ext train` for it again (it only selects)."
        )
    for name, model in models.items():
        strange = [channel for channel in model.channels if channel not in channels]
        if strange or len(set(model.channels)) < len(model.channels):
            raise InputError(
                f"model {name} reads {', '.join(model.channels)}, the dataset of recipe {recipe.name} has "
                f"{', '.join(channels)}; every channel needs a name of its own there: convert and train anew."
            )
    return channels


def _common_steps(
    notes: Mapping[str, Mapping[str, Any]], reads: Mapping[str, Sequence[str]]
) -> dict[str, Sequence[str]]:
    """The preprocessing of the training images, which new images get as well.

    Args:
        notes: Model to the block ``nnunet_ext`` of its dataset.json; a channel that it does not list had no steps.
        reads: Model to the channels that it reads.

    Raises:
        InputError: two models were trained on differently prepared images.
    """
    steps: dict[str, Sequence[str]] = {}
    for name, note in notes.items():
        own = dict(note.get("preprocessing") or {})
        for channel in dict.fromkeys([*reads[name], *own]):
            wanted = own.get(channel, [])
            if steps.setdefault(channel, wanted) != wanted:
                raise InputError(
                    f"model {name} was trained on {channel} after {', '.join(wanted) or 'nothing'}, another model "
                    f"after {', '.join(steps[channel]) or 'nothing'}; train them on the same dataset."
                )
    return {channel: wanted for channel, wanted in steps.items() if wanted}
