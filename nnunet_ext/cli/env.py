"""``nnunet-ext env``: the line that makes our trainers visible to stock nnU-Net."""

from __future__ import annotations

import shlex

import click

from nnunet_ext.locations import TRAINER_VARIABLE, trainer_search_path


@click.command("env")
def command() -> None:
    """Print the line that makes our trainers visible to stock nnU-Net.

    Use it as: eval "$(nnunet-ext env)". Folders that nnUNet_extTrainer already names stay in it.
    """
    click.echo(f"export {TRAINER_VARIABLE}={shlex.quote(trainer_search_path())}")
