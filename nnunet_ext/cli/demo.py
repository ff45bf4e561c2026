"""``nnunet-ext demo``: the main job end to end, in minutes, on a CPU."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.option("-o", "output", type=click.Path(path_type=Path), default=Path("nnunet_ext_demo"), show_default=True,
              help="Folder for everything; run again after an interruption.")  # fmt: skip
@click.option("--data", type=click.Path(exists=True, file_okay=False, path_type=Path),
              help="Real cases instead of the phantom: images/<case>.nii.gz, labels/<case>.nii.gz.")  # fmt: skip
@click.option("--labels", help='Organs of --data: "Brainstem=1,Parotid_L=4", a JSON file, or a dataset.json.')
@click.option("--ignore-labels", help="Values of --data that become background, such as 5,6.")
def command(output: Path, data: Path | None, labels: str | None, ignore_labels: str | None) -> None:
    """Train, select, predict, evaluate and draw: on a digital head-and-neck phantom, or on real cases with --data.

    About twelve minutes on two cores for the phantom.
    """
    if data is not None and labels is None:
        raise click.UsageError("--data needs --labels, such as --labels dataset.json.")
    import importlib

    from nnunet_ext.recipe import demo

    folder = data or output / "phantoms"
    if data is None:
        demo.draw_phantoms(folder)
    converter = importlib.import_module("nnunet_ext.dataset_conversion.nifti")
    source = converter.open_source(folder, labels or demo.phantom_labels(), ignore_labels=ignore_labels)
    demo.run(source, output.resolve(), click.echo)
