"""Pelvic planning CT with the CTV of cervical cancer: the data of the refinement U-Net.

Source: the user's own data as NIfTI, ``images/<case>.nii.gz`` with ``labels/<case>.nii.gz``, or ``<case>/CT.nii.gz``
with ``label.nii.gz`` or ``CTV.nii.gz``; or as HDF5, ``<case>.h5`` with a data set each for image and contour (those
under ``imagesTs/`` are test cases). DICOM with RTSTRUCT comes in a later version.
Citation, licence: those of the data; fill them into dataset.json. The thesis's 340 annotated series are not public.
Modality: CT, 256×256, 48 to 125 slices.
Cases: 340 in the thesis, three-fold cross-validation, no test cases.
Known faults: the thesis gives values from 0 to 2072, which we read as HU + 1024, stored without the rescale intercept.
The dataset is in HU: where tissue lies around 1024, 1024 is subtracted (``--values`` decides it for all), and
dataset.json says so; the thesis's window 0 to 1600 is -1024 to 576 HU. New patients must be in HU before prediction,
which refuses values that never fall below -200. HDF5 knows no patient: ``--axes`` says where the array axes point to,
and the position in the scanner is lost. ``--fixed-slices 72`` only reproduces the thesis: slices then have another
thickness in every patient, new ones must be resampled alike, and results back; it resampled linearly, here cubic
splines do.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from nnunet_ext.conversion.folders import TEST_FOLDER, target_cases
from nnunet_ext.conversion.source import (
    Hdf5Case,
    NiftiCase,
    Option,
    Source,
    Stored,
    Treatment,
    in_order,
    is_nifti,
    number_from,
    with_patient,
)
from nnunet_ext.errors import InputError

ORGANS = {"CTV": 1}
FOLDS = 3
HDF5_ENDINGS = (".h5", ".hdf5")
SLICES_NOTE = "every case has the same number of slices: for reproducing only, see --help"
AXES = ("SPL", "IPL", "SAL", "IAL", "SPR", "IPR", "SAR", "IAR", "LPS", "RPS", "LAS", "RAS", "LPI", "RPI", "LAI", "RAI")

OPTIONS = (
    Option("--label-value", "Value of the CTV in the label maps, 1 to 65535.", default="1"),
    Option(
        "--values",
        "What the files store: HU, HU + 1024, or decide it for every case.",
        default="auto",
        choices=get_args(Stored),
    ),
    Option("--image-key", "HDF5: name of the data set with the image.", default="image"),
    Option("--label-key", "HDF5: name of the data set with the contour.", default="label"),
    Option(
        "--axes",
        "HDF5: where the three array axes grow to; SPL: slices from the feet, rows to the back, columns to the left.",
        default="SPL",
        choices=AXES,
    ),
    Option("--spacing-mm", "HDF5: voxel size along the array axes, such as 5,1.2,1.2, where the files do not say it."),
    Option("--fixed-slices", "Resample every case to this number of slices, such as 72; for reproducing only."),
    Option("--patient", r"Regular expression for the patient in a case's name; one fold per patient."),
)


def open_source(
    folder: Path,
    label_value: str = "1",
    values: Stored = "auto",
    image_key: str = "image",
    label_key: str = "label",
    axes: str = "SPL",
    spacing_mm: str | None = None,
    fixed_slices: str | None = None,
    patient: str | None = None,
) -> Source:
    """All cases under the folder, NIfTI or HDF5.

    Raises:
        InputError: the folder holds DICOM, no case, or both NIfTI and HDF5, or an option is not understood.
    """
    files = sorted(path for path in folder.rglob("*") if path.suffix in HDF5_ENDINGS and not path.name.startswith("."))
    value = int(number_from("--label-value", label_value, 1, 65535))
    slices = int(number_from("--fixed-slices", fixed_slices, 2, 2000)) if fixed_slices else 0
    spacing = _spacing(spacing_mm)
    cases: list[NiftiCase | Hdf5Case]
    if files:
        _check_only_hdf5(folder, files[0])
        cases = [with_patient(case, patient) for case in _hdf5_cases(files, image_key, label_key, axes, spacing)]
    else:
        cases = [with_patient(case, patient) for case in target_cases(folder, "CTV")]
    reading = {"image": image_key, "label": label_key, "axes": axes, "spacing_mm": str(spacing)} if files else {}
    return Source(
        name="cervix-ctv",
        folder=folder,
        description="Pelvic planning CT with the CTV of cervical cancer",
        licence="that of the source data",
        reference="that of the source data",
        organs=ORGANS,
        cases=in_order(cases),
        label_values={value: 1},
        treatment=Treatment(stored=values, slices=slices),
        reading=reading,
        folds=FOLDS,
        notes=(SLICES_NOTE,) if slices else (),
    )


def _hdf5_cases(
    files: list[Path], image_key: str, label_key: str, axes: str, spacing: tuple[float, float, float] | None
) -> Iterator[Hdf5Case]:
    for file in files:
        wanted = None if file.parent.name == TEST_FOLDER else label_key
        yield Hdf5Case(file.stem, file, image_key, wanted, axes, spacing)


def _check_only_hdf5(folder: Path, file: Path) -> None:
    nifti = next((path for path in sorted(folder.rglob("*")) if is_nifti(path)), None)
    if nifti:
        raise InputError(f"{folder} holds NIfTI ({nifti.name}) and HDF5 ({file.name}); convert one kind at a time.")


def _spacing(text: str | None) -> tuple[float, float, float] | None:
    if text is None:
        return None
    parts = [number_from("--spacing-mm", part, 0.1, 20) for part in text.split(",")]
    if len(parts) != 3:
        raise InputError(f"--spacing-mm {text!r} must be three numbers, such as 5,1.2,1.2.")
    return parts[0], parts[1], parts[2]
