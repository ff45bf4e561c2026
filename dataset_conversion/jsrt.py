"""Chest films of JSRT with the masks of SCR: both lungs, the heart and both clavicles, which overlap.

Source: JSRT ``All247images/JPCLN001.IMG`` … ``JPCNN093.IMG`` (raw), or 8-bit PNG copies of them; SCR
``fold1|fold2/masks/<structure>/<ID>.gif`` (or PNG), structure folders ``left lung``, ``right lung``, ``heart``,
``left clavicle``, ``right clavicle``. Both anywhere below the folder; ``_`` for the space is fine.
Citation: Shiraishi et al., AJR 2000;174:71-74; van Ginneken et al., Med Image Anal 2006;10:19-40.
Licence: for research, on registration; the data may not be redistributed.
Modality: digitised film, written as CR with lungs dark, 256×256 pixels of 1.4 mm (``--size``), one slice per case.
Cases: 247, of which a third (82) is set aside by ``--seed`` as test cases (imagesTs, labelsTs), as the study of quality
weighting does at random; SCR's own folds are the odd and the even numbers.
Known faults: "left" is the patient's left, on the right of the picture; swapped masks are refused. 88 % of a clavicle
is lung, so every overlap has a label of its own and dataset.json has regions: an exported label map cannot hold them
all, score from probabilities. PNG copies have 8 bits and often an inverted palette; the report counts them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from nnunet_ext.conversion.source import Option, RadiographCase, Source, in_order
from nnunet_ext.errors import InputError

ORGANS = {"Lung_L": 1, "Lung_R": 2, "Heart": 3, "Clavicle_L": 4, "Clavicle_R": 5}
FOLDERS = {
    "leftlung": "Lung_L",
    "rightlung": "Lung_R",
    "heart": "Heart",
    "leftclavicle": "Clavicle_L",
    "rightclavicle": "Clavicle_R",
}
"""Folder name, letters only, to structure."""
PAINTING = (1, 2, 4, 8 + 1, 16 + 2)
"""What an exported label map shows: a clavicle pixel counts as lung behind it, too."""
TEST_SHARE = 82 / 247
IDENTIFIER = re.compile(r"JPC(LN|NN)\d{3}")
RAW, COPY, MASKS = (".img",), (".png",), (".gif", ".png")
COPIES_NOTE = "{count} of {total} films are 8-bit PNG copies, not the 12-bit originals"

OPTIONS = (Option("--size", "Edge of the written image in pixels.", default="256", choices=("128", "256", "512")),)


def open_source(folder: Path, size: str = "256") -> Source:
    """All films under the folder.

    Raises:
        InputError: there is no film, or no mask of any structure.
    """
    films, masks = _find(folder)
    if not films:
        raise InputError(f"{folder} holds no film named like JPCLN001.IMG or JPCLN001.png; give the folder with both.")
    if not masks:
        raise InputError(
            f"{folder} holds no SCR mask, expected folders {', '.join(FOLDERS)} (with a space or _) of GIF or PNG."
        )
    cases = [_case(name, film, masks.get(name, {}), int(size)) for name, film in films.items()]
    copies = sum(film.suffix.lower() != ".img" for film in films.values())
    note = COPIES_NOTE.format(count=copies, total=len(films))
    return Source(
        name="jsrt",
        folder=folder,
        description="JSRT chest films with SCR masks of lungs, heart and clavicles",
        licence="for research, on registration with JSRT and SCR; no redistribution",
        reference="Shiraishi et al., AJR 2000;174:71-74; van Ginneken et al., Med Image Anal 2006;10:19-40",
        organs=ORGANS,
        cases=in_order(cases),
        channels=("CR",),
        test_share=TEST_SHARE,
        facts={"films": {"raw_12_bit": len(films) - copies, "png_8_bit": copies, "size": int(size)}},
        notes=(note,) if copies else (),
        reading={"size": size},
        painting=PAINTING,
    )


def _find(folder: Path) -> tuple[dict[str, Path], dict[str, dict[str, Path]]]:
    """Film, and masks by structure, of every identifier; the raw film and the GIF are preferred."""
    films: dict[str, Path] = {}
    masks: dict[str, dict[str, Path]] = {}
    for path in sorted(folder.rglob("JPC*"), key=lambda p: (p.suffix.lower() not in (".img", ".gif"), str(p))):
        found = IDENTIFIER.match(path.name.upper())
        if not found or not path.is_file():
            continue
        structure = _structure(path.parent.name)
        if structure and path.suffix.lower() in MASKS:
            masks.setdefault(found.group(), {}).setdefault(structure, path)
        elif not structure and path.suffix.lower() in (*RAW, *COPY):
            films.setdefault(found.group(), path)
    return films, masks


def _structure(folder_name: str) -> str | None:
    letters = "".join(c for c in folder_name.lower() if c.isalpha())
    return FOLDERS.get(letters.removesuffix("png"))


def _case(name: str, film: Path, masks: Mapping[str, Path], size: int) -> RadiographCase:
    missing = [organ for organ in ORGANS if organ not in masks]
    fault = f"{film} has no mask of {', '.join(missing)}; add the SCR mask or leave the film out." if missing else ""
    return RadiographCase(name, film, {organ: masks[organ] for organ in ORGANS if organ in masks}, size, fault=fault)
