"""What do our networks cost beside nnU-Net's: at the same width, at equal memory, at equal parameters?

Parameters, the values that nnU-Net's planner counts, the bytes that a training step keeps for its way back, peak memory
and speed, with nnU-Net's planned layers for each network, deep supervision and Dice + cross-entropy. Patch and depth
are the same for all; ``--equal`` chooses the features of the first stage of every network so that

- "width": they are the same for all (the bytes per counted value, relative to PlainConvUNet, are then the
  ``memory_scale`` of nnunet_ext/planning/networks.py);
- "memory": what a training step keeps, weights, gradients and momentum included, is at most PlainConvUNet's;
- "parameters": the number of parameters is as near to PlainConvUNet's as it gets.

    python benchmarks/networks.py            # ten minutes on one busy core
    python benchmarks/networks.py --only RAS SERes --equal memory
    python benchmarks/networks.py --device cuda --patch3d 96 160 160 --dims 3 --features 32 --amp bf16 --compile
"""

from __future__ import annotations

import argparse
import contextlib
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
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
    "| dim | network | features | parameters (10⁶) | planner's count (10⁶) | kept for the way back (MB) "
    "| bytes per count | scale | in training (MB) | peak (MB) | iterations/s |\n" + "|---" * 11 + "|"
)
BYTES_PER_PARAMETER = 12
"""Weight, gradient and momentum in single precision."""
AMP = {"off": None, "fp16": torch.float16, "bf16": torch.bfloat16}


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


def build(name: str, dim: int, patch: list[int], features: int, allow_init: bool = True) -> torch.nn.Module:
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
    return get_network_from_plans(
        dotted_path(kind), kwargs, lookups, 1, CLASSES, allow_init=allow_init, deep_supervision=True
    )


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


def precision(options: argparse.Namespace) -> contextlib.AbstractContextManager[Any]:
    """Autocast as the options say."""
    kind = AMP[options.amp]
    return contextlib.nullcontext() if kind is None else torch.autocast(torch.device(options.device).type, kind)


def shape_of(dim: int, options: argparse.Namespace) -> tuple[int, list[int]]:
    """Batch size and patch."""
    return (options.batch2d, options.patch2d) if dim == 2 else (options.batch3d, options.patch3d)


# --- width -----------------------------------------------------------------------------------------------------------


def parameters_of(name: str, dim: int, features: int, options: argparse.Namespace) -> int:
    with torch.device("meta"):
        network = build(name, dim, shape_of(dim, options)[1], features, allow_init=False)
    return sum(p.numel() for p in network.parameters())


def training_bytes(name: str, dim: int, features: int, options: argparse.Namespace) -> int:
    """What a training step keeps: for the way back, and weights, gradients and momentum."""
    batch, patch = shape_of(dim, options)
    network = build(name, dim, patch, features).to(options.device).train()
    with precision(options):
        kept = kept_bytes(network, torch.randn(batch, 1, *patch, device=options.device))
    return kept + BYTES_PER_PARAMETER * parameters_of(name, dim, features, options)


def chosen_width(name: str, dim: int, options: argparse.Namespace) -> int:
    """Features of the first stage under ``--equal``."""
    if options.equal == "width" or name == "PlainConvUNet":
        return int(options.features)
    if options.equal == "memory":
        limit = training_bytes("PlainConvUNet", dim, options.features, options)
        return widest(lambda features: training_bytes(name, dim, features, options) <= limit)
    wanted = parameters_of("PlainConvUNet", dim, options.features, options)
    below = widest(lambda features: parameters_of(name, dim, features, options) <= wanted)
    return min((below, below + 1), key=lambda f: abs(parameters_of(name, dim, f, options) - wanted))


def widest(fits: Callable[[int], bool]) -> int:
    """The largest width that fits, at least 1, for costs that grow with the width."""
    low, high = 1, 2
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


# --- cost ------------------------------------------------------------------------------------------------------------


