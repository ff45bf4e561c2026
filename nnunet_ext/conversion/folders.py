"""Which NIfTI files of a folder belong together: images, channels and labels by their names."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from nnunet_ext.conversion.source import NiftiCase, is_nifti, stem
from nnunet_ext.errors import InputError

IMAGE_FOLDERS = ("images", "imagesTr")
LABEL_FOLDERS = ("labels", "labelsTr")
TEST_FOLDER = "imagesTs"
DICOM_LATER = (
    "DICOM with RTSTRUCT comes in a later version, convert the series to NIfTI first (images/ and labels/, or one "
    "folder per case)"
)


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


def channel_cases(
    folder: Path, channels: Mapping[str, Sequence[str]], organs: Collection[str], label: str = "label"
) -> Iterator[NiftiCase]:
    """Cases of a folder with one folder per case and one file per channel; or of ``images/`` and ``labels/``.

    A case folder holds a file of every channel, and the label map or one 0/1 file per organ (the label map
    counts where both are there); a case with neither becomes a test case.

    Args:
        folder: Source folder; case folders may lie deeper.
        channels: Channel name to the file names (without ending) that it may have.
        organs: Names that a 0/1 file may have.
        label: Name of the label map.

    Raises:
        InputError: ``images/`` stands there without ``labels/``, or empty.
    """
    if any((folder / name).is_dir() for name in IMAGE_FOLDERS):
        yield from (_naming_what_is_missing(case, channels) for case in paired_cases(folder, len(channels)))
        return
    known = {name for names in channels.values() for name in names}
    for case_folder in sorted({path.parent for path in folder.rglob("*") if is_nifti(path) and stem(path) in known}):
        yield _case_in(case_folder, channels, organs, label)


def target_cases(folder: Path, target: str, guide: str = "") -> Iterator[NiftiCase]:
    """CT cases with one contour: ``images/`` and ``labels/``, or one folder per case.

    A case folder holds ``CT.nii.gz`` (or ``image``, ``data``) and ``label.nii.gz`` or ``<target>.nii.gz``; without the
    contour it is a test case.

    Args:
        folder: Source folder.
        target: Name of the contour.
        guide: Name of a further mask, ``<guide>s/<case>.nii.gz`` beside ``images/``, or ``<guide>.nii.gz`` in a case
            folder; empty for none.

    Raises:
        InputError: the folder holds DICOM and no NIfTI, or no case.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if not any(is_nifti(path) for path in files) and any(is_dicom(path) for path in files):
        raise InputError(f"{folder} holds DICOM files; {DICOM_LATER}.")
    found = False
    for case in channel_cases(folder, {"CT": ("CT", "image", "data")}, (target,)):
        found = True
        yield _with_guide(_without_rtstruct(case), folder, guide)
    if not found:
        raise InputError(f"{folder} has no case; expected images/ and labels/, or <case>/CT.nii.gz with label.nii.gz.")


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM, by its name or by the mark after its preamble."""
    if path.suffix.lower() in (".dcm", ".dicom"):
        return True
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def _without_rtstruct(case: NiftiCase) -> NiftiCase:
    """The case with a fault where its contours are DICOM beside the NIfTI image: it is no test case."""
    if case.fault or case.has_labels or case.images[0].parent.name == TEST_FOLDER:
        return case
    contours = [path for path in sorted(case.images[0].parent.iterdir()) if path.is_file() and is_dicom(path)]
    return replace(case, fault=f"{contours[0]} is DICOM; {DICOM_LATER}.") if contours else case


def _with_guide(case: NiftiCase, folder: Path, guide: str) -> NiftiCase:
    if not guide or not case.images:
        return case
    beside = case.images[0].parent
    pooled = beside.name in (*IMAGE_FOLDERS, TEST_FOLDER)
    masks = _named(folder / f"{guide}s", (case.identifier,)) if pooled else _named(beside, (guide,))
    return replace(case, guide=masks[0]) if masks else case


def _case_in(folder: Path, channels: Mapping[str, Sequence[str]], organs: Collection[str], label: str) -> NiftiCase:
    images = {channel: _named(folder, names) for channel, names in channels.items()}
    labels = _named(folder, (label,))
    drawn = {organ: _named(folder, (organ,)) for organ in organs}
    return NiftiCase(
        identifier=folder.name,
        images=tuple(path for files in images.values() for path in files[:1]),
        label=labels[0] if labels else None,
        fault=_missing_fault(folder, images, channels) or _double_fault([*images.values(), labels, *drawn.values()]),
        organs={} if labels else {organ: files[0] for organ, files in drawn.items() if files},
    )


def _naming_what_is_missing(case: NiftiCase, channels: Mapping[str, Sequence[str]]) -> NiftiCase:
    """The case of ``images/`` with a fault that says which channel has no file."""
    have = {stem(path) for path in case.images}
    if len(channels) == 1 and case.identifier in have:
        return case
    wanted = {channel: f"{case.identifier}_{i:04d}" for i, channel in enumerate(channels)}
    missing = [channel for channel, name in wanted.items() if name not in have]
    if not case.images or not missing:
        return case
    files = ", ".join(f"{case.images[0].parent / wanted[channel]}.nii.gz" for channel in missing)
    return replace(case, fault=f"case {case.identifier} has no {' and no '.join(missing)}; expected {files}.")


def _missing_fault(folder: Path, images: Mapping[str, list[Path]], channels: Mapping[str, Sequence[str]]) -> str:
    missing = [channel for channel, files in images.items() if not files]
    if not missing:
        return ""
    wanted = ", ".join(f"{folder / channels[channel][0]}.nii.gz" for channel in missing)
    return f"case {folder.name} has no {' and no '.join(missing)}; expected {wanted}."


def _double_fault(files: Sequence[list[Path]]) -> str:
    for found in files:
        if len(found) > 1:
            return f"{found[0]} lies beside {found[1].name}; keep one."
    return ""


def _named(folder: Path, names: Sequence[str]) -> list[Path]:
    return [path for name in names for ending in (".nii.gz", ".nii") if (path := folder / f"{name}{ending}").is_file()]


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
