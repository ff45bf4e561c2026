"""An organ that is contoured in some patients only: nnU-Net's background against ``present_labels``.

Keeps the patients who have the organ, takes its contours away from a share of them (drawn once, from the seed), and
trains the same 3D network three times on every fold: with organs that were not contoured as background (stock), left
out, and left out with all contours in place. Scores are those of held-out patients against their own contours, of
which none is taken.

    nnunet-ext convert nifti openkbp_hn -d 120 --name OpenKBPOesophagus --channel CT --unlisted background \\
        --labels "SpinalCord=2,Esophagus=5"
    python benchmarks/present_labels.py -d 120 --organ Esophagus --iterations 900
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from short_training import trained

from nnunet_ext.evaluation.folder import score_files
from nnunet_ext.io.atomic import read_json, write_json
from nnunet_ext.io.nifti import read_labels, write_labels
from nnunet_ext.locations import nnunet_folder
from nnunet_ext.planning.plan import dataset_name

ARMS = {
    "background": ("background", True),
    "left out": ("leave_out", True),
    "left out, nothing taken": ("leave_out", False),
}
"""Name to the setting ``present_labels`` and whether contours are taken away."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "-d", type=int, required=True, help="dataset with present_labels.json; the next numbers must be free"
    )
    parser.add_argument("--organ", required=True)
    parser.add_argument("--share", type=float, default=1 / 3, help="of the training contours that are taken away")
    parser.add_argument("--iterations", type=int, default=500)
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    source = nnunet_folder("nnUNet_raw") / dataset_name(given.d)
    print(f"| organs that were not contoured | {given.organ}, DSC | n | all other organs |\n|---|---|---|---|")
    for arm, (handling, take) in ARMS.items():
        mine, others = [], []
        for fold, split in enumerate(folds_of(source, given.organ, given.folds, given.seed)):
            number = given.d + 1 + 2 * fold + (not take)
            thinned(source, number, split, given.organ, given.share if take else 0.0, given.seed)
            name, settings = f"nnUNetPlansExtCPU_{handling}", {"present_labels": handling}
            folder = trained(number, [0], given.iterations, name=name, settings=settings)
            found = scored(source, folder / "fold_0" / "validation", split["val"])
            mine += [dsc for organ, dsc in found if organ == given.organ]
            others += [dsc for organ, dsc in found if organ != given.organ]
        spread = f"{np.mean(mine):.3f} ± {np.std(mine, ddof=1):.3f}"
        print(f"| {arm} | {spread} | {len(mine)} | {np.mean(others):.3f} |", flush=True)


def folds_of(source: Path, organ: str, folds: int, seed: int) -> list[dict[str, list[str]]]:
    """Patients who have the organ, dealt out to the folds in turn."""
    present = read_json(source / "present_labels.json")
    label = read_json(source / "dataset.json")["labels"][organ]
    having = [case for case in sorted(present) if label in present[case]]
    dealt = [str(case) for case in np.random.default_rng(seed).permutation(having)]
    held = [dealt[fold::folds] for fold in range(folds)]
    return [{"train": sorted(set(having) - set(val)), "val": sorted(val)} for val in held]


def thinned(source: Path, number: int, split: dict[str, list[str]], organ: str, share: float, seed: int) -> None:
    """The dataset with one fold, in which a share of the training patients lose the contour of an organ."""
    target = source.with_name(f"Dataset{number:03d}_Thinned")
    if (target / "dataset.json").exists():
        return
    described, present = read_json(source / "dataset.json"), read_json(source / "present_labels.json")
    label = described["labels"][organ]
    taken = np.random.default_rng(seed).permutation(split["train"])[: round(share * len(split["train"]))].tolist()
    cases = [*split["train"], *split["val"]]
    (target / "imagesTr").mkdir(parents=True)
    for case in cases:
        (target / "imagesTr" / f"{case}_0000.nii.gz").symlink_to(source / "imagesTr" / f"{case}_0000.nii.gz")
        labels, grid = read_labels(source / "labelsTr" / f"{case}.nii.gz")
        if case in taken:
            labels[labels == label] = 0
        write_labels(target / "labelsTr" / f"{case}.nii.gz", labels, grid)
    kept = {case: [n for n in present[case] if n != label or case not in taken] for case in cases}
    write_json(target / "present_labels.json", kept)
    write_json(target / "splits_final.json", [split])
    write_json(target / "dataset.json", {**described, "numTraining": len(cases)})
    left = len(split["train"]) - len(taken)
    print(f"{target.name}: {organ} in {left} of {len(split['train'])} training patients", flush=True)


def scored(source: Path, predictions: Path, cases: list[str]) -> list[tuple[str, float]]:
    """Organ and DSC of every contoured organ of the held-out patients."""
    described, present = read_json(source / "dataset.json"), read_json(source / "present_labels.json")
    organs = {name: number for name, number in described["labels"].items() if number}
    rows = []
    for case in cases:
        paths = predictions / f"{case}.nii.gz", source / "labelsTr" / f"{case}.nii.gz"
        found = score_files(*paths, organs, present[case])
        rows += [(row.organ, row.dsc) for row in found if organs[row.organ] in present[case]]
    return rows


if __name__ == "__main__":
    main()
