"""``nnunet-ext predict``: a trained recipe on new cases."""

from __future__ import annotations

import os
from pathlib import Path

import click


@click.command()
@click.argument("recipe")
@click.option("-i", "source", type=click.Path(path_type=Path), required=True, help="Folder with <case>_0000.nii.gz.")
@click.option("-o", "output", type=click.Path(path_type=Path), required=True, help="Folder to write.")
@click.option("-f", "folds", type=int, multiple=True, help="Folds to average; default: all that were trained.")
@click.option("-device", "device", type=click.Choice(["cpu", "cuda", "mps"]), help="Default: the recipe's.")
@click.option("--quiet", is_flag=True, help="Print failures only.")
def command(recipe: str, source: Path, output: Path, folds: tuple[int, ...], device: str | None, quiet: bool) -> None:
    """Contour every case of a folder with a trained RECIPE: locate, crop, predict, paste, fuse, check left and right.

    Run it again after an interruption: finished cases are kept. Exit code 3 when some cases failed.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads cost five times the CPU
    from nnunet_ext.recipe.schema import Recipe

    page = Recipe.load(recipe)  # a wrong name is answered before torch is loaded
    from nnunet_ext.recipe.composed import Composed
    from nnunet_ext.recipe.predict import predict_folder

    composed = Composed.load(page, folds or None, device)
    predict_folder(composed, source, output, (lambda line: None) if quiet else click.echo)
    click.echo(f"written: {output}; next: nnunet-ext evaluate -p {output} -r REFERENCE -o {output / 'evaluation'}")
