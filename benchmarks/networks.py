"""What do our networks cost beside nnU-Net's, at the same patch, depth and width?

Parameters, the values that nnU-Net's planner counts, the bytes that a training step keeps for its way back, peak memory
and speed, with nnU-Net's planned layers for each network, deep supervision and Dice + cross-entropy, single precision.
The bytes per counted value, relative to PlainConvUNet, are the ``memory_scale`` of nnunet_ext/planning/networks.py.

    python benchmarks/networks.py            # ten minutes on one busy core
    python benchmarks/networks.py --only RAS SERes
    python benchmarks/networks.py --device cuda --patch3d 96 160 160 --patch2d 512 512 --features 32
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from dynamic_network_architectures.building_blocks.helper import convert_dim_to_conv_op, get_matching_instancenorm
from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from nnunet_ext.planning.networks import (
    ContextPlanner,
    DeepResPlanner,
    OriginalPlanner,
    RASPlanner,
    RefinePlainPlanner,
    RefineSEResPlanner,
    SEPlanner,
    SEResPlanner,
    dotted_path,
)

CLASSES = 4
NETWORKS: dict[str, tuple[Any, dict[str, Any]]] = {
    "PlainConvUNet": (PlainConvUNet, {}),
    "ResidualEncoderUNet": (ResidualEncoderUNet, {}),
    "ContextUNet": (ContextPlanner, {}),
    "OriginalUNet": (OriginalPlanner, {}),
    "RASUNet": (RASPlanner, {}),
    "RASUNet, attention_reduction=4": (RASPlanner, {"attention_reduction": 4}),
    "RASUNet, attention=False": (RASPlanner, {"attention": False}),
    "SEUNet3D": (SEPlanner, {}),
    "SEResUNet": (SEResPlanner, {}),
    "DeepResUNet": (DeepResPlanner, {}),
    "RefinementUNet of PlainConvUNet": (RefinePlainPlanner, {}),
    "RefinementUNet of SEResUNet": (RefineSEResPlanner, {}),
    "RefinementUNet of SEResUNet, checkpoint_passes=True": (RefineSEResPlanner, {"checkpoint_passes": True}),
}
"""Network or its planner, and keywords that differ from the planner's."""
HEADER = (
    "| dim | network | parameters (10⁶) | planner's count (10⁶) | kept for the way back (MB) | bytes per count "
    "| scale | peak (MB) | iterations/s |\n|---|---|---|---|---|---|---|---|---|"
)


def arch_kwargs(dim: int, patch: list[int], features: int) -> dict[str, Any]:
    """Keywords as nnU-Net's planner writes them, for isotropic voxels."""
    _, strides, kernels, _, _ = get_pool_and_conv_props([1.0] * dim, patch, 4, 999999)
    stages, conv, norm = len(strides), convert_dim_to_conv_op(dim), get_matching_instancenorm(dimension=dim)
    return {
        "n_stages": stages,
        "features_per_stage": [min(features * 2**i, 512 if dim == 2 else 320) for i in range(stages)],
        "conv_op": dotted_path(conv),
        "kernel_sizes": kernels,
        "strides": strides,
        "n_conv_per_stage": [2] * stages,
        "n_conv_per_stage_decoder": [2] * (stages - 1),
        "conv_bias": True,
        "norm_op": dotted_path(norm),
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }


def build(name: str, dim: int, patch: list[int], features: int) -> torch.nn.Module:
    """A network with the layers of its planner."""
    kwargs, (kind, own) = arch_kwargs(dim, patch, features), NETWORKS[name]
    if kind is ResidualEncoderUNet:
        del kwargs["n_conv_per_stage"]
        blocks = [1, 3, 4, 6, 6, 6, 6, 6]
        kwargs["n_blocks_per_stage"] = blocks[: kwargs["n_stages"]]
        kwargs["n_conv_per_stage_decoder"] = 1
    elif kind is not PlainConvUNet:
        kwargs.update({**kind.layers(dim), **own})
        kind = kind.network
    lookups = ["conv_op", "norm_op", "dropout_op", "nonlin"]
    return get_network_from_plans(dotted_path(kind), kwargs, lookups, 1, CLASSES, deep_supervision=True)


