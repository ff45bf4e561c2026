"""The declaration of a composed model, validated: everything else in this room reads it from here."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Sequence
from importlib import resources
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from nnunet_ext.errors import InputError
from nnunet_ext.planning.names import NETWORKS
from nnunet_ext.planning.published import published as published_preset
from nnunet_ext.roi.region import NO_MODEL, TRUTH, Region
from nnunet_ext.settings import TrainerSettings, resolve_settings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from nnunet_ext.geometry import Grid
    from nnunet_ext.recipe.composed import Labels
    from nnunet_ext.recipe.predict import Files

PUBLISHED = "nnunet_ext.recipe.published"
Kind = Literal["recipe", "study"]


class Planning(BaseModel):
    """How the dataset of a model is planned.

    Args:
        preset: "default" (nnU-Net's planner for ``gpu_gb``), "cpu", or "published": what the paper of the network says,
            its training settings included.
        network: "plain" (nnU-Net's own), or one of ours: key of ``planning.names.NETWORKS``.
        axial: Keep the head-foot axis first, so that 2D reads axial slices.
        gpu_gb: GPU memory to plan for; None is nnU-Net's 8 GB.
        spacing_mm: Voxel size (Z, Y, X) that a 3D model works on; None is nnU-Net's choice. Coarse voxels make a cheap
            localiser.
        patch_size: Replaces the planned patch; strides are planned anew for it.
        base_features: Replaces the features of the first stage.
        max_features: Most features of any stage.
        resampling: False keeps every image on its own grid.
        normalization: Replaces nnU-Net's choice for all channels, such as "ZScoreNormalization".
        window_hu: Lowest and highest value that the CT channel keeps, mapped to −1 and 1; for all configurations of
            these plans.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    preset: Literal["default", "cpu", "published"] = "default"
    network: str = "plain"
    axial: bool = True
    gpu_gb: float | None = Field(None, gt=0)
    spacing_mm: tuple[float, float, float] | None = None
    patch_size: tuple[int, ...] | None = None
    base_features: int | None = Field(None, gt=0)
    max_features: int | None = Field(None, gt=0)
    resampling: bool = True
    normalization: str | None = None
    window_hu: tuple[float, float] | None = None

    @model_validator(mode="after")
    def _memory_is_read(self) -> Planning:
        if self.preset == "cpu" and self.gpu_gb is not None:
            raise ValueError("gpu_gb has no meaning with preset cpu; remove one of the two")
        return self

    @field_validator("network")
    @classmethod
    def _known_network(cls, network: str) -> str:
        if network not in NETWORKS:
            raise ValueError(f"there is no network {network}; known are {', '.join(NETWORKS)}")
        return network

    @model_validator(mode="after")
    def _paper_exists(self) -> Planning:
        if self.preset == "published":
            try:
                published_preset(self.network)
            except InputError as error:
                raise ValueError(str(error).rstrip(".")) from error
        return self


class Model(BaseModel):
    """One nnU-Net model of a recipe.

    Args:
        dataset: Number of its dataset; a region's dataset is derived under this number.
        configuration: "2d", "3d_fullres", ...
        trainer: Trainer flag.
        plans: Name of the plans.
        planning: How to plan.
        region: None for whole images.
        channels: Channels that it reads, by the names in dataset.json; None is all. A region's dataset is cut with
            these, the dataset of a whole-image model must have exactly these.
        folds: Folds whose networks are averaged at prediction; None is all that the recipe trains.
        settings: Training settings (``settings.TrainerSettings``), written into the plans.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset: int = Field(ge=1, le=999)
    configuration: str
    trainer: str = "nnUNetTrainerExtNoMirror"
    plans: str = "nnUNetPlansExt"
    planning: Planning = Field(default_factory=Planning)
    region: Region | None = None
    channels: tuple[str, ...] | None = Field(None, min_length=1)
    folds: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(None, min_length=1)
    settings: dict[str, Any] = Field(default_factory=dict)

    @field_validator("settings")
    @classmethod
    def _known_settings(cls, settings: dict[str, Any]) -> dict[str, Any]:
        return check_settings(settings)

    @property
    def folder_name(self) -> str:
        """nnU-Net's name for the results folder of this model."""
        return f"{self.trainer}__{self.plans}__{self.configuration}"


class Fusion(BaseModel):
    """Which model owns which organ.

    Args:
        owners: "select" chooses by cross-validation; a mapping organ → model fixes the choice.
        first: Organs that win every conflict, before the rule "smaller organ first".
        on_conflict: "priority" is the only rule of a recipe; ``nnunet-ext fuse`` also knows "probability".
        min_gain: Smallest mean gain in DSC for which an organ leaves the best single model.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    owners: Literal["select"] | dict[str, str] = "select"
    first: tuple[str, ...] = ()
    on_conflict: Literal["priority"] = "priority"
    min_gain: float = 0.005


class Recipe(BaseModel):
    """A composed model.

    Args:
        name: Identifier; results are kept under it.
        title: One sentence.
        source: Paper and deviations from it.
        dataset: Dataset with the truth, the folds and the organs.
        organs: Organs to contour, in the order of their final label numbers 1, 2, ...
        folds: Folds to train.
        device: "cuda", "cpu" or "mps".
        models: Name to model.
        fusion: Who owns what.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[A-Za-z0-9_\-]+$")
    title: str
    source: str = ""
    dataset: int
    organs: tuple[str, ...] = Field(min_length=1)
    folds: tuple[Annotated[int, Field(ge=0)], ...] = Field((0, 1, 2, 3, 4), min_length=1)
    device: Literal["cuda", "cpu", "mps"] = "cuda"
    models: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_\-]+$")], Model] = Field(min_length=1)
    fusion: Fusion = Fusion()

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        for what, values in (("organ", self.organs), ("fold", self.folds)):
            if len(set(values)) < len(values):
                raise ValueError(f"{what}s {', '.join(map(str, values))} list one {what} twice")
        for name, model in self.models.items():
            _check_region(self, name, model)
            if model.folds and not set(model.folds) <= set(self.folds):
                raise ValueError(f"model {name}: folds {model.folds} are not all trained, only {self.folds} are")
        for (first, one), (second, other) in combinations(self.models.items(), 2):
            _check_apart(first, one, second, other)
        try:
            self.in_order()
        except InputError as error:
            raise ValueError(str(error).rstrip(".")) from error
        unknown = [organ for organ in self.fusion.first if organ not in self.organs]
        if unknown:
            raise ValueError(f"fusion.first names {', '.join(unknown)}, which the recipe does not have")
        owners = self.fusion.owners if isinstance(self.fusion.owners, dict) else {}
        for organ, owner in owners.items():
            if organ not in self.organs or owner not in self.models:
                raise ValueError(f"owner {organ}: {owner} names an organ or a model that the recipe does not have")
            if organ not in self.organs_of(owner):
                raise ValueError(f"owner {organ}: {owner} has no {organ} in its region")
        if owners and set(owners) != set(self.organs):
            raise ValueError(f"no owner for {', '.join(sorted(set(self.organs) - set(owners)))}")
        return self

    def organs_of(self, model: str) -> tuple[str, ...]:
        """Organs that a model can give: its region's, or all."""
        region = self.models[model].region
        return self.organs if region is None else tuple(o for o in self.organs if o in region.organs)

    def in_order(self) -> list[str]:
        """Model names, every one after the models that locate its region.

        Raises:
            InputError: the models wait for each other in a circle.
        """
        done: list[str] = []
        while len(done) < len(self.models):
            ready = [n for n, m in self.models.items() if n not in done and set(locators_of(m)) <= set(done)]
            if not ready:
                raise InputError(f"recipe {self.name}: the models locate each other in a circle.")
            done += ready
        return done

    @property
    def digest(self) -> str:
        """Hash of the content, for manifests."""
        return hashlib.sha256(self.model_dump_json(by_alias=True).encode()).hexdigest()

    @classmethod
    def load(cls, where: str | Path) -> Recipe:
        """A recipe from a YAML file, or a published one by its name.

        Raises:
            InputError: no such recipe, no YAML, or content that does not fit; every fault is named.
        """
        path, content = read_page(where, "recipe")
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise InputError(faults_of(error, path)) from error

    def predict(
        self,
        image: Files | NDArray[np.floating],
        grid: Grid | None = None,
        *,
        folds: Sequence[int] | None = None,
        device: str | None = None,
        organs: Collection[str] | None = None,
    ) -> tuple[Labels, dict[str, Any]]:
        """Contour one image as ``nnunet-ext predict`` does.

        Loads the models anew each time: for many images, load ``Composed`` once and call ``predict_image`` for each.

        Args:
            image: One file, or one per channel, or an array of the channels; by name, or in the order of the recipe's
                dataset: all of its channels, of which those that no model reads are ignored, or the needed ones alone.
            grid: Of an array (Z, Y, X) or (C, Z, Y, X); a file has its own.
            folds: Folds whose networks are averaged; None is the page's choice.
            device: None is the recipe's.
            organs: Organs to contour; None is all of the recipe.

        Returns:
            Label map (Z, Y, X) on the grid of the image in the recipe's numbers, and the report.

        Raises:
            InputError: the recipe was not trained, a channel is missing, or an image cannot be trusted.
        """
        from nnunet_ext.recipe.composed import Composed  # torch and nnU-Net: seconds
        from nnunet_ext.recipe.predict import predict_image

        composed = Composed.load(self, folds, device, organs=organs)
        return predict_image(composed, composed.only_needed(image), grid)


def locators_of(model: Model) -> tuple[str, ...]:
    """Models that find the centre of this model's region."""
    if model.region is None or model.region.source in NO_MODEL:
        return ()
    return (model.region.source, *model.region.fallback)


def published(kind: Kind = "recipe") -> list[str]:
    """Names of the pages of a kind that come with the package."""
    pages = [p for p in resources.files(PUBLISHED).iterdir() if p.name.endswith(".yaml")]
    return sorted(p.name.removesuffix(".yaml") for p in pages if kind_of(p.read_text(encoding="utf-8")) == kind)


def kind_of(text: str) -> Kind:
    """A study compares methods, a recipe composes models."""
    return "study" if re.search(r"^methods:", text, flags=re.MULTILINE) else "recipe"


def page_text(where: str | Path, kinds: Sequence[Kind]) -> tuple[str, str]:
    """Name and text of a page: a YAML file, or a published one by its name.

    Raises:
        InputError: there is none of these kinds.
    """
    path = Path(where)
    names = ", ".join(name for kind in kinds for name in published(kind))
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise InputError(f"{path} does not exist; published {_plural(kinds)} are given by name: {names}.")
        try:
            return str(path), path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{path} is no text in UTF-8 ({error.reason}); save it as UTF-8.") from error
    if str(where) not in names.split(", "):
        raise InputError(f"no {kinds[0]} {where}; give a .yaml file or one of: {names}.")
    return str(where), (resources.files(PUBLISHED) / f"{where}.yaml").read_text(encoding="utf-8")


def read_page(where: str | Path, kind: Kind) -> tuple[str, Any]:
    """Name and content of a page.

    Raises:
        InputError: there is none of this kind, or it is no YAML.
    """
    path, text = page_text(where, [kind])
    try:
        return path, yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{path} is no valid YAML: {' '.join(str(error).split())}") from error


def faults_of(error: ValidationError, path: str) -> str:
    """Every fault of a page in one sentence."""
    faults = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'page'}: {e['msg']}" for e in error.errors())
    return f"{path}: {faults}."


