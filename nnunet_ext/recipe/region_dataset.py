"""The dataset of a region model: cut once, and refused when it no longer fits its page or its locator."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nnunet_ext.errors import InputError
from nnunet_ext.io.atomic import read_json, sha256_of
from nnunet_ext.recipe.places import Places
from nnunet_ext.recipe.schema import locators_of
from nnunet_ext.recipe.selection import model_labels, prepare_full_frame
from nnunet_ext.roi.agreement import NOT_CUT, PLACES, differences
from nnunet_ext.roi.dataset import derive_dataset, inherited_splits
from nnunet_ext.roi.provenance import ignore_number
from nnunet_ext.roi.raw_data import case_digests, changed_cases
from nnunet_ext.roi.region import CENTRE, Region
from nnunet_ext.roi.retention import absent_organs, cut_organs, retention_lines
from nnunet_ext.roi.survey import Locator


def cut_regions(places: Places, name: str, say: Callable[[str], None]) -> None:
    """The region dataset of a model, unless it is there and fits.

    Folds, fingerprint, plans and preprocessed data of an earlier cut go before a new one is made.
    """
    model, target = places.recipe.models[name], places.raw / places.region_name(name)
    region = model.region
    if region is None:
        return
    if (target / "dataset.json").exists():
        _check_derived(places, name, region, target, say)
        _check_source(places, name, target, say)
        return
    say(f"cutting the regions of model {name}: {', '.join(region.organs)}")
    earlier = places.preprocessed / target.name
    if earlier.exists():
        shutil.rmtree(earlier)
    source = places.dataset_name(places.recipe.dataset)
    locators = [_locator(places, m) for m in locators_of(model)]
    sidecar = derive_dataset(
        places.raw / source, target, region, places.splits(source), locators, channels=model.channels
    )
    for line in [*sidecar["warnings"], *retention_lines(sidecar)]:
        say(line)
    _check_retention(target, region, sidecar)


def _check_derived(places: Places, name: str, region: Region, target: Path, say: Callable[[str], None]) -> None:
    """Refuse regions that were cut for another page, with other weights, or that cut organs off."""
    _check_page(places, name, region, target, say)
    sidecar, hashes = places.sidecar(name), dict[Path, str]()
    for case, entry in sidecar["cases"].items():
        if entry["locator"].get("model") not in places.recipe.models:  # none, or one that the page no longer names
            continue
        model, fold = entry["locator"]["model"], entry["locator"]["fold"]
        weights = places.fold_folder(model, fold) / "checkpoint_final.pth"
        if weights not in hashes:
            hashes[weights] = sha256_of(weights, "finish training that fold first")
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


def _check_page(places: Places, name: str, region: Region, target: Path, say: Callable[[str], None]) -> None:
    """Refuse regions that were cut for another page; where to look may be changed once a network is trained."""
    described, recipe = read_json(target / "dataset.json"), places.recipe
    source = places.dataset_json(places.dataset_name(recipe.dataset))
    found = differences(described["nnunet_ext"]["region"], region, NOT_CUT)
    there, wanted = _channels(described), list(recipe.models[name].channels or _channels(source))
    if there != wanted:
        found["channels"] = f"channels {', '.join(there)} there and {', '.join(wanted)} on the page"
    if not found:
        return
    trained = any((places.fold_folder(name, fold) / "checkpoint_final.pth").exists() for fold in recipe.folds)
    if not trained or not set(found) <= set(PLACES):
        raise InputError(
            f"{target} was cut for another region than recipe {recipe.name} asks for ({'; '.join(found.values())}); "
            "delete it."
        )
    say(f"{target} was cut with {'; '.join(found.values())}; delete it to cut it anew")


def _channels(dataset_json: Mapping[str, Any]) -> list[str]:
    names = dataset_json["channel_names"]
    return [names[number] for number in sorted(names, key=int)]


def _check_retention(target: Path, region: Region, sidecar: Mapping[str, Any]) -> None:
    if region.source == CENTRE:  # the middle of the image is cut off on purpose
        return
    absent, cut = absent_organs(sidecar), cut_organs(sidecar, region.min_retention)
    if absent:
        raise InputError(
            f"no case that {target} was cut from contains {', '.join(absent)}, so no network can learn it; take it out "
            "of the region and delete that folder."
        )
    if cut:
        raise InputError(f"{'; '.join(cut)}. Enlarge the region and delete {target}, or lower min_retention.")


def _locator(places: Places, name: str) -> Locator:
    """A trained model whose held-out predictions lie on whole images; a region model's are pasted there first."""
    folders = {prepare_full_frame(places, name, fold).name for fold in places.recipe.folds}
    origins = None
    if places.recipe.models[name].region is not None:
        origins = {cut: entry["case"] for cut, entry in places.sidecar(name)["cases"].items()}
    splits = places.splits(places.dataset_name(places.recipe.dataset))
    return Locator(name, places.model_folder(name), splits, folders.pop(), model_labels(places, name), origins)
