"""``nnunet-ext doctor``: what is wrong with an installation, in plain words."""

from __future__ import annotations

import click

from nnunet_ext.errors import InputError

MARKS = {"ok": "  ok     ", "warning": "warning  ", "problem": "PROBLEM  "}
COLOURS = {"ok": "green", "warning": "yellow", "problem": "red"}


@click.command("doctor")
def command() -> None:
    """Say in plain words what is wrong with this installation. Ends with 2 if something will not work."""
    from nnunet_ext.training.doctor import examine

    problems = 0
    for finding in examine():
        problems += finding.level == "problem"
        click.secho(MARKS[finding.level], fg=COLOURS[finding.level], nl=False)
        click.echo(f"{finding.topic}: {finding.text}")
        if finding.advice:
            click.echo(f"{'':9}-> {finding.advice}")
    if problems:
        raise InputError(f"{problems} problem{'s' if problems > 1 else ''} found; see what to do above.")
