"""Organ names and their left-right partners after TG-263: data and look-ups only.

Source: AAPM TG-263 (Mayo et al. 2018): laterality is the suffix ``_L`` / ``_R``.
"""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Mapping

SYNONYMS: dict[str, str] = {
    # OpenKBP's names
    "leftparotid": "Parotid_L",
    "rightparotid": "Parotid_R",
    # frequent spellings of the source datasets, letters and digits only, lower case
    "brainstem": "Brainstem",
    "oesophagus": "Esophagus",
    "opticnervechiasm": "OpticChiasm",
    "pituitarygland": "Pituitary",
    "spinalcord": "SpinalCord",
    "esophagus": "Esophagus",
    "larynx": "Larynx",
    "mandible": "Bone_Mandible",
    "opticchiasm": "OpticChiasm",
    "chiasm": "OpticChiasm",
    "pituitary": "Pituitary",
}
_PAIRED = {
    "cochlea": "Cochlea",
    "eye": "Eye",
    "femoralhead": "Femur_Head",
    "innerear": "Ear_Internal",
    "lens": "Lens",
    "lung": "Lung",
    "mandible": "Bone_Mandible",
    "middleear": "Ear_Middle",
    "opticnerve": "OpticNrv",
    "parotid": "Parotid",
    "parotidgland": "Parotid",
    "submandibular": "Glnd_Submand",
    "submandibulargland": "Glnd_Submand",
    "temporallobe": "Lobe_Temporal",
    "tmj": "Joint_TM",
    "tmjoint": "Joint_TM",
}
_SIDES = {"_L": ("{}l", "{}left", "left{}"), "_R": ("{}r", "{}right", "right{}")}
SYNONYMS.update(
    (form.format(stem), name + side)
    for stem, name in _PAIRED.items()
    for side, forms in _SIDES.items()
    for form in forms
)
"""Spelling (lower case, letters and digits only) to TG-263 name."""


def tg263_name(name: str) -> str:
    """The TG-263 name of a known spelling; unknown names come back unchanged."""
    return SYNONYMS.get("".join(c for c in name.lower() if c.isalnum()), name)


def partner(name: str) -> str | None:
    """Name of the organ on the other side (``Eye_L`` → ``Eye_R``), or None for an unpaired organ."""
    swaps = {"_L": "_R", "_R": "_L"}
    return name[:-2] + swaps[name[-2:]] if name[-2:] in swaps else None


def swap_pairs(labels: Mapping[str, int]) -> list[tuple[int, int]]:
    """Pairs (left label, right label) among the given organs.

    Args:
        labels: Organ name to label number; names follow TG-263.
    """
    return [
        (value, labels[name[:-2] + "_R"])
        for name, value in labels.items()
        if name.endswith("_L") and name[:-2] + "_R" in labels
    ]


def colours(names: Iterable[str]) -> dict[str, tuple[float, float, float]]:
    """RGB colours (0 to 1) that can be told apart; left and right share a hue, right is darker.

    Hues follow the golden ratio in the order of the names, so neighbours in a table differ most.
    """
    hues: dict[str, float] = {}
    found = {}
    for name in names:
        stem = name[:-2] if partner(name) else name
        hue = hues.setdefault(stem, len(hues) * 0.618034 % 1.0)
        found[name] = colorsys.hsv_to_rgb(hue, 0.85, 0.65 if name.endswith("_R") else 1.0)
    return found
