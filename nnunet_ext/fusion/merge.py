"""Label maps of several models to one, by look-up tables inside the box of any label. Arrays only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nnunet_ext.evaluation.surfaces import Extent, foreground_extent
from nnunet_ext.fusion.rules import FusionTable


@dataclass(frozen=True)
class Fused:
    """A fused label map and the voxels that more than one owner claimed.

    Args:
        labels: (Z, Y, X) uint8, or uint16 where a label exceeds 255.
        contested: ``"A|B"`` to the number of voxels that both owners claimed and organ A won. A voxel with
            three claims counts once for each loser.
    """

    labels: NDArray[np.unsignedinteger]
    contested: dict[str, int]


def fuse_labels(
    predictions: Mapping[str, NDArray[np.integer]],
    table: FusionTable,
    probabilities: Mapping[str, Mapping[str, NDArray[np.floating]]] | None = None,
) -> Fused:
    """Give every voxel to the owner that claims it.

    Model m claims a voxel for organ c when its map says c there and m owns c. No claim is background, one
    claim is that organ, several are decided by the table's priority, or by the highest probability that an
    owner gives its organ there (equal ones by priority). What a model says about organs of others counts for
    nothing. The order of the inputs has no influence.

    Source: the combined U-Net of StructSeg 2019; the rules for conflicts are ours.

    Args:
        predictions: Model to its label map, in that model's numbers.
        table: Owners, numbers and priority.
        probabilities: Model to {organ: probability}; needed for ``on_conflict = "probability"``.

    Shape:
        predictions, probabilities: (Z, Y, X), one grid for all.
        returns: (Z, Y, X).

    Raises:
        ValueError: an owner's map or probabilities are missing, or shapes differ.
    """
    missing = [model for model in table.owners if model not in predictions]
    if missing:
        raise ValueError(f"no label map of {missing}, which own organs; got {sorted(predictions)}.")
    owned = [predictions[model] for model in table.owners]
    extent = foreground_extent(*owned)
    ranks = [_claims(predictions[model][extent], table, model) for model in table.owners]
    winner, several = _first(ranks, len(table.priority))
    disputed = np.flatnonzero(several)
    claims = np.stack([rank.ravel()[disputed] for rank in ranks])
    if table.on_conflict == "probability":
        winner.ravel()[disputed] = _most_probable(claims, disputed, table, probabilities, extent, owned[0].shape)
    final = np.array([table.organs[organ] for organ in table.priority] + [0])
    labels = np.zeros(owned[0].shape, dtype=np.uint8 if final.max() < 256 else np.uint16)
    labels[extent] = final.astype(labels.dtype)[winner]
    return Fused(labels, _count_contested(claims, winner.ravel()[disputed], table))


def _first(
    ranks: Sequence[NDArray[np.unsignedinteger]], none: int
) -> tuple[NDArray[np.unsignedinteger], NDArray[np.bool_]]:
    """The lowest rank at each voxel, and where there is more than one claim."""
    winner = ranks[0].copy()
    several = np.zeros(winner.shape, dtype=bool)
    for rank in ranks[1:]:
        several |= (winner < none) & (rank < none)
        np.minimum(winner, rank, out=winner)
    return winner, several


def _claims(labels: NDArray[np.integer], table: FusionTable, model: str) -> NDArray[np.unsignedinteger]:
    """Rank in the priority of the organ claimed at each voxel; for no claim the number of organs."""
    none = len(table.priority)
    owned = table.owned_labels(model)
    top = max(int(labels.max(initial=0)), *owned.values())
    lookup = np.full(top + 1, none, dtype=np.uint8 if none < 256 else np.uint16)
    for rank, organ in enumerate(table.priority):
        if organ in owned:
            lookup[owned[organ]] = rank
    return np.asarray(lookup[labels])


def _most_probable(
    claims: NDArray[np.unsignedinteger],
    disputed: NDArray[np.intp],
    table: FusionTable,
    probabilities: Mapping[str, Mapping[str, NDArray[np.floating]]] | None,
    extent: Extent,
    shape: tuple[int, ...],
) -> NDArray[np.unsignedinteger]:
    """Rank of the claim with the highest probability at each disputed voxel."""
    box = tuple(side.stop - side.start for side in extent)
    inside = np.unravel_index(disputed, box)
    where = tuple(index + side.start for index, side in zip(inside, extent, strict=True))
    chance = np.full(claims.shape, -np.inf)
    for row, model in enumerate(table.owners):
        for rank in map(int, np.unique(claims[row])):
            if rank == len(table.priority):
                continue
            organ = table.priority[rank]
            given = (probabilities or {}).get(model, {}).get(organ)
            if given is None or given.shape != shape:
                raise ValueError(
                    f"on_conflict is probability, but model {model!r} gives organ {organ!r} "
                    f"{'no probabilities' if given is None else f'shape {given.shape}, expected {shape}'}."
                )
            here = claims[row] == rank
            chance[row, here] = given[tuple(index[here] for index in where)]
    tied = np.where(chance == chance.max(axis=0), claims, len(table.priority))
    return np.asarray(tied.min(axis=0), dtype=claims.dtype)


def _count_contested(
    claims: NDArray[np.unsignedinteger], winner: NDArray[np.unsignedinteger], table: FusionTable
) -> dict[str, int]:
    none = len(table.priority)
    losing = (claims < none) & (claims != winner)
    pairs = np.broadcast_to(winner, claims.shape)[losing].astype(np.intp) * none + claims[losing]
    counts = np.bincount(pairs, minlength=0)
    return {
        f"{table.priority[pair // none]}|{table.priority[pair % none]}": int(counts[pair])
        for pair in map(int, np.flatnonzero(counts))
    }
