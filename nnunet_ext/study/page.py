"""The declaration of a study: one dataset, noise added on purpose, several methods, several seeds, one table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from nnunet_ext.conversion.noise import Noise
from nnunet_ext.errors import InputError
from nnunet_ext.preprocessing.label_noise import Unit
from nnunet_ext.recipe.schema import Planning, Recipe, check_settings, faults_of, kind_of, page_text, read_page

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9-]*$")]


class Level(BaseModel):
    """How far contours are moved; exactly one of the two.

    Args:
        voxels: Smallest and largest displacement in whole voxels.
        mm: The same in mm.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    voxels: tuple[int, int] | None = None
    mm: tuple[float, float] | None = None

    @model_validator(mode="after")
    def _one_unit(self) -> Level:
        if (self.voxels is None) == (self.mm is None):
            raise ValueError("give voxels: [LOW, HIGH] or mm: [LOW, HIGH]")
        _noise(self, 1.0, 0, in_plane=False)
        return self

    @property
    def unit(self) -> Unit:
        """Unit of the displacement."""
        return "voxels" if self.mm is None else "mm"

    @property
    def range(self) -> tuple[float, float]:
        """Smallest and largest displacement."""
        return self.voxels or self.mm or (0.0, 0.0)

    def __str__(self) -> str:
        low, high = self.range
        return f"{low:g}-{high:g} {self.unit}"


class Method(BaseModel):
    """One way to train on noisy contours.

    Args:
        trainer: Trainer flag.
        settings: Training settings beyond those of the study.
        cases: "clean" trains on the cases without noise only: what one could reach by knowing them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    trainer: str = "nnUNetTrainerExtNoMirror"
    settings: dict[str, Any] = Field(default_factory=dict)
    cases: Literal["all", "clean"] = "all"

    @field_validator("settings")
    @classmethod
    def _known_settings(cls, settings: dict[str, Any]) -> dict[str, Any]:
        return check_settings(settings)


class Row(BaseModel):
    """One line of the table, but for the method: a level of noise and the share of noisy cases.

    Args:
        level: None is no noise.
        ratio: Share of noisy training cases.
    """

    model_config = ConfigDict(frozen=True)

    level: Level | None = None
    ratio: float = 0.0

    @property
    def folder(self) -> str:
        """For names of datasets, such as ``voxels5-13_50``."""
        if self.level is None:
            return "clean"
        low, high = self.level.range
        return f"{self.level.unit}{low:g}-{high:g}_{100 * self.ratio:g}".replace(".", "p")


class Study(BaseModel):
    """An experiment: every row of noise × every method × every seed.

    Args:
        name: Identifier; everything is kept under ``nnUNet_results/studies/<name>``.
        title: One sentence.
        source: Paper and deviations from it.
        dataset: Number of the clean dataset.
        held_out: "test" (imagesTs and labelsTs of the dataset), or a fold, whose validation cases are then the test
            cases. Noise never touches them, and they are judged by their true contours.
        configuration: "2d", "3d_fullres", ...
        planning: How to plan, once, on the clean dataset; all rows and methods share the plans.
        settings: Training settings of all methods.
        device: "cuda", "cpu" or "mps".
        levels: How far contours are moved.
        ratios: Shares of noisy training cases, above 0.
        in_plane: Move contours within axial slices only.
        without_noise: Also train every method on the clean dataset.
        seeds: A seed draws the noise and starts the training.
        methods: Name to method.
        structures: Name in the table to the organs that it joins; empty is every organ by itself.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[A-Za-z0-9_\-]+$")
    title: str
    source: str = ""
    dataset: int = Field(ge=1, le=999)
    held_out: Literal["test"] | Annotated[int, Field(ge=0)]
    configuration: str
    planning: Planning = Field(default_factory=Planning)
    settings: dict[str, Any] = Field(default_factory=dict)
    device: Literal["cuda", "cpu", "mps"] = "cuda"
    levels: tuple[Level, ...] = ()
    ratios: tuple[Annotated[float, Field(gt=0, le=1)], ...] = ()
    in_plane: bool = False
    without_noise: bool = True
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**31)], ...] = Field(min_length=1)
    methods: dict[Name, Method] = Field(min_length=1)
    structures: dict[str, Annotated[tuple[str, ...], Field(min_length=1)]] = Field(default_factory=dict)

    @field_validator("settings")
    @classmethod
    def _known_settings(cls, settings: dict[str, Any]) -> dict[str, Any]:
        return check_settings(settings)

    @model_validator(mode="after")
    def _consistent(self) -> Study:
        for what, values in (("seed", self.seeds), ("ratio", self.ratios), ("level", self.levels)):
            if len(set(values)) < len(values):
                raise ValueError(f"{what}s list one {what} twice")
        if bool(self.levels) != bool(self.ratios):
            raise ValueError("levels and ratios belong together; one of them is empty")
        if not self.rows:
            raise ValueError("there is nothing to train: no levels, and without_noise is false")
        for name, method in self.methods.items():
            if {"seed", "early_stop"} & {*method.settings, *self.settings}:
                raise ValueError(f"method {name}: a study sets seed itself, and early_stop would look at test cases")
        return self

    @property
    def rows(self) -> list[Row]:
        """Lines of the table, the clean one first."""
        noisy = [Row(level=level, ratio=ratio) for level in self.levels for ratio in self.ratios]
        return [Row()] * self.without_noise + noisy

    def methods_of(self, row: Row) -> list[str]:
        """Methods that say something in a row: without noise all cases are clean."""
        return [name for name, method in self.methods.items() if row.level is not None or method.cases == "all"]

    def noise(self, row: Row, seed: int) -> Noise | None:
        """The noise of a row; None without."""
        return None if row.level is None else _noise(row.level, row.ratio, seed, in_plane=self.in_plane)

    @classmethod
    def load(cls, where: str | Path) -> Study:
        """A study from a YAML file, or a published one by its name.

        Raises:
            InputError: no such study, no YAML, or content that does not fit; every fault is named.
        """
        path, content = read_page(where, "study")
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise InputError(faults_of(error, path)) from error


def load_page(where: str | Path) -> Recipe | Study:
    """What ``nnunet-ext train`` can do: a recipe, or a study.

    Raises:
        InputError: neither, or a page with faults.
    """
    _, text = page_text(where, ["recipe", "study"])
    return Study.load(where) if kind_of(text) == "study" else Recipe.load(where)


def _noise(level: Level, ratio: float, seed: int, *, in_plane: bool) -> Noise:
    low, high = level.range
    try:
        return Noise(ratio, low, high, level.unit, seed, in_plane)
    except InputError as error:  # for pydantic
        raise ValueError(str(error)) from error
