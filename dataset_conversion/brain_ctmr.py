"""Head CT with T1- and T2-weighted MR: eyes, lenses, optic nerves and chiasm.

Source: the user's own data, ``<case>/{CT,T1w,T2w}.nii.gz`` (or ``T1``, ``T2``) with ``label.nii.gz`` or one 0/1 file
per organ (``Eye_L.nii.gz``); or ``images/<case>_0000.nii.gz`` … ``_0002.nii.gz`` with ``labels/``.
Citation, licence: those of the data; fill them into dataset.json.
Modality: CT, T1w, T2w, all on the grid of the CT, MR registered to it beforehand.
Cases: as many as the folder holds; one without labels becomes a test case.
Known faults: couch and thermoplastic mask are in the CT, a bias field in the MR; both are removed, and
dataset.json names the steps, so that new patients are treated alike. ``--register rigid`` is no such step: register
new patients before prediction. In 0/1 files a lens is painted over its eye, the chiasm over the nerves.
"""

from __future__ import annotations

from pathlib import Path

from nnunet_ext.conversion.folders import channel_cases
from nnunet_ext.conversion.source import Option, Source, Treatment, in_order, number_from
from nnunet_ext.errors import InputError

ORGANS = {
    "Eye_L": 1,
    "Eye_R": 2,
    "Lens_L": 3,
    "Lens_R": 4,
    "OpticNrv_L": 5,
    "OpticNrv_R": 6,
    "OpticChiasm": 7,
}
CHANNELS = {"CT": ("CT",), "T1w": ("T1w", "T1"), "T2w": ("T2w", "T2")}
"""Channel to the file names it may have."""
LENS_IN_EYE = {"contains": {"Eye_L": ["Lens_L"], "Eye_R": ["Lens_R"]}}
EYE_NOTE = "the reference eyes contain their lens: nnunet-ext evaluate counts eye and lens together as the eye"

OPTIONS = (
    Option(
        "--register",
        "Move T1w and T2w onto the CT; new patients must then be registered before prediction, too.",
        default="none",
        choices=("none", "rigid"),
    ),
    Option("--min-overlap", "Least Dice of the heads in CT and MR, 0 to 1; 0 checks nothing.", default="0.9"),
    Option("--couch/--no-couch", "Remove couch and thermoplastic mask from the CT.", default=True),
    Option("--n4/--no-n4", "Remove the bias field of the MR (N4; up to some minutes per image).", default=True),
    Option(
        "--eye-includes-lens",
        "State that the reference eyes contain the lens: they are evaluated together.",
        default=False,
    ),
)


def open_source(
    folder: Path,
    register: str = "none",
    min_overlap: str = "0.9",
    couch: bool = True,
    n4: bool = True,
    eye_includes_lens: bool = False,
) -> Source:
    """All cases under the folder.

    Raises:
        InputError: there is no case folder, or an option is no number from 0 to 1.
    """
    cases = in_order(channel_cases(folder, CHANNELS, ORGANS))
    if not cases:
        raise InputError(
            f"{folder} has no <case>/CT.nii.gz; expected CT, T1w and T2w per case, or images/ and labels/."
        )
    steps = {"CT": ("remove_couch",) if couch else (), **dict.fromkeys(("T1w", "T2w"), ("n4",) if n4 else ())}
    return Source(
        name="brain-ctmr",
        folder=folder,
        description="Head CT, T1w and T2w with the organs of the visual pathway",
        licence="that of the source data",
        reference="that of the source data",
        organs=ORGANS,
        cases=cases,
        channels=tuple(CHANNELS),
        treatment=Treatment(
            steps={channel: names for channel, names in steps.items() if names},
            register=register == "rigid",
            min_overlap=number_from("--min-overlap", min_overlap, 0, 1),
        ),
        facts=LENS_IN_EYE if eye_includes_lens else {},
        notes=(EYE_NOTE,) if eye_includes_lens else (),
    )
