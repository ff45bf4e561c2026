"""Whether the region that a page asks for is the one that a dataset was cut for, or a model trained on."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from nnunet_ext.errors import InputError
from nnunet_ext.roi.provenance import label_numbers
from nnunet_ext.roi.region import Region
from nnunet_ext.roi.sides import network_labels

NOT_CUT = ("min_retention", "grow_at_most")
"""Settings that change no region of a training case."""
PLACES = ("fallback", "plausible_mm")
"""Settings that say where to look, for training cases and new ones alike; a trained network works with others too."""
COPIES = ("jitter_vox", "copies", "seed")
"""Settings of the training copies, which a trained network has behind it."""


def differences(noted: Mapping[str, Any], asked: Region, but: Collection[str]) -> dict[str, str]:
    """Setting to what a file notes of it and what is asked for, where these are not the same.

    Args:
        noted: A region as JSON; settings that an older version did not know have their defaults.
        asked: What a page says.
        but: Settings that may differ.
    """
    usual = {name: field.default for name, field in Region.model_fields.items() if not field.is_required()}
    before = _as_json({**usual, **noted})
    now = _as_json(asked.model_dump(by_alias=True))
    return {
        key: f"{key} {json.dumps(before.get(key))} there and {json.dumps(value)} on the page"
        for key, value in now.items()
        if key not in but and before.get(key) != value
    }


def check_trained_on(folder: Path, described: Mapping[str, Any], asked: Region) -> None:
    """Refuse a region that a model was not trained on; how it is looked for and grows may be changed at any time.

    Args:
        folder: The trained model.
        described: Its dataset.json; an older version noted no region there, then the labels must fit.
        asked: What the page says.

    Raises:
        InputError: the region or the network's labels differ; what differs is named.
    """
    noted = described.get("nnunet_ext", {}).get("region")
    found = list(differences(noted, asked, (*NOT_CUT, *PLACES, *COPIES)).values()) if noted else []
    labels, wanted = label_numbers(described), network_labels(asked)
    if not found and labels != wanted:
        found = [f"labels {json.dumps(labels)} there and {json.dumps(wanted)} on the page"]
    if found:
        raise InputError(
            f"{folder} was trained on another region than the page asks for: {'; '.join(found)}; restore the page, or "
            "delete that folder and its dataset and train again."
        )


def _as_json(content: Any) -> dict[str, Any]:
    return dict(json.loads(json.dumps(content)))