class Training:
    """Training steps of one network as nnU-Net makes them, on noise."""

    def __init__(self, network: torch.nn.Module, options: argparse.Namespace) -> None:
        plain = DC_and_CE_loss({"batch_dice": True, "smooth": 1e-5, "do_bg": False, "ddp": False}, {},
                               dice_class=MemoryEfficientSoftDiceLoss)  # fmt: skip
        self.network: Any = torch.compile(network) if options.compile else network
        self.loss = DeepSupervisionWrapper(plain, [2.0**-i for i in range(99)])
        self.optimizer = torch.optim.SGD(network.parameters(), 1e-2, momentum=0.99, nesterov=True)
        self.scaler = torch.amp.GradScaler(torch.device(options.device).type, enabled=options.amp == "fp16")
        self.options = options

    def step(self, image: torch.Tensor) -> None:
        self.optimizer.zero_grad()
        with precision(self.options):
            outputs = self.network(image)
            targets = [torch.randint(0, CLASSES, (len(y), 1, *y.shape[2:]), device=y.device) for y in outputs]
            loss = self.loss(outputs, targets)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 12)
        self.scaler.step(self.optimizer)
        self.scaler.update()


def measure(name: str, dim: int, features: int, options: argparse.Namespace) -> tuple[Any, ...]:
    """Parameters, count, kept bytes per sample, peak bytes, iterations per second."""
    torch.manual_seed(0)
    imports = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    device, (batch, patch) = torch.device(options.device), shape_of(dim, options)
    network = build(name, dim, patch, features).to(device).train()
    image = torch.randn(batch, 1, *patch, device=device)
    count = int(network.compute_conv_feature_map_size(patch))
    with precision(options):
        kept = kept_bytes(network, image) / batch
    training = Training(network, options)
    for _ in range(3 if options.compile else 1):
        training.step(image)
    synchronize(device)
    # on a CPU the time of this process' one thread, so that other work on the machine does not count
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    start = clock()
    for _ in range(options.steps):
        training.step(image)
    synchronize(device)
    rate = options.steps / (clock() - start)
    peak = (
        torch.cuda.max_memory_allocated()
        if device.type == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - imports
    )
    return sum(p.numel() for p in network.parameters()), count, kept, peak, rate


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


# --- the table -------------------------------------------------------------------------------------------------------


def in_own_process(*question: str) -> list[float]:
    """Numbers that this script prints for one question; peak memory never falls within a process."""
    command = [sys.executable, __file__, *sys.argv[1:], *question]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return [float(number) for number in done.stdout.splitlines()[-1].split()]


def rows(options: argparse.Namespace) -> Iterator[str]:
    """One line of the table per network."""
    for dim in options.dims:
        batch, patch = shape_of(dim, options)
        reference = None
        for name, (kind, own) in NETWORKS.items():
            if options.equal == "memory" and own.get("checkpoint_passes"):
                continue  # what it computes again on the way back is not among what it keeps
            if options.only and not any(part in name for part in ("PlainConvUNet", *options.only)):
                continue
            if dim not in getattr(kind, "memory_scale", {2: 1, 3: 1}):
                continue
            features = int(in_own_process("--width-of", name, str(dim))[0])
            parameters, count, kept, peak, rate = in_own_process("--one", name, str(dim), str(features))
            reference = reference or kept / count
            whole = batch * kept + BYTES_PER_PARAMETER * parameters
            yield (
                f"| {dim}D {'×'.join(map(str, patch))} | {name} | {features} | {parameters / 1e6:.2f} "
                f"| {count / 1e6:.2f} | {kept / 1e6:.1f} | {kept / count:.2f} | {reference / (kept / count):.3f} "
                f"| {whole / 1e6:.0f} | {peak / 1e6:.0f} | {rate:.2f} |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--equal", choices=["width", "memory", "parameters"], default="width")
    parser.add_argument("--amp", choices=list(AMP), default="off")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--dims", type=int, nargs="+", choices=[2, 3], default=[3, 2])
    parser.add_argument("--patch3d", type=int, nargs=3, default=[32, 64, 64])
    parser.add_argument("--patch2d", type=int, nargs=2, default=[128, 128])
    parser.add_argument("--batch3d", type=int, default=2)
    parser.add_argument("--batch2d", type=int, default=8)
    parser.add_argument("--features", type=int, default=16, help="of PlainConvUNet's first stage")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--only", nargs="+", help="Parts of the names of networks; PlainConvUNet is always there.")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--width-of", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.width_of:
        print(chosen_width(options.width_of[0], int(options.width_of[1]), options))
    elif options.one:
        name, dim, features = options.one
        print(*measure(name, int(dim), int(features), options))
    else:
        print(HEADER)
        for row in rows(options):
            print(row, flush=True)


if __name__ == "__main__":
    main()
