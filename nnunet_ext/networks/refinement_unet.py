"""RefinementUNet: any network, run several times on the image and its own last answer."""

from __future__ import annotations

import pydoc
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from dynamic_network_architectures.architectures.abstract_arch import AbstractDynamicNetworkArchitectures
from torch import nn
from torch.utils.checkpoint import checkpoint

Logits: TypeAlias = torch.Tensor | list[torch.Tensor]

PACKAGES = ("nnunet_ext.networks.", "dynamic_network_architectures.architectures.")
"""Where networks may come from: plans travel with models, and must not be able to name any other code."""


class RefinementUNet(AbstractDynamicNetworkArchitectures):
    """A network that sees the image and the foreground probabilities of its previous pass, several times over.

    Use it where a first contour needs to be made consistent. It has hardly more weights than its base, but every pass
    costs the time of one base network, at prediction too, and without ``checkpoint_passes`` its memory.

    Source: clinical target volume of cervical cancer on CT, "recurrent loss", after Mosinska et al. 2018 (Beyond the
    pixel-wise loss for topology-aware delineation, CVPR), section 3.2: the first pass gets zeros, later ones the image
    and the previous result, through which the gradient runs. Differs: the topology term is not used, as in the CTV
    paper; softmax probabilities of all foreground classes are fed back.

    Args:
        base: Dotted path of the network, from ``nnunet_ext.networks`` or dynamic_network_architectures.
        passes: How often it is run, 3 in Mosinska's paper.
        checkpoint_passes: Keep one pass's activations at a time and compute the others again on the way back; takes a
            third longer. Norms with running statistics count every pass twice then.
        every_pass: Give the outputs of all passes in training, for a loss on each. False gives the last alone, as
            every trainer of nnU-Net expects it; it can be switched at any time.
        regions: The classes overlap (nnU-Net's regions), so that each has a sigmoid and none is background.
        input_channels: Channels of the image.
        num_classes: Channels of the output.
        keywords: As the base takes them.

    Shape:
        image: (B, C, [Z,] Y, X).
        returns: what the base returns for the last pass; in training with ``every_pass`` a list of that, one per pass.

    Raises:
        ValueError: ``base`` is no network of these two packages, no pass, or no foreground class.
    """

    def __init__(
        self,
        *,
        base: str,
        passes: int = 3,
        checkpoint_passes: bool = False,
        every_pass: bool = True,
        regions: bool = False,
        input_channels: int,
        num_classes: int,
        **keywords: Any,
    ) -> None:
        super().__init__()
        if passes < 1:
            raise ValueError(f"passes must be 1 or more, got {passes}.")
        self.fed_back = num_classes if regions else num_classes - 1
        if self.fed_back < 1:
            raise ValueError(f"{num_classes} class without regions is background alone: nothing to feed back.")
        kind = find_network(base)
        if issubclass(kind, RefinementUNet):
            raise ValueError(f"base is {base} itself; ask for more passes instead.")
        self.passes, self.checkpoint_passes, self.every_pass = passes, checkpoint_passes, every_pass
        self.regions = regions
        self.unet = kind(input_channels=input_channels + self.fed_back, num_classes=num_classes, **keywords)
        self.key_to_encoder = f"unet.{self.unet.key_to_encoder}"
        self.key_to_stem = f"unet.{self.unet.key_to_stem}"
        self.keys_to_in_proj = tuple(f"unet.{key}" for key in self.unet.keys_to_in_proj)

    @property
    def decoder(self) -> nn.Module:
        """Of the base; nnU-Net switches its ``deep_supervision``."""
        return self.unet.decoder

    @property
    def initialize(self) -> Callable[[nn.Module], None]:
        """The base's initialisation."""
        return self.unet.initialize

    def forward(self, image: torch.Tensor) -> Logits | list[Logits]:
        """The output of the last pass, or of every one."""
        previous = image.new_zeros((image.shape[0], self.fed_back, *image.shape[2:]))
        outputs: list[Logits] = []
        for number in range(self.passes):
            if number > 0:
                previous = self.foreground(outputs[-1]).to(image.dtype)
            outputs.append(self._pass(torch.cat([image, previous], 1)))
            if not (self.training and self.every_pass):
                del outputs[:-1]
        return outputs if self.training and self.every_pass else outputs[0]

    def foreground(self, logits: Logits) -> torch.Tensor:
        """Probabilities that the next pass sees, in single precision at least; (B, fed back, [Z,] Y, X)."""
        finest = logits if isinstance(logits, torch.Tensor) else logits[0]
        finest = finest.to(torch.promote_types(finest.dtype, torch.float32))
        return torch.sigmoid(finest) if self.regions else torch.softmax(finest, 1)[:, 1:]

    def _pass(self, inputs: torch.Tensor) -> Logits:
        if self.checkpoint_passes and self.training:
            return checkpoint(self.unet, inputs, use_reentrant=False)
        return self.unet(inputs)

    def compute_conv_feature_map_size(self, input_size: Sequence[int]) -> int:
        """The base's count times the passes that are in memory at once, for nnU-Net's planner.

        Args:
            input_size: Of the patch, without batch and channels.
        """
        count: int = self.unet.compute_conv_feature_map_size(input_size)
        return count * (1 if self.checkpoint_passes else self.passes)


def find_network(name: str) -> type[nn.Module]:
    """The network class with this dotted path.

    Nothing outside the two packages is imported, and what they have imported from elsewhere is no network either.

    Raises:
        ValueError: there is no such class in them.
    """
    found = pydoc.locate(name) if str(name).startswith(PACKAGES) else None
    if isinstance(found, type) and issubclass(found, nn.Module) and found.__module__.startswith(PACKAGES):
        return found
    raise ValueError(f"base must be the dotted path of a network in {' or '.join(PACKAGES)}, got {name!r}.")
