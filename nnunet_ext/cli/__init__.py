"""The ``nnunet-ext`` command: one file per verb. Loads no torch; a verb imports what it needs when it runs."""

from __future__ import annotations

import importlib
import sys

import click

from nnunet_ext import __version__
from nnunet_ext.errors import BusyError, InputError, NnunetExtError
from nnunet_ext.io.atomic import NO_SPACE

VERBS = (
    "env", "doctor", "convert", "plan", "roi", "noise", "train", "select", "fuse", "predict", "evaluate", "audit",
    "demo",
)  # fmt: skip


class _Verbs(click.Group):
    """Finds a verb's command in ``nnunet_ext.cli.<verb>``."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command: click.Command = importlib.import_module(f"nnunet_ext.cli.{cmd_name}").command
        return command


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="nnunet-ext")
def cli() -> None:
    """Radiotherapy contouring with unmodified nnU-Net v2.

    Exit codes: 0 done, 1 our fault, 2 usage or input, 3 some cases failed, 75 locked or no space.
    """


def main() -> None:
    """Entry point: prints our errors, and those of the file system, as one sentence and ends with their exit code."""
    try:
        cli(prog_name="nnunet-ext")
    except NnunetExtError as error:
        click.echo(f"nnunet-ext: {error}", err=True)
        sys.exit(error.exit_code)
    except OSError as error:
        cause = f"{error.filename or 'a file'} cannot be used ({error.strerror or error})"
        click.echo(f"nnunet-ext: {cause}; check the path, its rights and its disk.", err=True)
        sys.exit(BusyError.exit_code if error.errno in NO_SPACE else InputError.exit_code)
