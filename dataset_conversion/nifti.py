"""Any folder of NIfTI files: ``images/<case>.nii.gz`` beside ``labels/<case>.nii.gz``.

Source: the user's own data, or a dataset that somebody has already converted, such as ``openkbp_hn``.
Citation, licence: those of the data; fill them into dataset.json.
Modality: any; channel ``CT`` gets the Hounsfield checks.
Cases: as many as the folder holds; ``imagesTs/`` may hold test cases without labels.
Known faults: nobody but the user knows what a label value means, so ``--labels`` is asked for and every other
value refused. In OpenKBP's converted labels 0 also means "not contoured".
"""

from __future__ import annotations

import json
from pathlib import Path

from nnunet_ext.conversion.folders import other_files, paired_cases
from nnunet_ext.conversion.source import Option, Source, in_order, with_patient
from nnunet_ext.errors import InputError
from nnunet_ext.labels import tg263_name

OPTIONS = (
    Option(
        "--labels",
        'Values in the files: "Brainstem=1,Parotid_L=4", a JSON file, or a dataset.json.',
        required=True,
    ),
    Option("--organs", "Comma-separated organs to take, in this order; the other listed ones become background."),
    Option("--ignore-labels", "Comma-separated values that become background, such as 5,6."),
    Option("--unlisted", "What a value without a name does.", default="error", choices=("error", "background")),
    Option(
        "--patient",
        r"Regular expression for the patient in a case's name, such as '^pt_\d+'; one fold per patient.",
    ),
    Option("--channel", "Comma-separated channel names, in the order _0000, _0001, ...", default="CT"),
)


def open_source(
    folder: Path,
    labels: str,
    organs: str | None = None,
    ignore_labels: str | None = None,
    unlisted: str = "error",
    patient: str | None = None,
    channel: str = "CT",
) -> Source:
    """The cases of the folder; organs are renumbered 1 to n in the order given.

    Raises:
        InputError: the folder has no images and labels, or the options contradict each other.
    """
    in_file = {tg263_name(name): value for name, value in _label_table(labels).items()}
    wanted = [tg263_name(name) for name in _items(organs)] or list(in_file)
    _check_options(wanted, in_file, labels)
    numbers = {name: i for i, name in enumerate(wanted, start=1)}
    values = {value: numbers.get(name, 0) for name, value in in_file.items()}
    channels = tuple(_items(channel))
    others = other_files(folder)
    return Source(
        name="nifti",
        folder=folder,
        description="Converted from a folder of NIfTI files",
        licence="that of the source data",
        reference="that of the source data",
        organs=numbers,
        cases=in_order(with_patient(case, patient) for case in paired_cases(folder, len(channels))),
        channels=channels,
        label_values={**dict.fromkeys(_ignored(ignore_labels, values), 0), **values},
        unlisted_is_background=unlisted == "background",
        notes=(f"not NIfTI, not read: {', '.join(others)}",) if others else (),
    )


def _label_table(text: str) -> dict[str, int]:
    if text.endswith(".json"):
        return _table_from_json(Path(text))
    pairs = [item.partition("=") for item in _items(text)]
    if not pairs or not all(name and value.strip().isdigit() for name, _, value in pairs):
        raise InputError(f"--labels {text!r} is not understood; expected Organ=number,Organ=number or a .json file.")
    table = {name.strip(): int(value) for name, _, value in pairs}
    if len(table) < len(pairs):
        raise InputError(f"--labels {text!r} names an organ twice.")
    return table


def _table_from_json(path: Path) -> dict[str, int]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"--labels {path} cannot be read as JSON ({error}).") from error
    table = content.get("labels", content) if isinstance(content, dict) else None
    if not isinstance(table, dict) or not all(isinstance(v, int) for v in table.values()):
        raise InputError(f"--labels {path} must hold organ names and whole numbers, or be a dataset.json.")
    return {name: value for name, value in table.items() if value != 0}


def _check_options(wanted: list[str], in_file: dict[str, int], labels: str) -> None:
    unknown = [name for name in wanted if name not in in_file]
    if unknown:
        raise InputError(f"--organs names {', '.join(unknown)}, but --labels only has {', '.join(in_file)}.")
    if len(set(wanted)) < len(wanted):
        raise InputError(f"--organs {', '.join(wanted)} names an organ twice.")
    if len(set(in_file.values())) < len(in_file) or 0 in in_file.values():
        raise InputError(f"--labels {labels!r} must give every organ its own number above 0.")


def _ignored(text: str | None, values: dict[int, int]) -> list[int]:
    items = _items(text)
    if not all(item.isdigit() for item in items):
        raise InputError(f"--ignore-labels {text!r} must be whole numbers, such as 5,6.")
    both = [item for item in items if values.get(int(item))]
    if both:
        raise InputError(f"--ignore-labels {', '.join(both)} is also given a name by --labels; drop one of the two.")
    return [int(item) for item in items]


def _items(text: str | None) -> list[str]:
    return [item.strip() for item in (text or "").split(",") if item.strip()]