def check_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Training settings that every trainer of ours would take; for pydantic.

    Raises:
        ValueError: unknown key or wrong type.
    """
    try:  # now, not when the model's turn comes after hours
        resolve_settings(TrainerSettings, settings, "settings")
    except InputError as error:
        raise ValueError(str(error)) from error
    return settings


def _plural(kinds: Sequence[Kind]) -> str:
    return " and ".join({"recipe": "recipes", "study": "studies"}[kind] for kind in kinds)


def _check_apart(first: str, one: Model, second: str, other: Model) -> None:
    """Refuse two models that would write into one folder, or into one place of a plans file."""
    if (one.dataset, one.plans, one.configuration) != (other.dataset, other.plans, other.configuration):
        return
    if one.trainer == other.trainer:
        raise ValueError(
            f"models {first} and {second} share dataset, trainer, plans and configuration, so also the folder "
            f"{one.folder_name}; give one of them other plans"
        )
    if (one.planning, one.settings) != (other.planning, other.settings):
        raise ValueError(
            f"models {first} and {second} share configuration {one.configuration} of plans {one.plans} and ask for "
            "other planning or settings; give one of them other plans"
        )


def _check_region(recipe: Recipe, name: str, model: Model) -> None:
    if model.region is None:
        return
    if model.region.source == TRUTH:
        raise ValueError(f'model {name}: "truth" cannot find a region in a new patient; name a model')
    unknown = [m for m in locators_of(model) if m not in recipe.models or m == name]
    if unknown:
        raise ValueError(f"model {name}: its region is located by {', '.join(unknown)}, which is no other model")
    if model.dataset in (recipe.dataset, *(m.dataset for n, m in recipe.models.items() if n != name)):
        raise ValueError(f"model {name}: the dataset of a region needs a number of its own, not {model.dataset}")
    missing = [organ for organ in model.region.organs if organ not in recipe.organs]
    if missing:
        raise ValueError(f"model {name}: region organs {', '.join(missing)} are not organs of the recipe")
