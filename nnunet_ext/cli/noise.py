"""``nnunet-ext noise``: a dataset with contours that are wrong on purpose."""

from __future__ import annotations

import click


@click.command()
@click.option("-d", "source", type=int, required=True, help="Number of the clean dataset.")
@click.option("-o", "target", type=int, required=True, help="Number of the dataset to write.")
@click.option("--name", help="Name of the dataset to write; default: the clean one's and Noisy.")
@click.option("--ratio", type=float, required=True, help="Share of the training cases to corrupt, 0 to 1.")
@click.option("--voxels", type=int, nargs=2, help="Smallest and largest displacement in voxels.")
@click.option("--mm", type=float, nargs=2, help="The same in mm.")
@click.option("--axes", type=click.Choice(["all", "in-plane"]), default="all", show_default=True,
              help="Move contours in all directions, or within axial slices only.")  # fmt: skip
@click.option("--fold", type=click.IntRange(0), help="Spare the validation cases of this fold.")
@click.option("--seed", type=int, default=1, show_default=True, help="Of cases, directions and displacements.")
@click.option("--overwrite", is_flag=True, help="Replace a dataset of this number.")
@click.option("--quiet", is_flag=True, help="No progress and no report.")
def command(
    source: int,
    target: int,
    name: str | None,
    ratio: float,
    voxels: tuple[int, int] | None,
    mm: tuple[float, float] | None,
    axes: str,
    fold: int | None,
    seed: int,
    overwrite: bool,
    quiet: bool,
) -> None:
    """Corrupt training contours: all organs of a chosen case eroded, or all dilated, by one distance.

    Which cases, which way and how far is drawn once and kept in noise.json. Test cases stay as they are. The true
    contours stay in the clean dataset: judge with nnunet-ext evaluate against its labels, not by nnU-Net's validation.
    """
    from tqdm import tqdm

    from nnunet_ext.conversion.noise import Noise, add_noise, lines_of, orphaned_copies
    from nnunet_ext.errors import InputError
    from nnunet_ext.io.numbered import dataset_numbered, splits_in_use, stale_data, taken_by
    from nnunet_ext.locations import nnunet_folder

    if bool(voxels) == bool(mm):
        raise click.UsageError("give --voxels LOW HIGH or --mm LOW HIGH.")
    low, high = voxels or mm or (0, 0)
    noise = Noise(ratio, low, high, "voxels" if voxels else "mm", seed, axes == "in-plane")
    raw, *others = (nnunet_folder(f"nnUNet_{part}") for part in ("raw", "preprocessed", "results"))
    folder = dataset_numbered(raw, source)
    splits = splits_in_use(folder.name)
    if fold is not None and fold >= len(splits or ()):
        raise InputError(f"{folder.name} has {len(splits or ())} folds, so there is no fold {fold} to spare.")
    cases = splits[fold]["train"] if splits and fold is not None else None
    replaced = taken_by(raw, target)
    written, sidecar = add_noise(
        folder, raw, target, name or f"{folder.name.partition('_')[2]}Noisy", noise, cases=cases, splits=splits,
        overwrite=overwrite, elsewhere=others, progress=lambda cases: iter(tqdm(cases, unit="case", disable=quiet)),
    )  # fmt: skip
    if not quiet:
        for line in lines_of(sidecar):
            click.echo(line)
    if stale := stale_data(others[0], written.name):
        click.echo(f"WARNING {stale}", err=True)
    if orphaned := orphaned_copies(raw, [*replaced, written]):
        click.echo(f"WARNING {orphaned}", err=True)
    click.echo(f"written: {written}; true contours: {folder / 'labelsTr'}; next: nnunet-ext plan -d {target}")
