"""Names of the networks that can be planned; free of torch, so that the command line can list them."""

from __future__ import annotations

NETWORKS: dict[str, str] = {
    "plain": "nnU-Net's own",
    "context": "residual, for regions",
    "original": "the 3D U-Net of 2016",
    "ras": "separable with attention, for thick slices",
    "se": "the 3D U-Net with channel gates",
    "se-res": "residual with channel gates",
    "deep-res": "pre-activation residual, of 2018",
    "refine:plain": "nnU-Net's own in three passes",
    "refine:se-res": "se-res in three passes",
}
"""Name and what it means; ``nnunet_ext.planning.networks.PLANNERS`` has a planner of each for every preset."""


def describe_networks() -> str:
    """One line for the help of a command."""
    return "; ".join(f"{name}: {meaning}" for name, meaning in NETWORKS.items()) + "."
