"""Where a recipe's things lie: nnU-Net's own folders, and one folder of ours for what the models decide together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_ext.errors import InputError
from nnunet_ext.io.atomic import read_json
from nnunet_ext.io.numbered import Split, splits_in_use
from nnunet_ext.locations import nnunet_folder
from nnunet_ext.recipe.schema import Recipe
from nnunet_ext.roi.dataset import SIDECAR


@dataclass(frozen=True)
class Places:
    """Folders of a recipe under nnU-Net's three roots.

    Args:
        recipe: The recipe.
        raw: nnUNet_raw.
        preprocessed: nnUNet_preprocessed.
        results: nnUNet_results.
    """

    recipe: Recipe
    raw: Path
    preprocessed: Path
    results: Path

    @classmethod
    def of(cls, recipe: Recipe) -> Places:
        """The folders named by the environment."""
        return cls(recipe, *(nnunet_folder(n) for n in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")))

    @property
    def summary(self) -> Path:
        """Folder for fusion table, cross-validation and logs of the recipe."""
        return self.results / "recipes" / self.recipe.name

    @property
    def fusion_table(self) -> Path:
        """The fusion table."""
        return self.summary / "fusion.json"

    def dataset_name(self, number: int) -> str:
        """Folder name of a dataset.

        Raises:
            InputError: no dataset has this number, or several have.
        """
        roots = (self.raw, self.preprocessed, self.results)
        found = sorted({p.name for root in roots for p in root.glob(f"Dataset{number:03d}_*")})
        if len(found) != 1:
            what = f"{len(found)} datasets have" if found else "no dataset has"
            raise InputError(
                f"{what} the number {number} in {self.raw}{' (' + ', '.join(found) + ')' if found else ''}; "
                f"`nnunet-ext convert SOURCE FOLDER -d {number}` writes one."
            )
        return found[0]

    def region_name(self, model: str) -> str:
        """Folder name of the dataset derived for a region model."""
        return f"Dataset{self.recipe.models[model].dataset:03d}_{self.recipe.name}_{model}"

    def dataset_of(self, model: str) -> str:
        """Folder name of a model's dataset."""
        spec = self.recipe.models[model]
        return self.region_name(model) if spec.region is not None else self.dataset_name(spec.dataset)

    def model_folder(self, model: str) -> Path:
        """Results folder of a model."""
        return self.results / self.dataset_of(model) / self.recipe.models[model].folder_name

    def fold_folder(self, model: str, fold: int) -> Path:
        """Results folder of one fold."""
        return self.model_folder(model) / f"fold_{fold}"

    def splits(self, dataset: str) -> list[Split]:
        """Folds of a dataset: the ones in use, else the raw folder's.

        Raises:
            InputError: neither exists.
        """
        splits = splits_in_use(dataset, (self.preprocessed, self.raw))
        if splits is None:
            raise InputError(f"{self.raw / dataset} has no splits_final.json; convert the dataset with nnunet-ext.")
        return splits

    def truth_folder(self) -> Path:
        """Label maps of the recipe's dataset."""
        name = self.dataset_name(self.recipe.dataset)
        raw = self.raw / name / "labelsTr"
        return raw if raw.is_dir() else self.preprocessed / name / "gt_segmentations"

    def dataset_json(self, dataset: str) -> dict[str, Any]:
        """Content of ``dataset_file``."""
        return dict(read_json(self.dataset_file(dataset)))

    def dataset_file(self, dataset: str) -> Path:
        """dataset.json of a dataset: the raw one, else the copy that planning made.

        Raises:
            InputError: there is none.
        """
        for root in (self.raw, self.preprocessed):
            if (path := root / dataset / "dataset.json").exists():
                return path
        raise InputError(f"{self.raw / dataset} has no dataset.json; its conversion was not finished, run it again.")

    def sidecar(self, model: str) -> Mapping[str, Any]:
        """regions.json of a region model's dataset.

        Raises:
            InputError: it is missing; neither selection nor prediction can place the region without it.
        """
        path = self.raw / self.region_name(model) / SIDECAR
        if not path.exists():
            raise InputError(f"{path} is missing; `nnunet-ext train` cuts the regions of model {model}.")
        content: Mapping[str, Any] = read_json(path)
        return content

    def full_frame(self, model: str, fold: int) -> Path:
        """Folder with a fold's validation predictions on whole images."""
        folder = self.fold_folder(model, fold)
        return folder / ("validation" if self.recipe.models[model].region is None else "validation_whole_image")

    def validation_cases(self, fold: int) -> Sequence[str]:
        """Held-out cases of a fold of the recipe's dataset."""
        splits = self.splits(self.dataset_name(self.recipe.dataset))
        if fold >= len(splits):
            raise InputError(f"fold {fold} of recipe {self.recipe.name} does not exist, the dataset has {len(splits)}.")
        return splits[fold]["val"]
