"""Does ``nnunet-ext audit`` find contours that were spoiled on purpose?

Spoils a share of all contours (case and organ drawn once, from the seed; kinds in turn: larger, smaller, shifted, a
part missing), trains the folds on the spoiled contours as if nobody knew, and audits the model. Prints which share of
the spoiled contours is in the first 10 % and 20 % of the list, by kind of error, and what kind the audit calls them.
Repeated, it trains nothing and ranks again. ``--draws`` also takes every contour as it was before anything was spoiled,
and spoils some of them anew, many times, beside the predictions that are there: a few errors of each kind say little.
Contours that were spoiled for the training belong to them: the folds that predict a case never saw its contours.

    nnunet-ext convert nifti openkbp_hn -d 102 --name OpenKBP --channel CT --unlisted background \\
        --labels "Brainstem=1,SpinalCord=2,Parotid_R=3,Parotid_L=4,Bone_Mandible=7"
    python benchmarks/audit.py -d 102 -o 132 --mm 8 --iterations 600 --draws 50
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from short_training import trained

from nnunet_ext.evaluation.dataset import read_organs
from nnunet_ext.evaluation.deviation import deviation
from nnunet_ext.evaluation.suspicion import Finding, finding, ranked, recall
from nnunet_ext.geometry import HEAD_FOOT, body_axis
from nnunet_ext.io.atomic import read_json, write_json
from nnunet_ext.io.nifti import read_labels, write_labels
from nnunet_ext.locations import nnunet_folder
from nnunet_ext.planning.plan import dataset_name
from nnunet_ext.preprocessing.label_noise import Displacement, displaced
from nnunet_ext.recipe.audit import audit
from nnunet_ext.recipe.audit_cases import HeldOutPair, ModelCases

KINDS = ("larger", "smaller", "shifted", "missing part")
PLANTED = "planted.json"
ALARM = 3.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-d", type=int, required=True, help="dataset with trustworthy contours")
    parser.add_argument("-o", type=int, required=True, help="number of the spoiled dataset")
    parser.add_argument("--share", type=float, default=0.1, help="of all contours")
    parser.add_argument("--mm", type=float, required=True, help="size of the errors")
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--trainer", default="nnUNetTrainerExtNoMirror")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--draws", type=int, default=0, help="times to spoil contours anew without training")
    given = parser.parse_args()
    source = nnunet_folder("nnUNet_raw") / dataset_name(given.d)
    target = spoiled(source, given)
    folds = range(len(read_json(target / "splits_final.json")))
    model = trained(given.o, folds, given.iterations, trainer=given.trainer)
    rows = audit(str(model), None, print)
    planted = {(entry["case"], entry["organ"]): entry["kind"] for entry in read_json(target / PLANTED)}
    print("| error | planted | in the first 10 % | in the first 20 % | called |\n|---|---|---|---|---|")
    first, second = (recall(rows, planted, share) for share in (0.1, 0.2))
    for kind, (found, count) in first.items():
        called = Counter(
            r.kind for r in rows if kind in ("all", planted.get((r.case, r.organ))) and (r.case, r.organ) in planted
        )
        names = ", ".join(f"{name} {n}" for name, n in called.most_common())
        print(f"| {kind} | {count} | {found / count:.2f} | {second[kind][0] / count:.2f} | {names} |")
    if given.draws:
        spoil_anew(source, model, given)


def spoiled(source: Path, given: argparse.Namespace) -> Path:
    """The dataset with errors in a share of its contours, and the list of them."""
    target = source.with_name(f"Dataset{given.o:03d}_Spoiled")
    if (target / "dataset.json").exists():
        return target
    described = read_json(source / "dataset.json")
    organs = {name: number for name, number in described["labels"].items() if number}
    rng = np.random.default_rng(given.seed)
    there = [
        (path, organ)
        for path in sorted((source / "labelsTr").iterdir())
        for organ, number in organs.items()
        if (read_labels(path)[0] == number).any()
    ]
    chosen = [there[i] for i in rng.permutation(len(there))[: round(given.share * len(there))]]
    planted = []
    shutil.copytree(source / "imagesTr", target / "imagesTr", copy_function=os.symlink, dirs_exist_ok=True)
    for path in sorted((source / "labelsTr").iterdir()):
        labels, grid = read_labels(path)
        for i, organ in ((i, organ) for i, (where, organ) in enumerate(chosen) if where == path):
            kind = KINDS[i % len(KINDS)]
            mask = labels == organs[organ]
            wrong = error(mask, kind, given.mm, grid.spacing_mm, rng)
            labels[mask] = 0
            labels[wrong & (labels == 0)] = organs[organ]
            planted.append({"case": path.name.removesuffix(".nii.gz"), "organ": organ, "kind": kind})
        write_labels(target / "labelsTr" / path.name, labels, grid)
    write_json(target / PLANTED, planted)
    shutil.copy(source / "splits_final.json", target)
    write_json(target / "dataset.json", described)
    return target


def spoil_anew(source: Path, model: Path, given: argparse.Namespace) -> None:
    """Plant other errors in the contours as they were, again and again, and rank them beside the same predictions."""
    items = trustworthy(source, model)
    right = [seen_in(pair, organ, contour) for pair, organ, contour in items]
    found: dict[float, Counter[str]] = {0.1: Counter(), 0.2: Counter()}
    count, called, alarms = Counter[str](), defaultdict[str, Counter[str]](Counter), 0
    for draw in range(given.draws):
        rng = np.random.default_rng([given.seed, draw])
        rows, planted = list(right), {}
        for turn, i in enumerate(rng.permutation(len(items))[: round(given.share * len(items))]):
            pair, organ, contour = items[i]
            kind = planted[pair.case, organ] = KINDS[(turn + draw) % len(KINDS)]
            rows[i] = seen_in(pair, organ, error(contour, kind, given.mm, pair.grid.spacing_mm, rng))
        ranking = ranked(row for row in rows if row is not None)
        for share, sums in found.items():
            sums.update({kind: first for kind, (first, _) in recall(ranking, planted, share).items()})
        count.update(["all"] * len(planted), **Counter(planted.values()))
        for row in ranking:
            kind = planted.get((row.case, row.organ))
            called[kind or "none"][row.kind] += 1
            alarms += kind is None and row.suspicion > ALARM
    print("| error | planted | in the first 10 % | in the first 20 % | called |\n|---|---|---|---|---|")
    for kind in ("all", *KINDS):
        names = ", ".join(f"{name} {n}" for name, n in called[kind].most_common())
        shares = " | ".join(f"{sums[kind] / count[kind]:.2f}" for sums in found.values())
        print(f"| {kind} | {count[kind]} | {shares} | {names} |")
    print(f"right contours with a suspicion above {ALARM:g}: {alarms / given.draws:.1f} of "
          f"{len(items) - count['all'] // given.draws} in a draw; called missing part: "
          f"{called['none']['missing part'] / given.draws:.1f}")  # fmt: skip


def trustworthy(source: Path, model: Path) -> list[tuple[HeldOutPair, str, NDArray[np.bool_]]]:
    """Every held-out case and organ with its contour as it was before it was spoiled."""
    organs = read_organs(source / "dataset.json").whole
    items = []
    for pair in ModelCases(model, print).pairs():
        labels, _ = read_labels(source / "labelsTr" / f"{pair.case}.nii.gz")
        masks = {organ: np.isin(labels, organs[organ]) for organ in pair.organs}
        items += [(pair, organ, mask) for organ, mask in masks.items() if mask.any()]
    return items


def seen_in(pair: HeldOutPair, organ: str, contour: NDArray[np.bool_]) -> Finding | None:
    head_foot, _ = body_axis(pair.grid.direction, HEAD_FOOT)
    seen = deviation(contour, pair.organs[organ][1], pair.grid.spacing_mm, head_foot)
    return None if seen is None else finding(pair.case, organ, pair.fold, seen)


def error(
    mask: NDArray[np.bool_], kind: str, mm: float, spacing_mm: tuple[float, ...], rng: np.random.Generator
) -> NDArray[np.bool_]:
    if kind in ("larger", "smaller"):
        direction = "dilate" if kind == "larger" else "erode"
        return displaced(mask, Displacement(direction, mm, "mm"), spacing_mm)  # type: ignore[arg-type]
    if kind == "shifted":
        way = rng.normal(size=3)
        by = [
            round(2 * mm * v / mm_per_voxel)
            for v, mm_per_voxel in zip(way / np.linalg.norm(way), spacing_mm, strict=True)
        ]
        return np.asarray(ndimage.shift(mask.astype(np.uint8), by, order=0), dtype=bool)
    lost = mask.copy()
    z = np.flatnonzero(mask.any(axis=(1, 2)))
    lost[z[-max(1, len(z) // 3)] :] = False  # the upper third was never drawn
    return lost


if __name__ == "__main__":
    main()
