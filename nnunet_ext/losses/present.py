"""Organs that nobody contoured in a case: they are not background there, so no loss may say they are.

Where organ a was not contoured, a background voxel says "background or a". The probabilities of both are added, and a's
own score is switched off, before any loss sees them; overlapping classes (regions) have a score each, which is switched
off alone. A loss then cannot tell the difference between a and background in that case, and sends no gradient to a's
score other than through their sum. Cases whose organs were all contoured pass unchanged, to the last bit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

NEVER = -1e4
"""A logit whose probability is 0 in single and in half precision, and which half precision can hold."""


def without_absent(logits: torch.Tensor, absent: torch.Tensor, *, regions: bool) -> torch.Tensor:
    """Logits that say nothing of organs that were not contoured.

    Args:
        logits: Of the network.
        absent: True where a head's organ was not contoured in the sample; never the background.
        regions: Heads are independent (sigmoid) instead of sharing one softmax whose first head is the background.

    Shape:
        logits: (B, C, ...) floating point; absent: (B, C) bool.
        returns: (B, C, ...), single precision.

    Raises:
        ValueError: the shapes differ, or a background is absent.
    """
    if absent.shape != logits.shape[:2]:
        raise ValueError(f"absent {tuple(absent.shape)} does not fit logits {tuple(logits.shape)}.")
    wide = logits.float()
    off = absent.reshape(*absent.shape, *[1] * (logits.dim() - 2))
    quiet = wide.masked_fill(off, NEVER)
    if regions:
        return quiet
    if bool(absent[:, 0].any()):
        raise ValueError("the background cannot be absent.")
    union = off.clone()
    union[:, 0] = True
    background = wide.masked_fill(~union, float("-inf")).logsumexp(dim=1, keepdim=True)
    return torch.cat([background, quiet[:, 1:]], dim=1)


def erase_absent(target: torch.Tensor, absent: torch.Tensor, *, regions: bool) -> torch.Tensor:
    """A target without voxels of organs that are said not to be contoured.

    A region may be incomplete and still have voxels; a label map may contradict the list of contoured organs.

    Shape:
        target: (B, 1, ...) label numbers, or (B, C, ...) one channel per region, perhaps followed by that of the ignore
            label; absent: (B, C) bool.
        returns: as target.
    """
    flat = [1] * (target.dim() - 2)
    if regions:
        off = torch.zeros(target.shape[:2], dtype=torch.bool, device=target.device)
        off[:, : absent.shape[1]] = absent
        return target.masked_fill(off.reshape(*off.shape, *flat), 0)
    result = target
    for label in torch.nonzero(absent.any(dim=0)).flatten().tolist():
        here = absent[:, label].reshape(-1, 1, *flat)
        result = result.masked_fill(here & (target == label), 0)
    return result


class PresentOnly(nn.Module):
    """A network whose outputs say nothing of absent organs; parameters and everything else are the network's.

    Args:
        network: Gives a tensor, or lists of tensors (deep supervision, passes) with the batch first.
        absent: As in ``without_absent``.
        regions: As in ``without_absent``.
    """

    def __init__(self, network: nn.Module, absent: torch.Tensor, *, regions: bool) -> None:
        super().__init__()
        self.network, self.absent, self.regions = network, absent, regions

    def forward(self, image: torch.Tensor) -> Any:
        """The network's output in its own structure, every tensor as ``without_absent`` leaves it."""
        return self._changed(self.network(image))

    def _changed(self, output: Any) -> Any:
        if isinstance(output, (list, tuple)):
            return [self._changed(part) for part in output]
        return without_absent(output, self.absent, regions=self.regions)
