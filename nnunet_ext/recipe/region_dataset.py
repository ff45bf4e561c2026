"""The dataset of a region model: cut once, and refused when it no longer fits its page or its locator."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nnunet_ext.errors import InputError
from nnunet_ext.io.atomic import read_json
from nnunet_ext.recipe.places import Places
from nnunet_ext.recipe.schema import locators_of
from nnunet_ext.recipe.selection import model_labels, prepare_full_frame
from nnunet_ext.roi.dataset import derive_dataset, inherited_splits
from nnunet_ext.roi.provenance import ignore_number, sha256_of
from nnunet_ext.roi.raw_data import case_digests, changed_cases
from nnunet_ext.roi.region import CENTRE, Region
from nnunet_ext.roi.retention import cut_organs, retention_lines
from nnunet_ext.roi.survey import Locator


def cut_regions(places: Places, name: str, say: Callable[[str], None]) -> None:
    """The region dataset of a model, unless it is there and fits."""
    model, target = places.recipe.models[name], places.raw / places.region_name(name)
    region = model.region
    if region is None:
        return
    if (target / "dataset.json").exists():
        _check_derived(places, name, region, target)
        _check_source(places, name, target, say)
        return
    say(f"cutting the regions of model {name}: {', '.join(region.organs)}")
    source = places.dataset_name(places.recipe.dataset)
    locators = [_locator(places, m) for m in locators_of(model)]
    sidecar = derive_dataset(
        places.raw / source, target, region, places.splits(source), locators, channels=model.channels
    )
    for line in [*sidecar["warnings"], *retention_lines(sidecar)]:
        say(line)
    _check_retention(target, region, sidecar)


def _check_derived(places: Places, name: str, region: Region, target: Path) -> None:
    """Refuse regions that were cut for another page, with other weights, or that cut organs off."""
    written = read_json(target / "dataset.json")
    channels = list(written["channel_names"].values())
    wanted = list(places.recipe.models[name].channels or channels)
    asked = json.loads(region.model_dump_json(by_alias=True))
    if channels != wanted or _what_was_cut(written["nnunet_ext"]["region"]) != _what_was_cut(asked):
        raise InputError(f"{target} was cut for another region than recipe {places.recipe.name} asks for; delete it.")
    sidecar, hashes = places.sidecar(name), dict[Path, str]()
    for case, entry in sidecar["cases"].items():
        if not entry["locator"]:
            continue
        model, fold = entry["locator"]["model"], entry["locator"]["fold"]
        weights = places.fold_folder(model, fold) / "checkpoint_final.pth"
        if weights not in hashes:
            hashes[weights] = sha256_of(weights)
        if entry["locator"]["checkpoint_sha256"] != hashes[weights]:
            raise InputError(
                f"{target}: the region of {case} was located by other weights than {weights} holds now; delete it."
            )
    _check_retention(target, region, sidecar)


def _check_source(places: Places, name: str, target: Path, say: Callable[[str], None]) -> None:
    """Refuse regions that were cut from other images or contours, or for other folds, than their source has now."""
    source, sidecar = places.dataset_name(places.recipe.dataset), places.sidecar(name)
    if "made_from" not in sidecar:
        say(f"{target} does not say which contours it was cut from; delete it if those of {source} changed since")
    elif changed := changed_cases(sidecar["made_from"], case_digests(places.raw / source)):
        raise InputError(
            f"{target} was cut from other images or contours of {changed} than {source} has now; delete it."
        )
    wanted, there = ignore_number(places.dataset_json(source)), ignore_number(places.dataset_json(target.name))
    if (wanted is None) != (there is None):
        raise InputError(f"{target} was cut without the ignore label of {source}, or with one that is gone; delete it.")
    if inherited_splits(places.splits(source), sidecar["cases"]) != places.splits(target.name):
        raise InputError(f"{target} was cut for other folds than {source} has now; delete it.")


def _what_was_cut(region: Mapping[str, Any]) -> dict[str, Any]:
    """A region without what matters only before training or at prediction."""
    return {key: value for key, value in region.items() if key not in ("min_retention", "grow_at_most")}


def _check_retention(target: Path, region: Region, sidecar: Mapping[str, Any]) -> None:
    cut = cut_organs(sidecar, region.min_retention)
    if cut and region.source != CENTRE:  # the middle of the image is cut off on purpose
        raise InputError(f"{'; '.join(cut)}. Enlarge the region and delete {target}, or lower min_retention.")


def _locator(places: Places, name: str) -> Locator:
    """A trained model whose held-out predictions lie on whole images; a region model's are pasted there first."""
    folders = {prepare_full_frame(places, name, fold).name for fold in places.recipe.folds}
    origins = None
    if places.recipe.models[name].region is not None:
        origins = {cut: entry["case"] for cut, entry in places.sidecar(name)["cases"].items()}
    splits = places.splits(places.dataset_name(places.recipe.dataset))
    return Locator(name, places.model_folder(name), splits, folders.pop(), model_labels(places, name), origins)
