"""Which NIfTI files of a folder belong together: images, channels and labels by their names."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator
from pathlib import Path

from nnunet_ext.conversion.source import NiftiCase, is_nifti, stem
from nnunet_ext.errors import InputError

IMAGE_FOLDERS = ("images", "imagesTr")
LABEL_FOLDERS = ("labels", "labelsTr")
TEST_FOLDER = "imagesTs"


def paired_cases(folder: Path, channels: int = 1) -> Iterator[NiftiCase]:
    """Cases of a folder with ``images/`` and ``labels/`` (or nnU-Net's imagesTr, labelsTr, imagesTs).

    Files are ``<case>.nii.gz`` where there is one channel, or ``<case>_0000.nii.gz``, ``<case>_0001.nii.gz``,
    ... An image without a label is a fault of that case, unless it lies in ``imagesTs``.

    Raises:
        InputError: the folder has no such sub-folder, or nothing in it.
    """
    images = _first_folder(folder, IMAGE_FOLDERS)
    labels = _by_case(_first_folder(folder, LABEL_FOLDERS))
    found = _by_case(images, _endings(channels), whole=labels)
    if not found:
        raise InputError(f"{images} holds no .nii or .nii.gz file; expected <case>.nii.gz or <case>_0000.nii.gz.")
    for case in {**found, **labels}:
        yield _training_case(case, found.get(case, []), labels.get(case, []), channels)
    if (folder / TEST_FOLDER).is_dir():
        for case, files in _by_case(folder / TEST_FOLDER, _endings(channels)).items():
            yield NiftiCase(case, tuple(files), fault=_channel_fault(case, files, channels))


def other_files(folder: Path) -> list[str]:
    """Names of visible files beside the NIfTI files, which nobody will read."""
    names = (*IMAGE_FOLDERS, *LABEL_FOLDERS, TEST_FOLDER)
    return sorted(
        f"{name}/{path.name}"
        for name in names
        if (folder / name).is_dir()
        for path in (folder / name).iterdir()
        if path.is_file() and not is_nifti(path) and not path.name.startswith(".")
    )


def _first_folder(folder: Path, names: tuple[str, ...]) -> Path:
    for name in names:
        if (folder / name).is_dir():
            return folder / name
    raise InputError(f"{folder} has no folder {' or '.join(names)}; expected images/ and labels/ with NIfTI files.")


def _endings(channels: int) -> tuple[str, ...]:
    return tuple(f"_{i:04d}" for i in range(max(channels, 10)))


def _by_case(folder: Path, endings: tuple[str, ...] = (), whole: Collection[str] = ()) -> dict[str, list[Path]]:
    """Files by case; a name in ``whole`` is a case's name even if it ends like a channel (``pt_0003``)."""
    cases: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(p for p in folder.iterdir() if is_nifti(p)):
        name = stem(path)
        ending = "" if name in whole else next((e for e in endings if name.endswith(e)), "")
        cases[name.removesuffix(ending)].append(path)
    return dict(cases)


def _training_case(case: str, images: list[Path], labels: list[Path], channels: int) -> NiftiCase:
    fault = ""
    if not images:
        fault = f"{labels[0]} has no image of the same name; add images/{case}.nii.gz or remove the label."
    elif not labels:
        fault = f"{images[0]} has no label file of the same name; add it, or move the image to {TEST_FOLDER}/."
    elif len(labels) > 1:
        fault = f"case {case} has two label files, {labels[0].name} and {labels[1].name}; keep one."
    else:
        fault = _channel_fault(case, images, channels)
    return NiftiCase(case, tuple(images), labels[0] if labels else None, fault=fault)


def _channel_fault(case: str, files: list[Path], channels: int) -> str:
    names = [stem(path) for path in files]
    wanted = _endings(channels)[:channels]
    if names in ([case], [case + wanted[0]]) and channels == 1:
        return ""
    if names == [case + ending for ending in wanted]:
        return ""
    have = ", ".join(path.name for path in files)
    return (
        f"{files[0].parent} has {have}, expected {channels} channel file(s) {', '.join(wanted)}; "
        "rename them or list every --channel."
    )
