"""``nnunet-ext predict``: a trained recipe on new cases."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

SEVERAL = ("--organs", "-f")
"""Options that take several values one after the other, as nnU-Net's do."""


class _SeveralValues(click.Command):
    """Reads ``--organs A B`` like ``--organs A --organs B``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, list(_repeated(args)))


def _repeated(args: Sequence[str]) -> Iterator[str]:
    """Arguments with the option repeated before each of its further values."""
    option, values = "", 0
    for arg in args:
        if arg.startswith("-"):
            option, values = (arg if arg in SEVERAL else ""), 0
        elif option:
            values += 1
            if values > 1:
                yield option
        yield arg


@click.command(cls=_SeveralValues)
@click.argument("recipe")
@click.option("-i", "source", type=click.Path(path_type=Path), required=True, help="Folder with <case>_0000.nii.gz.")
@click.option("-o", "output", type=click.Path(file_okay=False, path_type=Path), required=True,
              help="Folder to write.")  # fmt: skip
@click.option("--organs", multiple=True, metavar="ORGAN ...", help="Organs to contour; default: all of the recipe.")
@click.option(
    "-f", "folds", type=int, multiple=True, metavar="FOLD ...", help="Folds to average; default: all that were trained."
)
@click.option("-device", "device", type=click.Choice(["cpu", "cuda", "mps"]), help="Default: the recipe's.")
@click.option("--quiet", is_flag=True, help="Print failures only.")
def command(
    recipe: str,
    source: Path,
    output: Path,
    organs: tuple[str, ...],
    folds: tuple[int, ...],
    device: str | None,
    quiet: bool,
) -> None:
    """Contour every case of a folder with a trained RECIPE: locate, crop, predict, paste, fuse, check left and right.

    With --organs only the models that these organs need are run, and only these organs are written, under their usual
    label numbers. Run it again after an interruption: finished cases are kept. A contour that was corrected by hand is
    never replaced; its case counts as failed. Exit code 3 when some cases failed.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads cost five times the CPU
    from nnunet_ext.recipe.schema import Recipe

    page = Recipe.load(recipe)  # a wrong name is answered before torch is loaded
    from nnunet_ext.recipe.composed import Composed
    from nnunet_ext.recipe.predict import predict_folder

    composed = Composed.load(page, folds or None, device, organs=organs or None)
    predict_folder(composed, source, output, (lambda line: None) if quiet else click.echo)
    click.echo(f"written: {output}; next: nnunet-ext evaluate -p {output} -r REFERENCE -o {output / 'evaluation'}")
