"""Three models and their fusion with ``nnunet-ext predict`` against three ``nnUNetv2_predict`` commands, on a CPU.

One drawn case of 512×512×120 voxels, 22 organs: a 2D and a 3D model of the whole image at half the resolution, and a
fine 3D model of seven organs, which ours runs in a region around what the 2D model found and stock, having no regions,
on the whole volume. Every command is a fresh process; measured are CPU seconds (user and system, with children), wall
seconds, and the peak of the proportional memory (PSS) of the whole process tree. The maps of the two whole-image models
must be equal to stock's to the last bit; the region model's differ by nature and are not compared.

The networks are small and untrained. The phantom is drawn without noise and the background gets a head start, so that
their maps are coherent as those of a trained network; benchmarks/export.py measures white noise as well. Prints rows
for RESULTS.md (the promise: at most 0.2 of the time and 0.35 of the memory).

    python benchmarks/predict.py [--scale 1.0] [--folder FOLDER]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

PROMISE = {"time": 0.2, "memory": 0.35}
SHAPE, SPACING_MM = (120, 512, 512), (3.0, 0.9766, 0.9766)
ORGANS = {f"organ_{i}": i for i in range(1, 23)}
SMALL = {f"organ_{i}": i - 15 for i in range(16, 23)}
RECIPE = "benchmark"
TRAINER, PLANS = "nnUNetTrainer", "nnUNetPlans"
REGION_VOX = (36, 96, 96)


@dataclass(frozen=True)
class Drawn:
    """One model of the benchmark; the sizes are those of a CPU-sized nnU-Net (our choice)."""

    dataset: str
    configuration: str
    spacing_mm: tuple[float, ...]
    patch: tuple[int, ...]
    features: tuple[int, ...]
    organs: dict[str, int]

    @property
    def folder(self) -> Path:
        return Path(self.dataset) / f"{TRAINER}__{PLANS}__{self.configuration}"


def models(scale: float) -> dict[str, Drawn]:
    def patch(*full: int) -> tuple[int, ...]:
        return tuple(max(8, 4 * round(n * scale / 4)) for n in full)

    names = {"2d": "Dataset801_Benchmark", "small": f"Dataset803_{RECIPE}_small"}
    half, fine = (3.0, 1.9532, 1.9532), (3.0, 1.0, 1.0)
    return {
        "2d": Drawn(names["2d"], "2d", half[1:], patch(256, 256), (8, 16, 32), ORGANS),
        "3d": Drawn(names["2d"], "3d_fullres", half, patch(32, 96, 96), (8, 16, 32), ORGANS),
        "small": Drawn(names["small"], "3d_fullres", fine, patch(20, 76, 76), (8, 16, 32), SMALL),
    }


# --- what both sides read ---------------------------------------------------------------------------------------------


def write_everything(folder: Path, scale: float) -> None:
    """Image, models as a training leaves them, recipe and fusion table."""
    import torch
    import yaml

    torch.manual_seed(0)
    write_case(folder / "images" / "case_0000.nii.gz", scale)
    for model in models(scale).values():
        write_model(folder / "results" / model.folder, model)
    region = {"organs": list(SMALL), "from": "2d", "fallback": ["3d"], "size_vox": size_vox(scale)}
    region["grow_at_most"] = 0  # random weights fill every region to its border, where a trained network leaves it free
    specs: dict[str, Any] = {
        name: {"dataset": int(m.dataset[7:10]), "configuration": m.configuration, "trainer": TRAINER, "plans": PLANS}
        for name, m in models(scale).items()
    }
    specs["small"]["region"] = region
    page = {"name": RECIPE, "title": "Random weights.", "dataset": 801, "organs": list(ORGANS), "folds": [0]}
    (folder / "benchmark.yaml").write_text(yaml.safe_dump({**page, "device": "cpu", "models": specs}))
    owner = {organ: "small" if organ in SMALL else "2d" if number < 8 else "3d" for organ, number in ORGANS.items()}
    known = {name: model.organs for name, model in models(scale).items()}
    table = {"version": 1, "organs": ORGANS, "owner": owner, "models": known, "priority": list(ORGANS)[::-1]}
    summary = folder / "results" / "recipes" / RECIPE
    summary.mkdir(parents=True)
    (summary / "fusion.json").write_text(json.dumps(table))


def size_vox(scale: float) -> list[int]:
    return [max(8, round(n * scale)) for n in REGION_VOX]


def write_case(path: Path, scale: float) -> None:
    from scipy.ndimage import gaussian_filter, zoom

    from nnunet_ext.geometry import Grid
    from nnunet_ext.io.nifti import write_image
    from nnunet_ext.phantom import draw_case

    image = gaussian_filter(draw_case(0)[0], (0.5, 1.0, 1.0))
    shape = tuple(round(n * scale) for n in SHAPE)
    drawn = zoom(image, np.divide(shape, image.shape), order=1, mode="nearest", grid_mode=True)
    write_image(path, np.rint(drawn).astype(np.float32), Grid(shape, SPACING_MM))  # type: ignore[arg-type]


def write_model(folder: Path, model: Drawn) -> None:
    import torch
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    page, heads = plans(model), len(model.organs) + 1
    architecture = page["configurations"][model.configuration]["architecture"]
    network = get_network_from_plans(*list(architecture.values()), 1, heads, deep_supervision=False)
    with torch.no_grad():
        last = network.decoder.seg_layers[-1]
        last.weight *= 4
        last.bias[0] += 3
    (folder / "fold_0").mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(page))
    anywhere = {"in_body": [0.5] * 3, "body_error_mm": 1e3, "landmarks": {}, "landmark_error_mm": None}
    learned = {"prior": anywhere, "margin_mm": [10.0] * 3, "usual_mm": [60.0] * 3}
    dataset = {
        "labels": {"background": 0, **model.organs},
        "channel_names": {"0": "CT"},
        "file_ending": ".nii.gz",
        "nnunet_ext": {"position_in_body": [0.5] * 3, "learned": {"both": learned}},
    }
    (folder / "dataset.json").write_text(json.dumps(dataset))
    content = {
        "network_weights": network.state_dict(),
        "init_args": {"configuration": model.configuration, "plans": page},
        "trainer_name": TRAINER,
        "inference_allowed_mirroring_axes": None,
    }
    torch.save(content, folder / "fold_0" / "checkpoint_final.pth")


def plans(model: Drawn) -> dict[str, Any]:
    flat, stages = len(model.patch), len(model.features)
    kernels, strides = [[3] * flat] * stages, [[1] * flat, *[[2] * flat] * (stages - 1)]
    if flat == 3:
        kernels, strides = [[1, 3, 3], *[[3] * 3] * (stages - 1)], [[1, 1, 1], [1, 2, 2], *[[2] * 3] * (stages - 2)]
    architecture = {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": stages, "features_per_stage": list(model.features), "kernel_sizes": kernels, "strides": strides,
            "conv_op": f"torch.nn.modules.conv.Conv{flat}d", "n_conv_per_stage": [1] * stages,
            "n_conv_per_stage_decoder": [1] * (stages - 1), "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{flat}d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True}, "dropout_op": None, "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU", "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }  # fmt: skip
    configuration: dict[str, Any] = {
        "data_identifier": "drawn", "preprocessor_name": "DefaultPreprocessor", "batch_size": 2,
        "patch_size": list(model.patch), "spacing": list(model.spacing_mm), "use_mask_for_norm": [False],
        "normalization_schemes": ["CTNormalization"], "architecture": architecture, "batch_dice": True,
    }  # fmt: skip
    for kind, order in (("data", 3), ("seg", 1), ("probabilities", 1)):  # stock's defaults
        configuration[f"resampling_fn_{kind}"] = "resample_data_or_seg_to_shape"
        options = {"is_seg": kind == "seg", "order": order, "order_z": 0, "force_separate_z": None}
        configuration[f"resampling_fn_{kind}_kwargs"] = options
    intensities = {"mean": 0.0, "std": 200.0, "percentile_00_5": -200.0, "percentile_99_5": 400.0}
    return {
        "dataset_name": model.dataset,
        "plans_name": PLANS,
        "original_median_spacing_after_transp": list(SPACING_MM),
        "image_reader_writer": "SimpleITKIOWithReorient",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": intensities},
        "configurations": {model.configuration: configuration},
    }


# --- both sides -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """What one command took."""

    cpu_s: float
    wall_s: float
    peak_mb: float


def measure(command: list[str], environment: dict[str, str]) -> Cost:
    """A whole process tree."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    peak = 0.0
    while process.poll() is None:
        peak = max(peak, tree_mb(process.pid))
        time.sleep(0.2)
    if process.returncode != 0 or process.stdout is None:
        raise SystemExit(
            f"{' '.join(command)} ended with {process.returncode}:\n{(process.stdout or sys.stdin).read()}"
        )
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(cpu, wall, peak)


