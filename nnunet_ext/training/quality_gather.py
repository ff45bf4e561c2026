"""The gather of a distributed training: what every process must know of the samples of all others."""

from __future__ import annotations

import torch
from torch import distributed


def gather_rows(rows: torch.Tensor, device: torch.device) -> tuple[torch.Tensor, int]:
    """Rows of all processes in the order of their ranks; processes may have different numbers of rows.

    Args:
        rows: (n, k), no gradient; the same k everywhere.
        device: Where the processes exchange tensors.

    Shape:
        returns: (N, k) where rows were, and the number of the caller's first row.
    """
    world = distributed.get_world_size()
    mine = torch.tensor([len(rows)], device=device)
    counts = [torch.zeros_like(mine) for _ in range(world)]
    distributed.all_gather(counts, mine)
    lengths = [int(count) for count in counts]
    padded = torch.zeros((max(lengths), rows.shape[1]), dtype=rows.dtype, device=device)
    padded[: len(rows)] = rows
    parts = [torch.zeros_like(padded) for _ in range(world)]
    distributed.all_gather(parts, padded)
    gathered = torch.cat([part[:n] for part, n in zip(parts, lengths, strict=True)]).to(rows.device)
    return gathered, sum(lengths[: distributed.get_rank()])
