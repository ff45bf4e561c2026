"""Planning CT of the liver with one target: the data of the RAS U-Net.

Source: the user's own data, ``images/<case>.nii.gz`` with ``labels/<case>.nii.gz``, or ``<case>/CT.nii.gz`` with
``label.nii.gz`` (or ``GTV.nii.gz``, as ``--target`` says). A mask of the liver may lie beside it:
``livers/<case>.nii.gz`` or ``<case>/liver.nii.gz``. DICOM with RTSTRUCT comes in a later version.
Citation, licence: those of the data; fill them into dataset.json. The paper's 50 patients are not public.
Modality: CT; the paper's has 272×272 voxels, some 130 slices, 3 mm apart.
Cases: 50 in the paper, split 30/10/10. Here a fifth of the patients is set aside as test cases (imagesTs, labelsTs),
the others make four folds of 30 training and 10 validation patients: fold 0 alone is the paper's experiment, all four
are a cross-validation. With other numbers of patients the proportions hold.
Known faults: the paper says "target" and not which, so ``--target`` asks. It crops the background "by prior
information"; here the box of the body and 10 mm, or of the liver where every case has its mask, is kept, and
dataset.json says which. The crop to the body changes nothing but the field of view, so new patients need none: inside
the body the network sees the same. After the crop to the liver it has never seen the rest: crop new patients alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nnunet_ext.conversion.folders import target_cases
from nnunet_ext.conversion.source import (
    Crop,
    NiftiCase,
    Option,
    Source,
    Treatment,
    in_order,
    number_from,
    with_patient,
)
from nnunet_ext.errors import InputError

FOLDS = 4
"""The 40 patients of training and validation in folds of 10."""
TEST_SHARE = 0.2
"""10 of 50."""
UNNAMED = "Target"
UNNAMED_NOTE = "label 1 is called Target; say with --target whether it is a GTV or a CTV"
LIVER_NOTE = "cropped to the liver: the network sees nothing else, so crop new patients alike before prediction"

OPTIONS = (
    Option("--target", "What label 1 is.", default=UNNAMED, choices=("GTV", "CTV", "ITV", "PTV", UNNAMED)),
    Option("--label-value", "Value of the target in the label maps, 1 to 65535.", default="1"),
    Option(
        "--crop",
        "Background to cut off: beyond the liver or the body; auto takes the liver where every case has its mask.",
        default="auto",
        choices=("auto", "body", "liver", "none"),
    ),
    Option("--margin-mm", "Kept around body or liver, 0 to 200.", default="10"),
    Option("--patient", r"Regular expression for the patient in a case's name; one fold per patient."),
)


def open_source(
    folder: Path,
    target: str = UNNAMED,
    label_value: str = "1",
    crop: str = "auto",
    margin_mm: str = "10",
    patient: str | None = None,
) -> Source:
    """All cases under the folder.

    Raises:
        InputError: the folder holds DICOM or no case, or an option is no number of its range.
    """
    cases = [with_patient(case, patient) for case in target_cases(folder, target, guide="liver")]
    margin = number_from("--margin-mm", margin_mm, 0, 200)
    value = int(number_from("--label-value", label_value, 1, 65535))
    kept = _crop(crop, margin, cases)
    to_liver = kept is not None and kept.to == "guide"
    return Source(
        name="liver-target",
        folder=folder,
        description="Planning CT of the liver with one target",
        licence="that of the source data",
        reference="that of the source data",
        organs={target: 1},
        cases=in_order(cases),
        label_values={value: 1},
        treatment=Treatment(crop=kept),
        folds=FOLDS,
        test_share=TEST_SHARE,
        notes=(*((UNNAMED_NOTE,) if target == UNNAMED else ()), *((LIVER_NOTE,) if to_liver else ())),
    )


def _crop(crop: str, margin_mm: float, cases: Sequence[NiftiCase]) -> Crop | None:
    without = [case.identifier for case in cases if case.guide is None]
    if crop == "liver" and without:
        raise InputError(
            f"--crop liver needs the mask of every case, {len(without)} of {len(cases)} have none, such as "
            f"{without[0]}; expected livers/{without[0]}.nii.gz or {without[0]}/liver.nii.gz."
        )
    if crop == "none":
        return None
    if crop == "body" or without:
        return Crop("body", margin_mm)
    return Crop("guide", margin_mm, "liver")
