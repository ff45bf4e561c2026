"""``nnunet-ext evaluate`` (DSC, HD95, ASSD, RVE) against ``nnUNetv2_evaluate_folder -np 1`` (Dice only).

One drawn case of 512×512×120 voxels with 22 organs of 35 to 161 000 voxels; both run alternately on the same
files, and the ratio of the medians is what counts (the promise: at most 0.12). Prints rows for RESULTS.md.

    python benchmarks/evaluate.py [--repeats 5]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nnunet_ext.geometry import Grid
from nnunet_ext.io.nifti import write_labels

PROMISE = 0.12
GRID = Grid((120, 512, 512), (3.0, 1.0, 1.0))
ORGANS = 22
SMALLEST_VOX, LARGEST_VOX = 35, 161_000


def phantom(growth: float, shift: int) -> NDArray[np.uint8]:
    """22 balls (in mm) in a 6 × 4 lattice, volumes spaced evenly on a log scale."""
    labels = np.zeros(GRID.shape, dtype=np.uint8)
    for organ, voxels in enumerate(np.geomspace(SMALLEST_VOX, LARGEST_VOX, ORGANS)):
        radius_mm = (3 * voxels * GRID.spacing_mm[0] / (4 * np.pi)) ** (1 / 3) * growth
        centre = (60, 80 + 115 * (organ // 6) + shift, 45 + 84 * (organ % 6))
        reach = [int(np.ceil(radius_mm / s)) + 1 for s in GRID.spacing_mm]
        box = tuple(slice(max(0, c - r), c + r + 1) for c, r in zip(centre, reach, strict=True))
        z, y, x = np.ogrid[box]
        inside = (3 * (z - centre[0])) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2 <= radius_mm**2
        labels[box][inside] = organ + 1
    return labels


def write_case(folder: Path) -> None:
    labels = {"background": 0, **{f"organ_{i}": i for i in range(1, ORGANS + 1)}}
    dataset = {"labels": labels, "file_ending": ".nii.gz", "channel_names": {"0": "CT"}, "numTraining": 1}
    (folder / "dataset.json").write_text(json.dumps(dataset))
    (folder / "plans.json").write_text(json.dumps({"label_manager": "LabelManager"}))
    write_labels(folder / "references" / "case.nii.gz", phantom(1.0, 0), GRID)
    write_labels(folder / "predictions" / "case.nii.gz", phantom(0.97, 1), GRID)


def seconds(command: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Wall and CPU seconds of a whole process with its children."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - start, cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    scripts = Path(sys.executable).parent
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_case(folder)
        predictions, references = str(folder / "predictions"), str(folder / "references")
        dataset = ["-djfile", str(folder / "dataset.json")]
        ours = [str(scripts / "nnunet-ext"), "evaluate", "-p", predictions, "-r", references, *dataset]
        ours += ["-o", str(folder / "ours"), "--quiet"]
        stock = [str(scripts / "nnUNetv2_evaluate_folder"), references, predictions, *dataset, "-np", "1"]
        stock += ["-pfile", str(folder / "plans.json"), "-o", str(folder / "summary.json")]
        variables = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **dict.fromkeys(variables, name)}
        pairs = [(seconds(ours, environment), seconds(stock, environment)) for _ in range(repeats)]
        check_equal(folder)
    print("| what | clock | ours s | stock s | ratio | promise |")
    print("|---|---|---|---|---|---|")
    for clock, name in enumerate(("wall", "CPU")):
        mine, theirs = (statistics.median(run[side][clock] for run in pairs) for side in (0, 1))
        print(
            f"| DSC, HD95, ASSD, RVE of {ORGANS} organs, whole process vs nnUNetv2_evaluate_folder -np 1 (Dice only) "
            f"| {name} | {mine:.2f} | {theirs:.2f} | {mine / theirs:.3f} | ≤ {PROMISE} |"
        )


def check_equal(folder: Path) -> None:
    """Both must have found the same Dice, or the times mean nothing."""
    ours = json.loads((folder / "ours" / "metrics.json").read_text())["cases"]["case"]
    stock = json.loads((folder / "summary.json").read_text())["metric_per_case"][0]["metrics"]
    worst = max(abs(row["dsc"] - stock[str(row["label"])]["Dice"]) for row in ours)
    if worst > 1e-12:
        raise SystemExit(f"Dice differs by up to {worst}; the comparison is void.")


if __name__ == "__main__":
    main()
