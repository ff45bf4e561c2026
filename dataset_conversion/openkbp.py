"""OpenKBP 2020: head-and-neck planning CT with organs at risk, in its published CSV layout.

Source: github.com/ababier/open-kbp, ``pt_<n>/{ct,voxel_dimensions,<Structure>}.csv``.
Citation: Babier et al., OpenKBP: The open-access knowledge-based planning grand challenge and dataset, Med
Phys 2021;48:5549.
Licence: MIT.
Modality: CT, some 3.9×3.9×2.5 mm, HU + 1024 clipped at 4095.
Cases: 340 patients.
Known faults: the CT is blank outside dose region and contours, so a plain reconstruction leaks labels (mean
9.5 %, up to 58 % of the organ voxels); slices without real body context are cut off and the kept fraction per
organ is reported. An organ without a file was not contoured, which is not the same as absent (see
present_labels.json). Some contours overlap by a few voxels; the later organ of the table wins.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from nnunet_ext.conversion.source import Source, SparseCase, in_order
from nnunet_ext.errors import InputError

ORGANS = {
    "Brainstem": 1,
    "SpinalCord": 2,
    "Parotid_R": 3,
    "Parotid_L": 4,
    "Esophagus": 5,
    "Larynx": 6,
    "Bone_Mandible": 7,
}
FILES = {
    "Brainstem": "Brainstem",
    "SpinalCord": "SpinalCord",
    "RightParotid": "Parotid_R",
    "LeftParotid": "Parotid_L",
    "Esophagus": "Esophagus",
    "Larynx": "Larynx",
    "Mandible": "Bone_Mandible",
}
TARGETS = ("PTV56", "PTV63", "PTV70")


def open_source(folder: Path) -> Source:
    """All patients under the folder, also where they lie in ``train-pats``, ``validation-pats`` and
    ``test-pats``.

    Raises:
        InputError: there is no patient folder.
    """
    cases = in_order(_cases(folder))
    if not cases:
        raise InputError(f"{folder} has no pt_<n>/ct.csv; expected OpenKBP's published layout.")
    return Source(
        name="openkbp",
        folder=folder,
        description="OpenKBP 2020 head-and-neck planning CT, cropped to slices with real body context",
        licence="MIT",
        reference="Babier et al., Med Phys 2021;48:5549",
        organs=ORGANS,
        cases=cases,
    )


def _cases(folder: Path) -> Iterator[SparseCase]:
    for pattern in ("pt_*", "*/pt_*", "*/*/pt_*"):
        for patient in folder.glob(pattern):
            if patient.is_dir():
                yield _case(patient)


def _case(patient: Path) -> SparseCase:
    there = {path.stem: path for path in sorted(patient.glob("*.csv"))}
    return SparseCase(
        identifier=patient.name,
        image=patient / "ct.csv",
        spacing=patient / "voxel_dimensions.csv",
        structures={organ: there[name] for name, organ in FILES.items() if name in there},
        others=tuple(there[name] for name in TARGETS if name in there),
    )
