"""What is known of every training case before its regions are cut: truth, body, and what held-out models found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_ext.errors import InputError
from nnunet_ext.geometry import Grid, grid_difference
from nnunet_ext.io.atomic import read_json
from nnunet_ext.io.nifti import read_labels
from nnunet_ext.io.orientation import to_lps
from nnunet_ext.roi.centre import Centre, Found, body_box, centre_of, find, find_all
from nnunet_ext.roi.chain import rung_name
from nnunet_ext.roi.learned import Learned, Outline, learned_from
from nnunet_ext.roi.prior import Seen, fit_prior
from nnunet_ext.roi.provenance import HeldOut, label_numbers
from nnunet_ext.roi.region import TRUTH, Region
from nnunet_ext.roi.sides import Part


@dataclass(frozen=True)
class Locator:
    """A trained model that may find the centre of a region.

    Args:
        name: How recipes and reports call it.
        folder: Trained model.
        splits: Its folds.
        validation: Folder inside a fold's with held-out predictions on whole images.
        labels: Organ to label number in those predictions; None is what the model's dataset.json says.
        origins: Name in its own dataset to the case that it was cut from, for models of regions.
    """

    name: str
    folder: Path
    splits: Sequence[Mapping[str, Sequence[str]]]
    validation: str = "validation"
    labels: Mapping[str, int] | None = None
    origins: Mapping[str, str] | None = None

    def numbers(self) -> Mapping[str, int]:
        """Organ name to label number of its predictions."""
        return self.labels or label_numbers(read_json(self.folder / "dataset.json"))


@dataclass(frozen=True)
class Survey:
    """One training case.

    Args:
        grid: Its grid.
        body: First and one-past-last voxel of the body.
        truth: Part to the true organ; None where it is missing.
        found: Part to rung to the places that the held-out model found.
        landmarks: Organ to its true centre, for organs that some locator knows.
        seen_landmarks: Organ to its centre as the first locator that found it sees it.
        models: Rung to model, fold and hash of the weights.
    """

    grid: Grid
    body: tuple[Centre, Centre]
    truth: Mapping[str, Found | None]
    found: Mapping[str, Mapping[str, Sequence[Found]]]
    landmarks: Mapping[str, Centre]
    seen_landmarks: Mapping[str, Centre]
    models: Mapping[str, Mapping[str, Any]]

    def others(self, part: Part, seen: bool) -> dict[str, Centre]:
        """Landmarks of a part: every organ but its own, true or as the models see them."""
        return {o: c for o, c in (self.seen_landmarks if seen else self.landmarks).items() if o not in part.organs}


def survey_case(
    image: NDArray[np.float32],
    truth: NDArray[np.uint16],
    grid: Grid,
    parts: Sequence[Part],
    labels: Mapping[str, int],
    predictions: Mapping[str, HeldOut],
    locators: Sequence[Locator],
) -> Survey:
    """Look at one case.

    Args:
        image: First channel, canonical frame.
        truth: Label map, canonical frame.
        grid: Of both.
        parts: The boxes that will be cut.
        labels: Organ to label number in the truth.
        predictions: Locator's name to its held-out prediction of this case.
        locators: In the order to ask.

    Raises:
        InputError: a prediction lies on another grid than the image.
    """
    maps = [(loc.name, loc.numbers(), _read_on(predictions[loc.name].path, grid)) for loc in locators]
    found = {part.name: _found(maps, part, grid) for part in parts}
    known = {organ for _, numbers, _ in maps for organ in numbers if organ in labels}
    return Survey(
        grid=grid,
        body=body_box(image),
        truth={part.name: find(truth, [labels[o] for o in part.organs], grid.spacing_mm) for part in parts},
        found=found,
        landmarks=_centres(truth, {organ: labels[organ] for organ in known}, grid),
        seen_landmarks={o: c for _, numbers, map_ in reversed(maps) for o, c in _centres(map_, numbers, grid).items()},
        models={
            rung_name(i, loc.name): {"model": loc.name, "fold": predictions[loc.name].fold,
                                     "checkpoint_sha256": predictions[loc.name].checkpoint_sha256}
            for i, loc in enumerate(locators)
        },
    )  # fmt: skip


def learn(surveys: Sequence[Survey], part: Part, region: Region) -> Learned | None:
    """What some training cases teach about a part; None where none of them has its organs."""
    landmarks = sorted({organ for survey in surveys for organ in survey.others(part, seen=True)})
    seen = [_seen(survey, part) for survey in surveys]
    prior = fit_prior(seen, landmarks)
    if prior is None:
        return None
    outlines = [
        Outline(truth, _first(survey.found[part.name]), survey.grid.spacing_mm)
        for survey in surveys
        if (truth := survey.truth[part.name]) is not None
    ]
    fixed = region.margin_mm if isinstance(region.margin_mm, tuple) else None
    return learned_from(prior, outlines, (0.0, 0.0, 0.0) if region.source == TRUTH and fixed is None else fixed)


def _seen(survey: Survey, part: Part) -> Seen:
    truth = survey.truth[part.name]
    centre = None if truth is None else truth.centre
    return Seen(centre, survey.others(part, seen=False), survey.body, survey.grid.spacing_mm)


def _first(found: Mapping[str, Sequence[Found]]) -> Found | None:
    return next((places[0] for places in found.values() if places), None)


def _found(
    maps: Sequence[tuple[str, Mapping[str, int], NDArray[np.uint16]]], part: Part, grid: Grid
) -> dict[str, list[Found]]:
    return {
        rung_name(i, name): find_all(labels, [numbers[o] for o in part.organs if o in numbers], grid.spacing_mm)
        for i, (name, numbers, labels) in enumerate(maps)
    }


def _centres(labels: NDArray[np.integer], numbers: Mapping[str, int], grid: Grid) -> dict[str, Centre]:
    centres = {organ: centre_of(labels, [number], grid.spacing_mm) for organ, number in numbers.items()}
    return {organ: centre for organ, centre in centres.items() if centre is not None}


def _read_on(path: Path, grid: Grid) -> NDArray[np.uint16]:
    labels, other = to_lps(*read_labels(path))
    difference = grid_difference(grid, other)
    if difference:
        raise InputError(f"{path} lies on another grid than its image: {difference}.")
    return labels
