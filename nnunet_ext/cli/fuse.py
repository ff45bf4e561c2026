"""``nnunet-ext fuse``: merge the label maps of several models."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(name="fuse", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-i", "--input", "inputs", multiple=True, required=True, help="NAME=FOLDER, or folders in table order.")
@click.argument("more", nargs=-1, metavar="[FOLDER]...")
@click.option("--table", type=Path, required=True, help="fusion.json, as select writes it.")
@click.option("-o", "--output", type=click.Path(file_okay=False, path_type=Path), required=True,
              help="Folder for the fused maps and fusion_report.json.")  # fmt: skip
@click.option("--quiet", is_flag=True, help="No progress bar.")
def command(inputs: tuple[str, ...], more: tuple[str, ...], table: Path, output: Path, quiet: bool) -> None:
    """Give every voxel to the model that owns the organ: -i A B C, or -i 2d=A -i 3d=B."""
    from nnunet_ext.fusion.folder import fuse_folders, inputs_from_arguments
    from nnunet_ext.fusion.rules import FusionTable

    rules = FusionTable.load(table)
    result = fuse_folders(inputs_from_arguments([*inputs, *more], rules), rules, output, quiet)
    contested = sum(sum(case["contested"].values()) for case in result.cases.values())
    click.echo(f"{len(result.cases)} cases fused, {contested} contested voxels; written to {output}.")
