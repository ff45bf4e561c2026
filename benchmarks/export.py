"""The exact export against stock's, one case of 512×512×120 voxels with 23 classes predicted at half the resolution.

Each side runs in a fresh process: CPU seconds of the export alone, and the memory that it needs beside the logits. The
label maps must be equal to the last bit. Three kinds of logits: blobs as a trained network draws them, the same with
regions instead of classes, and white noise, the worst case for us, where hardly two neighbours agree. Prints rows for
RESULTS.md (the promise, for blobs: at most 0.2 of the time and 0.1 of the memory).

    python benchmarks/export.py [--scale 1.0]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

PROMISE = {"time": 0.2, "memory": 0.1}
SHAPE, HEADS = (120, 512, 512), 23
SPACING_MM = {"in-plane": (3.2, 1.0, 1.0), "trilinear": (2.0, 1.0, 1.0)}
"""nnU-Net keeps slices apart where they are more than three times thicker than wide."""
CASES = [("blobs", "in-plane"), ("blobs", "trilinear"), ("regions", "in-plane"), ("noise", "in-plane")]


def sizes(scale: float) -> tuple[tuple[int, ...], tuple[int, ...]]:
    wanted = tuple(max(8, round(n * scale)) for n in SHAPE)
    return (wanted[0], wanted[1] // 2, wanted[2] // 2), wanted


def logits(kind: str, given: tuple[int, ...]) -> Any:
    """(C, Z, Y, X) half."""
    import torch
    from torch.nn.functional import interpolate

    torch.manual_seed(0)
    result = torch.empty((HEADS, *given), dtype=torch.half)
    for head in result:
        if kind == "noise":
            head.copy_(torch.randn(given) * 5)
        else:
            knots = torch.randn((1, 1, 6, 8, 8)) * 10
            head.copy_(interpolate(knots, given, mode="trilinear", align_corners=False)[0, 0] - 4)
    if kind != "regions":
        result[0] += 12  # background
    return result


def arguments(kind: str, how: str, scale: float) -> tuple[Any, ...]:
    from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    given, wanted = sizes(scale)
    spacing = SPACING_MM[how]
    resample = partial(resample_data_or_seg_to_shape, is_seg=False, order=1, order_z=0, force_separate_z=None)
    configuration = SimpleNamespace(
        spacing=[spacing[0], 2 * spacing[1], 2 * spacing[2]], resampling_fn_probabilities=resample
    )
    plans = SimpleNamespace(transpose_forward=[0, 1, 2], transpose_backward=[0, 1, 2])
    numbers = range(1, HEADS + 1 if kind == "regions" else HEADS)
    names: dict[str, Any] = {f"organ_{i}": [i, HEADS] if kind == "regions" and i < HEADS else i for i in numbers}
    labels = LabelManager({"background": 0, **names}, list(numbers) if kind == "regions" else None)
    properties = {
        "spacing": list(spacing),
        "shape_after_cropping_and_before_resampling": wanted,
        "shape_before_cropping": wanted,
        "bbox_used_for_cropping": [[0, n] for n in wanted],
    }
    return logits(kind, given), plans, configuration, labels, properties


def run_one(side: str, kind: str, how: str, scale: float, target: Path) -> None:
    """In a process of its own: export, write the map, print seconds and MB."""
    import numpy as np

    given = arguments(kind, how, scale)
    if side == "ours":
        from nnunet_ext.recipe.export import labels_from_logits as export
    else:
        from nnunetv2.inference.export_prediction import (
            convert_predicted_logits_to_segmentation_with_correct_shape as export,
        )
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before, start = memory_mb("VmRSS"), time.process_time()
    labels = export(*given)
    seconds = time.process_time() - start
    print(json.dumps({"seconds": seconds, "mb": memory_mb("VmHWM") - before}))
    np.save(target, labels)


def memory_mb(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="Edge length of the case; 0.25 takes seconds.")
    parser.add_argument("--one", nargs=4, metavar=("SIDE", "KIND", "HOW", "TARGET"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        side, kind, how, target = given.one
        run_one(side, kind, how, given.scale, Path(target))
        return
    print("| logits | resampling | ours CPU s | stock CPU s | ratio | ours extra MB | stock extra MB | ratio |")
    print("|---|---|---|---|---|---|---|---|")
    for kind, how in CASES:
        with tempfile.TemporaryDirectory() as name:
            ours, stock = (measure(side, kind, how, given.scale, Path(name)) for side in ("ours", "stock"))
            check_equal(Path(name))
        print(
            f"| {kind} | {how} | {ours['seconds']:.2f} | {stock['seconds']:.2f} "
            f"| {ours['seconds'] / stock['seconds']:.3f} | {ours['mb']:.0f} | {stock['mb']:.0f} "
            f"| {ours['mb'] / stock['mb']:.3f} |",
            flush=True,
        )
    print(f"Promise: time ≤ {PROMISE['time']}, memory ≤ {PROMISE['memory']}; the maps were equal to the last bit.")


def measure(side: str, kind: str, how: str, scale: float, folder: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--scale", str(scale), "--one", side, kind, how, str(folder / f"{side}.npy")]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def check_equal(folder: Path) -> None:
    import numpy as np

    ours, stock = (np.load(folder / f"{side}.npy") for side in ("ours", "stock"))
    if ours.dtype != stock.dtype or not np.array_equal(ours, stock):
        raise SystemExit(f"{int((ours != stock).sum())} voxels differ; the comparison is void.")


if __name__ == "__main__":
    main()
