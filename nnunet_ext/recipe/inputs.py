"""Which cases a folder holds, by nnU-Net's convention ``<case>_0000.nii.gz``; what does not fit is named."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nnunet_ext.errors import InputError

CHANNEL = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})\.nii\.gz")


@dataclass(frozen=True)
class InputCase:
    """One case to predict.

    Args:
        case: Identifier.
        channels: One file per channel, in order; missing ones are None.
    """

    case: str
    channels: tuple[Path | None, ...]

    def require_channels(self, needed: Mapping[str, int]) -> tuple[Path, ...]:
        """The files of some channels.

        Args:
            needed: Channel name to the number of its file.

        Raises:
            InputError: a channel is missing; it is named.
        """
        found = {name: self.channels[number] for name, number in needed.items()}
        missing = [f"{name} ({self.case}_{needed[name]:04d}.nii.gz)" for name, path in found.items() if path is None]
        if missing:
            raise InputError(
                f"case {self.case} lacks channel {', '.join(missing)}; add the file or leave the case out."
            )
        return tuple(path for path in found.values() if path is not None)


def find_cases(folder: Path, channels: int) -> tuple[list[InputCase], dict[str, str]]:
    """Cases of a folder, and for every image file that is none the reason.

    Args:
        folder: Where they lie.
        channels: How many channels the recipe's dataset has.

    Raises:
        InputError: no folder, or nothing in it that could be predicted.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; give the folder that holds <case>_0000.nii.gz.")
    found: dict[str, dict[int, Path]] = {}
    refused: dict[str, str] = {}
    for path in sorted(folder.iterdir()):
        match = CHANNEL.fullmatch(path.name)
        if match and int(match["channel"]) < channels:
            found.setdefault(match["case"], {})[int(match["channel"])] = path
        elif match:
            refused[path.name] = f"channel {match['channel']} is not known, the recipe's dataset has {channels}"
        elif path.name.endswith((".nii.gz", ".nii", ".nrrd", ".mha", ".dcm")) and not path.name.startswith("."):
            refused[path.name] = "not named <case>_0000.nii.gz; rename (and compress) it"
    if not found and not refused:
        raise InputError(f"{folder} holds no images; expected <case>_0000.nii.gz.")
    cases = [InputCase(case, tuple(files.get(i) for i in range(channels))) for case, files in sorted(found.items())]
    return cases, refused
