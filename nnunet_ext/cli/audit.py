"""``nnunet-ext audit``: contours worth a second look."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("run")
@click.option("-o", "output", type=click.Path(file_okay=False, path_type=Path),
              help="Folder to write; default: audit in the run's own.")  # fmt: skip
@click.option("--show", type=click.IntRange(min=1), default=12, show_default=True, help="Lines to print.")
def command(run: str, output: Path | None, show: int) -> None:
    """Rank the contours of RUN, a trained model's folder or a trained recipe, by how much they deserve a second look.

    Every case is judged by the models that never saw it. Writes audit.csv (all contours, the most suspicious first,
    with the kind of deviation; then the organs that a model sees where nobody contoured them) and audit.png (the first
    twelve, contour and prediction). No label is changed.
    """
    from nnunet_ext.recipe.audit import audit, overview

    rows = audit(run, output, click.echo, lambda line: click.echo(f"WARNING {line}", err=True))
    click.echo(overview(rows, show))
