"""Whether the files of a raw dataset are still those that it was written with."""

from __future__ import annotations

from pathlib import Path

from nnunet_ext.errors import InputError, some_of
from nnunet_ext.io.atomic import read_json
from nnunet_ext.io.nifti import read_grid
from nnunet_ext.locations import FILE_ENDING


def check_training_files(dataset: Path) -> None:
    """Refuse training cases that got lost: nnU-Net would plan and train on the others without a word.

    Happens to a noisy copy, whose images are links, when its source is converted anew: cases that are test cases now
    are gone, and at another size the images no longer fit the contours.

    Args:
        dataset: Raw folder.

    Raises:
        InputError: links lead nowhere, images that are links have another shape than their contours, or dataset.json
            counts other cases than there are.
    """
    content = read_json(dataset / "dataset.json")
    if not isinstance(content, dict):
        raise InputError(f"{dataset / 'dataset.json'} holds a {type(content).__name__}, expected an object {{...}}.")
    images, labels = dataset / "imagesTr", dataset / "labelsTr"
    links = [path for folder in (images, labels) for path in sorted(folder.glob("*")) if path.is_symlink()]
    dead = [f"{path.parent.name}/{path.name}" for path in links if not path.exists()]
    if dead:
        raise InputError(
            f"{dataset} has links to files that are gone: {some_of(dead)}; write the dataset anew (a noisy one with "
            "nnunet-ext noise --overwrite), or restore the files."
        )
    if "dataset" in content:  # nnU-Net's list of files elsewhere
        return
    ending = content.get("file_ending", FILE_ENDING)
    cases = {path.name[: -len("_0000") - len(ending)] for path in images.glob(f"*_[0-9][0-9][0-9][0-9]{ending}")}
    if content.get("numTraining", len(cases)) != len(cases):
        raise InputError(
            f"{images} holds {len(cases)} cases, expected {content['numTraining']} (numTraining of dataset.json); "
            "write the dataset anew, or correct numTraining if those are all."
        )
    for path in links:
        if path.parent == images and ending == FILE_ENDING:
            _check_same_shape(path, labels / f"{path.name[: -len('_0000') - len(ending)]}{ending}")


def _check_same_shape(image: Path, labels: Path) -> None:
    there, drawn = (read_grid(path).shape for path in (image, labels))
    if there != drawn:
        raise InputError(
            f"{image} has {there} voxels (Z, Y, X) and its contours {drawn}: it is a link to an image that was "
            "replaced; write the dataset anew (a noisy one with nnunet-ext noise --overwrite)."
        )