def tree_mb(root: int) -> float:
    """Memory of a process and its descendants, pages that they share counted once."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(entry.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(entry.parent.name))
    tree, total = [root], 0
    for process in tree:
        tree += children.get(process, [])
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


def stock_command(folder: Path, name: str, model: Drawn) -> list[str]:
    options = ["-i", str(folder / "images"), "-o", str(folder / f"stock_{name}"), "-d", model.dataset[7:10]]
    options += ["-c", model.configuration, "-tr", TRAINER, "-p", PLANS, "-f", "0", "-device", "cpu"]
    return [str(Path(sys.executable).parent / "nnUNetv2_predict"), *options, "--disable_progress_bar"]


def check_equal(folder: Path, scale: float) -> None:
    """Our maps of the whole-image models, made once more in this process, against stock's files."""
    import torch

    from nnunet_ext.io.nifti import read_image, read_labels
    from nnunet_ext.recipe.inference import PreprocessedCache
    from nnunet_ext.recipe.models import load_model

    # nnUNetv2_predict takes all cores whatever the environment says, and torch's sums depend on the number of threads
    torch.set_num_threads(os.cpu_count() or 1)
    image, grid = read_image(folder / "images" / "case_0000.nii.gz")
    loaded = {
        name: load_model(folder / "results" / model.folder, [0], "cpu")
        for name, model in models(scale).items()
        if name != "small"
    }
    shared = PreprocessedCache(model.preprocessing(grid.spacing_mm) for model in loaded.values())
    for name, model in loaded.items():
        ours = model.predict(image[None], grid.spacing_mm, shared)
        stock = read_labels(folder / f"stock_{name}" / "case.nii.gz")[0]
        different = int((ours != stock).sum())
        if different:
            raise SystemExit(f"{name}: {different} of {ours.size} voxels differ; the comparison is void.")
        print(f"{name}: equal to the last bit; {describe(ours)}", flush=True)


