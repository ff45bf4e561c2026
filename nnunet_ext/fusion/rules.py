"""The fusion table: which model owns which organ, and who wins a voxel that two owners claim."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from nnunet_ext.errors import InputError
from nnunet_ext.io.atomic import read_json, write_json

VERSION = 1
ON_CONFLICT = ("priority", "probability")


@dataclass(frozen=True)
class FusionTable:
    """Owners of the organs of a composed model.

    Source: the combined U-Net of StructSeg 2019 gives every organ one owner; conflicts and priority are ours.

    Args:
        organs: Organ name to its label in the final map, in the order of the table.
        owner: Organ name to the model whose word counts for it.
        models: Model to {organ: label in that model's maps}. A model may know organs that it does not own.
        priority: Every organ once; the first wins a voxel that several owners claim.
        on_conflict: ``priority``, or ``probability``: the owner with the highest probability wins, then the
            priority.
        channels: Channel names of the dataset that the models were chosen on, in the order of the files ``_0000``,
            ``_0001``, ...; empty in tables for ``nnunet-ext fuse``, which reads no image, and of older versions.

    Raises:
        InputError: an owner or organ is unknown, an owner does not know its organ, labels repeat, the
            priority is not exactly the list of organs, or the channels are no different names.
    """

    organs: Mapping[str, int]
    owner: Mapping[str, str]
    models: Mapping[str, Mapping[str, int]]
    priority: Sequence[str]
    on_conflict: Literal["priority", "probability"] = "priority"
    channels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a table that contradicts itself."""
        self._check_labels()
        self._check_owners()
        self._check_priority()
        if not all(isinstance(name, str) for name in self.channels) or len(set(self.channels)) < len(self.channels):
            raise InputError(f"channels are {list(self.channels)}, expected a different name for each file.")

    @property
    def owners(self) -> list[str]:
        """Models that own at least one organ, in the order of the table's models."""
        return [model for model in self.models if model in self.owner.values()]

    def owned_labels(self, model: str) -> dict[str, int]:
        """The organs that a model owns, with their labels in that model's maps."""
        return {organ: self.models[model][organ] for organ in self.organs if self.owner[organ] == model}

    def only(self, organs: Collection[str]) -> FusionTable:
        """The table for some of the organs, their label numbers unchanged; conflicts with others are nobody's then.

        Raises:
            InputError: an organ is not in the table, or none is named.
        """
        unknown = [organ for organ in organs if organ not in self.organs]
        if unknown or not organs:
            raise InputError(
                f"{', '.join(unknown) or 'nothing'} is no organ to contour; known are {', '.join(self.organs)}."
            )
        return replace(
            self,
            organs={organ: number for organ, number in self.organs.items() if organ in organs},
            owner={organ: model for organ, model in self.owner.items() if organ in organs},
            priority=[organ for organ in self.priority if organ in organs],
        )

    @classmethod
    def from_dict(cls, content: Any, source: str = "the fusion table") -> FusionTable:
        """The table in a parsed JSON or YAML page.

        Args:
            content: The parsed page.
            source: What to call it in a message.

        Raises:
            InputError: a field is missing, has another form or version, or the table contradicts itself.
        """
        if not isinstance(content, dict):
            raise InputError(f"{source} must be an object with organs, owner, models and priority.")
        if content.get("version", VERSION) != VERSION:
            raise InputError(
                f"{source} has version {content['version']!r}, this nnunet_ext reads {VERSION}; run select again."
            )
        content = {"channels": [], **content}
        for key, kind in {"organs": dict, "owner": dict, "models": dict, "priority": list, "channels": list}.items():
            if not isinstance(content.get(key), kind):
                wanted = "a list" if kind is list else "an object"
                raise InputError(f'{source}: "{key}" is {content.get(key)!r}, expected {wanted}.')
        try:
            return cls(
                content["organs"],
                content["owner"],
                content["models"],
                content["priority"],
                content.get("on_conflict", "priority"),
                tuple(content["channels"]),
            )
        except InputError as error:
            raise InputError(f"{source}: {error}") from error

    @classmethod
    def load(cls, path: Path) -> FusionTable:
        """Read fusion.json.

        Raises:
            InputError: the file is missing, is not JSON, or contradicts itself.
        """
        try:
            content = read_json(path)
        except InputError as error:
            raise InputError(f"{error} `nnunet-ext select` writes it.") from error
        return cls.from_dict(content, str(path))

    def as_dict(self) -> dict[str, Any]:
        """The table as it is written to JSON."""
        return {"version": VERSION, **asdict(self), "channels": list(self.channels)}

    def save(self, path: Path) -> None:
        """Write fusion.json, whole or not at all."""
        write_json(path, self.as_dict())

    def _check_labels(self) -> None:
        if not self.organs:
            raise InputError("no organ is listed; a fusion table needs at least one.")
        _check_numbers("organs", self.organs)
        for model, labels in self.models.items():
            if not isinstance(labels, Mapping):
                raise InputError(f"model {model!r} is {labels!r}, expected an object organ to label.")
            _check_numbers(f"model {model!r}", labels)

    def _check_owners(self) -> None:
        without = [organ for organ in self.organs if organ not in self.owner]
        unknown = [organ for organ in self.owner if organ not in self.organs]
        if without or unknown:
            raise InputError(
                f"every organ needs one owner; without owner: {without or 'none'}, owned but not an organ: "
                f"{unknown or 'none'}."
            )
        for organ, model in self.owner.items():
            if not isinstance(model, str) or model not in self.models:
                raise InputError(f"organ {organ!r} is owned by {model!r}, known models are {list(self.models)}.")
            if organ not in self.models[model]:
                raise InputError(
                    f"organ {organ!r} is owned by {model!r}, which knows only {list(self.models[model])}; "
                    "choose another owner."
                )

    def _check_priority(self) -> None:
        if self.on_conflict not in ON_CONFLICT:
            raise InputError(f"on_conflict is {self.on_conflict!r}, expected one of {list(ON_CONFLICT)}.")
        if not all(isinstance(organ, str) for organ in self.priority):
            raise InputError(f"priority is {list(self.priority)}, expected the names of the organs.")
        if sorted(self.priority) != sorted(self.organs):
            raise InputError(
                "priority must list every organ once; "
                f"missing {sorted(set(self.organs) - set(self.priority))}, "
                f"unknown {sorted(set(self.priority) - set(self.organs))}, "
                f"{len(self.priority)} entries for {len(self.organs)} organs."
            )


def default_priority(volumes_ml: Mapping[str, float], first: Sequence[str] = ()) -> list[str]:
    """Organs of the small-region models first, then all others from the smallest to the largest.

    A small organ loses more by giving a voxel away than a large one does; our choice.

    Args:
        volumes_ml: Organ to its median volume in the training cases, in ml; equal volumes go by name.
        first: Organs that win over all others, in this order.

    Raises:
        InputError: an organ in ``first`` has no volume or stands there twice.
    """
    if len(set(first)) != len(first) or not set(first) <= set(volumes_ml):
        raise InputError(f"first is {list(first)}, expected different organs out of {list(volumes_ml)}.")
    rest = sorted((volume, organ) for organ, volume in volumes_ml.items() if organ not in first)
    return [*first, *(organ for _, organ in rest)]


def _check_numbers(where: str, labels: Mapping[str, int]) -> None:
    values = list(labels.values())
    if not all(isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**16 for value in values):
        raise InputError(f"{where}: labels are {values}, expected whole numbers from 1 to 65535.")
    if len(set(values)) != len(values):
        raise InputError(f"{where}: labels are {values}, expected a different number for each organ.")
