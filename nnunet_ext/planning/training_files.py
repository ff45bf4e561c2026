"""Whether the files of a raw dataset are still those that it was written with."""

from __future__ import annotations

from pathlib import Path

from nnunet_ext.errors import InputError, some_of
from nnunet_ext.evaluation.dataset import DATASET_FILE, NOISE_FILE, read_description
from nnunet_ext.io.atomic import read_json
from nnunet_ext.io.nifti import read_grid
from nnunet_ext.locations import FILE_ENDING
from nnunet_ext.roi.raw_data import image_digests


def check_training_files(dataset: Path) -> None:
    """Refuse training cases that got lost: nnU-Net would plan and train on the others without a word.

    Happens to a noisy copy, whose images are links, when its source is converted anew: cases that are test cases now
    are gone, and others may have another size or other images.

    Args:
        dataset: Raw folder.

    Raises:
        InputError: links lead nowhere, a noisy copy links to other images than it was derived with, or dataset.json
            counts other cases than there are.
    """
    content = read_description(dataset / DATASET_FILE)
    images, labels = dataset / "imagesTr", dataset / "labelsTr"
    files = [path for folder in (images, labels) for path in sorted(folder.glob("[!.]*"))]
    dead = [f"{path.parent.name}/{path.name}" for path in files if path.is_symlink() and not path.exists()]
    if dead:
        raise InputError(
            f"{dataset} has links to files that are gone: {some_of(dead)}; write the dataset anew (a noisy one with "
            "nnunet-ext noise --overwrite), or restore the files."
        )
    if "dataset" in content:  # nnU-Net's list of files elsewhere
        return
    ending, counted = content.get("file_ending", FILE_ENDING), content.get("numTraining")
    names = [path.name for path in images.glob(f"*_[0-9][0-9][0-9][0-9]{ending}")]
    if hidden := sorted(name for name in names if name.startswith(".")):
        raise InputError(f"{images} holds hidden files that nnU-Net takes for cases: {some_of(hidden)}; delete them.")
    cases = {name[: -len("_0000") - len(ending)] for name in names}
    if isinstance(counted, int) and counted != len(cases):
        raise InputError(
            f"{images} holds {len(cases)} cases, expected {counted} (numTraining of dataset.json); write the dataset "
            "anew, or correct numTraining if those are all."
        )
    _check_links_of_noise(dataset)


def _check_links_of_noise(dataset: Path) -> None:
    """Refuse a noisy copy whose images are other ones than when it was derived.

    Copies of an older version do not say which they were; those of another shape than their contours are seen.
    """
    path = dataset / NOISE_FILE
    if not path.is_file():
        return
    derived = read_json(path)
    before, now = derived.get("images") if isinstance(derived, dict) else None, image_digests(dataset)
    if isinstance(before, dict):
        both = before.keys() & now.keys()
        changed = sorted(case for case in both if before[case] != now[case])
    else:
        changed = [
            case for case in now if _shape(dataset, "imagesTr", f"{case}_0000") != _shape(dataset, "labelsTr", case)
        ]
    if changed:
        raise InputError(
            f"{dataset} links to other images of {some_of(changed)} than its noise was made for; write the dataset "
            "anew with nnunet-ext noise --overwrite."
        )


def _shape(dataset: Path, folder: str, name: str) -> tuple[int, ...]:
    return read_grid(dataset / folder / f"{name}{FILE_ENDING}").shape