def describe(labels: NDArray[np.integer]) -> str:
    """How hard the map is for the exact export."""
    rough = np.mean([np.mean(np.diff(labels.astype(np.int16), axis=axis) != 0) for axis in (1, 2)])
    classes = len(np.unique(labels))
    return f"{classes} classes, {float(np.mean(labels > 0)):.2f} foreground, {rough:.3f} of in-plane neighbours differ"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="Edge length of everything; 0.25 takes two minutes.")
    parser.add_argument("--folder", type=Path, help="Work here and keep it; default: a temporary folder.")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        compare(given.folder or Path(temporary), given.scale)


def compare(folder: Path, scale: float) -> None:
    write_everything(folder, scale)
    places = {f"nnUNet_{name}": str(folder / name) for name in ("raw", "preprocessed", "results")}
    for place in places.values():
        Path(place).mkdir(exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "nnUNet_compile": "f", **places}
    ours = [str(Path(sys.executable).parent / "nnunet-ext"), "predict", str(folder / "benchmark.yaml")]
    ours += ["-i", str(folder / "images"), "-o", str(folder / "ours"), "-device", "cpu"]
    costs = {"ours: three models and fusion": measure(ours, environment)}
    for name, model in models(scale).items():
        costs[f"stock: {name}"] = measure(stock_command(folder, name, model), environment)
    stock = [cost for name, cost in costs.items() if name.startswith("stock")]
    costs["stock: together"] = Cost(
        sum(c.cpu_s for c in stock), sum(c.wall_s for c in stock), max(c.peak_mb for c in stock)
    )
    print_costs(costs)
    check_equal(folder, scale)


def print_costs(costs: dict[str, Cost]) -> None:
    print("| command | CPU s | wall s | peak MB |")
    print("|---|---|---|---|")
    for name, cost in costs.items():
        print(f"| {name} | {cost.cpu_s:.1f} | {cost.wall_s:.1f} | {cost.peak_mb:.0f} |")
    ours, stock = next(iter(costs.values())), costs["stock: together"]
    whole = costs["stock: 2d"].cpu_s + costs["stock: 3d"].cpu_s
    print(
        f"| ratio (promise: time ≤ {PROMISE['time']}, memory ≤ {PROMISE['memory']}) | {ours.cpu_s / stock.cpu_s:.3f} "
        f"| {ours.wall_s / stock.wall_s:.3f} | {ours.peak_mb / stock.peak_mb:.3f} |"
    )
    print(f"Against the two whole-image commands of stock alone: {ours.cpu_s / whole:.3f} of the CPU time.", flush=True)


if __name__ == "__main__":
    main()
