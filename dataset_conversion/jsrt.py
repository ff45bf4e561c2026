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
all, score from probabilities. PNG copies have 8 bits and often an inverted palette; the report counts them. A mask
without a pixel is refused, so there is no ``--empty`` here.
Several pictures of one name: the raw film goes before its PNG copies, and the GIF of a mask before the PNG beside it
(``heart/`` or ``heart_png/``). Of others that differ none is taken: a bone-suppressed copy or a second observer's masks
must lie outside the folder. A PNG is no film inside a folder named after a mask (``masks``, ``labels``, ``lungs``, …),
nor with a handful of grey values.
"""

from __future__ import annotations

import filecmp
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
NO_FILMS = {*FOLDERS, "mask", "masks", "label", "labels", "lung", "lungs", "clavicle", "clavicles"}
"""Folder names, letters only, below which a PNG is no film; our choice, from the copies in circulation."""
FILE_NAME = re.compile(r"(JPC(?:LN|NN)[0-9]{3})(?:\.img)?\.(?:img|png|gif)", re.IGNORECASE)
"""The whole name: JPCLN001-lungs.png is another picture than JPCLN001."""
RAW, COPY, MASKS = ".img", ".png", (".gif", ".png")
COPIES_NOTE = "{count} of {total} films are 8-bit PNG copies, not the 12-bit originals"
NEVER_EMPTY = True
"""A mask without a pixel is refused."""

OPTIONS = (Option("--size", "Edge of the written image in pixels.", default="256", choices=("128", "256", "512")),)


def open_source(folder: Path, size: str = "256") -> Source:
    """All films under the folder.

    Raises:
        InputError: there is no film, or no mask of any structure.
    """
    found = _find(folder)
    films = {name: _chosen_film(pictures.films) for name, pictures in found.items() if pictures.films}
    if not films:
        raise InputError(
            f"{folder} holds no film named like JPCLN001.IMG, or JPCLN001.png outside folders named masks, labels, "
            "lungs or after an organ; give the folder with films and masks."
        )
    if not any(pictures.masks for pictures in found.values()):
        raise InputError(
            f"{folder} holds no SCR mask, expected folders {', '.join(FOLDERS)} (with a space or _) of GIF or PNG."
        )
    cases = [_case(name, film, found[name].masks, int(size)) for name, film in films.items()]
    copies = sum(film.path.suffix.lower() != RAW for film in films.values())
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


@dataclass
class _Pictures:
    """All files of one identifier that could be its film, and those that could be its masks, by structure."""

    films: list[Path] = field(default_factory=list)
    masks: dict[str, list[Path]] = field(default_factory=lambda: defaultdict(list))


@dataclass(frozen=True)
class _Chosen:
    """A file, and what speaks against it."""

    path: Path
    fault: str = ""


def _find(folder: Path) -> dict[str, _Pictures]:
    """Identifier to its pictures."""
    pictures: dict[str, _Pictures] = defaultdict(_Pictures)
    for path in sorted(folder.rglob("*")):
        found = FILE_NAME.fullmatch(path.name)
        if not found or not path.is_file():
            continue
        ending, structure = path.suffix.lower(), FOLDERS.get(_letters(path.parent))
        if structure and ending in MASKS:
            pictures[found[1].upper()].masks[structure].append(path)
        elif ending == RAW or (ending == COPY and not _is_below_masks(path, folder)):
            pictures[found[1].upper()].films.append(path)
    return dict(pictures)


def _is_below_masks(path: Path, folder: Path) -> bool:
    return any(_letters(parent) in NO_FILMS for parent in path.relative_to(folder).parents)


def _letters(folder: Path) -> str:
    """Name of a folder, letters only, without the ending of a folder of PNG copies."""
    return "".join(c for c in folder.name.lower() if c.isalpha()).removesuffix("png")


def _chosen_film(films: Sequence[Path]) -> _Chosen:
    """The raw film if there is one, else the only picture that can be a film."""
    raw = [path for path in films if path.suffix.lower() == RAW]
    if len(films) > 1 and not raw:
        from nnunet_ext.conversion.radiograph import is_mask_picture  # numpy: not for --help

        films = [path for path in films if not is_mask_picture(path)] or films
    return _only_one(raw or films, "film")


def _chosen_mask(structure: str, masks: Sequence[Path]) -> _Chosen:
    """The GIF of a mask and of its PNG copy, if there are no others."""
    gifs = {_place(path) for path in masks if path.suffix.lower() != COPY}
    originals = [path for path in masks if path.suffix.lower() != COPY or _place(path) not in gifs]
    return _only_one(originals, f"mask of {structure}")


def _place(path: Path) -> tuple[Path, str]:
    return path.parent.parent, _letters(path.parent)


def _only_one(paths: Sequence[Path], what: str) -> _Chosen:
    """The first of equal pictures; at fault where they differ."""
    first, *others = paths
    for other in others:
        if not filecmp.cmp(first, other, shallow=False) and not _show_the_same(first, other):
            return _Chosen(first, f"{first} and {other} differ, and both could be the {what}; leave one of them there.")
    return _Chosen(first)


def _show_the_same(first: Path, other: Path) -> bool:
    if RAW in (first.suffix.lower(), other.suffix.lower()):
        return False
    from nnunet_ext.conversion.radiograph import is_same_picture  # numpy: not for --help

    return is_same_picture(first, other)


def _case(name: str, film: _Chosen, masks: Mapping[str, Sequence[Path]], size: int) -> RadiographCase:
    chosen = {organ: _chosen_mask(organ, masks[organ]) for organ in ORGANS if organ in masks}
    faults = [found.fault for found in (film, *chosen.values()) if found.fault]
    if missing := [organ for organ in ORGANS if organ not in masks]:
        faults.append(f"{film.path} has no mask of {', '.join(missing)}; add the SCR mask or leave the film out.")
    paths = {organ: found.path for organ, found in chosen.items()}
    return RadiographCase(name, film.path, paths, size, fault=" ".join(faults))
