"""What threads cost and bring when small U-Nets train on a CPU.

Every row is a fresh process, because OpenMP reads its settings before torch is imported. Run it on an otherwise
idle machine, and quote the ratios, not the milliseconds:

    python benchmarks/cpu_threads.py --steps 20
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from statistics import mean

SETTINGS: dict[str, dict[str, str]] = {
    "1 thread": {"OMP_NUM_THREADS": "1"},
    "2 threads": {"OMP_NUM_THREADS": "2"},
    "2 threads, OMP_WAIT_POLICY=PASSIVE": {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"},
    "2 threads, GOMP_SPINCOUNT=0": {"OMP_NUM_THREADS": "2", "GOMP_SPINCOUNT": "0"},
}
NETWORKS = {
    "2D, 64×64, batch 4": {"patch": (64, 64), "batch": 4},
    "3D, 16×64×64, batch 2": {"patch": (16, 64, 64), "batch": 2},
}
FEATURES = (8, 16, 32, 64)
CLASSES = 6
WARM_UP_STEPS = 3


def main() -> None:
    options = _options()
    if options.child:
        print(json.dumps(measure(**json.loads(options.child))))
        return
    print(f"{os.cpu_count()} cores, {options.steps} steps, best of {options.repeats}\n")
    print("| network | processes | setting | wall per step | CPU per step | wall, ratio | CPU, ratio |")
    print("|---|---|---|---|---|---|---|")
    for network, shape in NETWORKS.items():
        base: dict[str, float] | None = None
        for processes in (1, 2):
            for setting, environment in SETTINGS.items():
                job = {**shape, "steps": options.steps}
                result = best([together(job, environment, processes) for _ in range(options.repeats)])
                base = base or result
                print(row(network, processes, setting, result, base), flush=True)


def together(job: Mapping[str, object], environment: Mapping[str, str], processes: int) -> dict[str, float]:
    """Mean seconds per step of some processes that train at the same time."""
    quiet = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_", "MKL_"))}
    command = [sys.executable, __file__, "--child", json.dumps(job)]
    running = [
        subprocess.Popen(command, env={**quiet, **environment}, stdout=subprocess.PIPE, text=True)
        for _ in range(processes)
    ]
    results = [json.loads(process.communicate()[0]) for process in running]
    return {key: mean(result[key] for result in results) for key in ("wall_s", "cpu_s")}


def best(results: list[dict[str, float]]) -> dict[str, float]:
    """The repeat with the shortest wall time: the one that others disturbed least."""
    return min(results, key=lambda result: result["wall_s"])


def row(network: str, processes: int, setting: str, result: dict[str, float], base: dict[str, float]) -> str:
    """One line of the table; the ratios are to one process with one thread."""
    cells = [network, str(processes), setting]
    cells += [f"{result[key] * 1000:.0f} ms" for key in ("wall_s", "cpu_s")]
    cells += [f"{result[key] / base[key]:.2f}" for key in ("wall_s", "cpu_s")]
    return f"| {' | '.join(cells)} |"


def measure(patch: list[int], batch: int, steps: int) -> dict[str, float]:
    """Seconds per training step, wall and CPU, of this process."""
    import torch

    torch.manual_seed(0)
    network = small_unet(len(patch))
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3)
    image = torch.randn(batch, 1, *patch)
    target = torch.randint(CLASSES, (batch, *patch))

    def step() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(image), target).backward()
        optimizer.step()

    for _ in range(WARM_UP_STEPS):
        step()
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(steps):
        step()
    return {"wall_s": (time.perf_counter() - wall) / steps, "cpu_s": (time.process_time() - cpu) / steps}


def small_unet(dim: int):
    """A tiny U-Net: 8 to 64 features, two convolutions per stage, one output."""
    from dynamic_network_architectures.architectures.unet import PlainConvUNet
    from torch import nn

    conv, norm = (nn.Conv2d, nn.InstanceNorm2d) if dim == 2 else (nn.Conv3d, nn.InstanceNorm3d)
    stages = len(FEATURES)
    return PlainConvUNet(
        input_channels=1,
        n_stages=stages,
        features_per_stage=FEATURES,
        conv_op=conv,
        kernel_sizes=3,
        strides=[1] + [2] * (stages - 1),
        n_conv_per_stage=2,
        num_classes=CLASSES,
        n_conv_per_stage_decoder=2,
        conv_bias=True,
        norm_op=norm,
        norm_op_kwargs={"affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=False,
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20, help="timed training steps per process")
    parser.add_argument("--repeats", type=int, default=1, help="the best of so many is shown")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
