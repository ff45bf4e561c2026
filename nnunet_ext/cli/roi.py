"""``nnunet-ext roi``: a dataset of regions around chosen organs."""

from __future__ import annotations

import click


@click.command()
@click.option("-d", "source", type=int, required=True, help="Number of the source dataset.")
@click.option("-o", "target", type=int, required=True, help="Number of the dataset to write.")
@click.option("--name", default="Regions", show_default=True, help="Name of the dataset to write.")
@click.option("--organs", multiple=True, required=True, help="Organ of the region; repeat, or separate by commas.")
@click.option("--size-mm", type=float, nargs=3, help="Edge lengths Z Y X in mm.")
@click.option("--size-vox", type=int, nargs=3, help="Edge lengths Z Y X in voxels.")
@click.option(
    "--margin-mm", type=float, nargs=3, help="Region that follows the located organ, this much larger per side."
)
@click.option("--margin-auto", is_flag=True, help="The same, margins from what the model missed on the training cases.")
@click.option("--flip-right", is_flag=True, help="One network for both sides: the right one's regions are mirrored.")
@click.option("--plausible-mm", type=float, default=60.0, show_default=True,
              help="Centres this close to the organ's usual place are never refused.")  # fmt: skip
@click.option("--from", "origin", required=True,
              help='Folder of a trained model (Trainer__Plans__conf), "truth", or "body".')  # fmt: skip
@click.option("--fallback", multiple=True, help="Folder of a trained model to ask where the first finds nothing.")
@click.option("--jitter-vox", type=float, nargs=3, default=(1.0, 2.0, 2.0), show_default=True,
              help="Standard deviation of the shift of the training copies, Z Y X in voxels.")  # fmt: skip
@click.option(
    "--copies", type=click.IntRange(0), default=2, show_default=True, help="Shifted copies per training case."
)
@click.option("--seed", type=int, default=12345, show_default=True, help="Of the shifts.")
def command(
    source: int,
    target: int,
    name: str,
    organs: tuple[str, ...],
    size_mm: tuple[float, float, float] | None,
    size_vox: tuple[int, int, int] | None,
    margin_mm: tuple[float, float, float] | None,
    margin_auto: bool,
    flip_right: bool,
    plausible_mm: float,
    origin: str,
    fallback: tuple[str, ...],
    jitter_vox: tuple[float, float, float],
    copies: int,
    seed: int,
) -> None:
    """Derive a dataset of small regions around organs from another dataset.

    Centres of training cases come from models that did not train on them (their validation predictions); folds are
    inherited. Prints how much of every organ the regions keep, before anybody trains on them.
    """
    from tqdm import tqdm

    from nnunet_ext.io.numbered import stale_data
    from nnunet_ext.locations import nnunet_folder
    from nnunet_ext.roi.derivation import derive_numbered
    from nnunet_ext.roi.region import region_of
    from nnunet_ext.roi.retention import cut_organs, retention_lines

    if margin_auto and margin_mm:
        raise click.UsageError("give --margin-mm or --margin-auto, not both.")

    region = region_of(
        organs=[organ.strip() for entry in organs for organ in entry.split(",")],
        source=origin, fallback=fallback, size_mm=size_mm, size_vox=size_vox, jitter_vox=jitter_vox, copies=copies,
        seed=seed, margin_mm="auto" if margin_auto else margin_mm, flip_right=flip_right, plausible_mm=plausible_mm,
    )  # fmt: skip
    folder, sidecar = derive_numbered(source, target, name, region, lambda cases: iter(tqdm(cases, unit="case")))
    for line in retention_lines(sidecar):
        click.echo(line)
    for line in sidecar["warnings"]:
        click.echo(f"WARNING {line}", err=True)
    for line in cut_organs(sidecar):
        click.echo(f"WARNING {line}; take a larger region before you train on it", err=True)
    if stale := stale_data(nnunet_folder("nnUNet_preprocessed"), folder.name):
        click.echo(f"WARNING {stale}", err=True)
    click.echo(f"written: {folder}; next: nnunet-ext plan -d {target}")