def kept_bytes(network: torch.nn.Module, image: torch.Tensor) -> int:
    """Bytes of distinct tensors, other than parameters, that the forward pass saves for the backward pass."""
    parameters = {p.untyped_storage().data_ptr() for p in network.parameters()}
    saved: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        outputs = network(image)
    del outputs
    return sum(saved.values())


def step(network: torch.nn.Module, loss: torch.nn.Module, optimizer: Any, image: torch.Tensor) -> None:
    outputs = network(image)
    targets = [torch.randint(0, CLASSES, (len(y), 1, *y.shape[2:]), device=y.device) for y in outputs]
    optimizer.zero_grad()
    loss(outputs, targets).backward()
    optimizer.step()


def measure(name: str, dim: int, patch: list[int], options: argparse.Namespace) -> tuple[Any, ...]:
    """Parameters, count, kept bytes, peak bytes, iterations per second."""
    torch.manual_seed(0)
    imports = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    device, batch = torch.device(options.device), options.batch2d if dim == 2 else options.batch3d
    network = build(name, dim, patch, options.features).to(device).train()
    image = torch.randn(batch, 1, *patch, device=device)
    count = int(network.compute_conv_feature_map_size(patch))
    kept = kept_bytes(network, image) / batch
    plain = DC_and_CE_loss({"batch_dice": True, "smooth": 1e-5, "do_bg": False, "ddp": False}, {},
                           dice_class=MemoryEfficientSoftDiceLoss)  # fmt: skip
    loss = DeepSupervisionWrapper(plain, [2.0**-i for i in range(len(network(image)))])
    optimizer = torch.optim.SGD(network.parameters(), 1e-2, momentum=0.99, nesterov=True)
    step(network, loss, optimizer, image)
    start = time.perf_counter()
    for _ in range(options.steps):
        step(network, loss, optimizer, image)
    if device.type == "cuda":
        torch.cuda.synchronize()
    rate = options.steps / (time.perf_counter() - start)
    peak = (
        torch.cuda.max_memory_allocated()
        if device.type == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - imports
    )
    return sum(p.numel() for p in network.parameters()), count, kept, peak, rate


def rows(options: argparse.Namespace) -> Iterator[str]:
    """One line of the table per network, each measured in its own process, because peak memory never falls."""
    for dim, patch in ((3, options.patch3d), (2, options.patch2d)):
        reference = None
        for name, (kind, _) in NETWORKS.items():
            if options.only and not any(part in name for part in ("PlainConvUNet", *options.only)):
                continue
            if dim not in getattr(kind, "memory_scale", {2: 1, 3: 1}):
                continue
            command = [sys.executable, __file__, *sys.argv[1:], "--one", name, str(dim)]
            found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-5:]
            parameters, count, kept, peak, rate = map(float, found)
            reference = reference or kept / count
            yield (
                f"| {dim}D {'×'.join(map(str, patch))} | {name} | {parameters / 1e6:.2f} | {count / 1e6:.2f} "
                f"| {kept / 1e6:.1f} | {kept / count:.2f} | {reference / (kept / count):.3f} | {peak / 1e6:.0f} "
                f"| {rate:.2f} |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--patch3d", type=int, nargs=3, default=[32, 64, 64])
    parser.add_argument("--patch2d", type=int, nargs=2, default=[128, 128])
    parser.add_argument("--batch3d", type=int, default=2)
    parser.add_argument("--batch2d", type=int, default=8)
    parser.add_argument("--features", type=int, default=16)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--only", nargs="+", help="Parts of the names of networks; PlainConvUNet is always there.")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.one:
        name, dim = options.one[0], int(options.one[1])
        print(*measure(name, dim, options.patch2d if dim == 2 else options.patch3d, options))
        return
    print(HEADER)
    for row in rows(options):
        print(row, flush=True)


if __name__ == "__main__":
    main()
