"""StructSeg 2019 task 1: head-and-neck planning CT with 22 organs at risk.

Source: structseg2019.grand-challenge.org, Task1_HaN_OAR.zip: ``HaN_OAR/<n>/data.nii.gz`` and
``label.nii.gz``.
Citation: Automatic Structure Segmentation for Radiotherapy Planning Challenge 2019 (MICCAI 2019).
Licence: participants of the challenge only, no redistribution.
Modality: CT, 512×512, some 3×1×1 mm.
Cases: 50 with labels; 10 hidden ones.
Known faults: copies come with an extra parent folder, uncompressed, or split into train/valid/test; the order
of labels on the challenge's web page is not the one in the files. The table below is that of the files
(bones, cord and sides checked against the volumes by others). The report names pairs whose sides contradict
it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from nnunet_ext.conversion.folders import IMAGE_FOLDERS, paired_cases
from nnunet_ext.conversion.source import NiftiCase, Source, in_order
from nnunet_ext.errors import InputError

ORGANS = {
    "Brainstem": 1,
    "Eye_L": 2,
    "Eye_R": 3,
    "Lens_L": 4,
    "Lens_R": 5,
    "OpticNrv_L": 6,
    "OpticNrv_R": 7,
    "OpticChiasm": 8,
    "Lobe_Temporal_L": 9,
    "Lobe_Temporal_R": 10,
    "Pituitary": 11,
    "Parotid_L": 12,
    "Parotid_R": 13,
    "Ear_Internal_L": 14,
    "Ear_Internal_R": 15,
    "Ear_Middle_L": 16,
    "Ear_Middle_R": 17,
    "Joint_TM_L": 18,
    "Joint_TM_R": 19,
    "SpinalCord": 20,
    "Bone_Mandible_L": 21,
    "Bone_Mandible_R": 22,
}
TASK = "HaN_OAR"
OTHER_TASKS = ("Naso_GTV", "Thoracic_OAR", "Lung_GTV")
PARTS = ("valid", "test")
"""Names of split folders that become part of the case's name, since their numbers start at 1 again."""


def open_source(folder: Path) -> Source:
    """All cases under the folder; a case without a label becomes a test case.

    Raises:
        InputError: there is no case folder of this task.
    """
    redistributed = any((folder / name).is_dir() for name in IMAGE_FOLDERS)
    cases = in_order(paired_cases(folder) if redistributed else _cases(folder))
    if not cases:
        raise InputError(f"{folder} has no {TASK}/<n>/data.nii.gz; expected the folder of StructSeg 2019 task 1.")
    return Source(
        name="structseg-han",
        folder=folder,
        description="StructSeg 2019 task 1, head-and-neck organs at risk",
        licence="participants of the challenge only, no redistribution",
        reference="structseg2019.grand-challenge.org",
        organs=ORGANS,
        cases=cases,
    )


def _cases(folder: Path) -> Iterator[NiftiCase]:
    for case_folder in sorted({path.parent for path in folder.rglob("data.nii*")}):
        parts = case_folder.relative_to(folder).parts
        if not {*parts, folder.name}.isdisjoint(OTHER_TASKS):
            continue
        images, labels = _files(case_folder, "data"), _files(case_folder, "label")
        double = [files for files in (images, labels) if len(files) > 1]
        yield NiftiCase(
            identifier=_identifier(case_folder.name, parts),
            images=images[:1],
            label=labels[0] if labels else None,
            fault=f"{double[0][0]} lies beside {double[0][1].name}; keep one." if double else "",
        )


def _files(folder: Path, name: str) -> tuple[Path, ...]:
    return tuple(path for ending in (".nii.gz", ".nii") if (path := folder / f"{name}{ending}").is_file())


def _identifier(number: str, parts: tuple[str, ...]) -> str:
    """``HaN_007``, or ``HaN_test_007`` in a split folder."""
    words = ["HaN", *(part for part in PARTS if part in parts)]
    return "_".join([*words, f"{int(number):03d}" if number.isdigit() else number])
