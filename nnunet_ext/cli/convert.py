"""``nnunet-ext convert SOURCE_NAME FOLDER -d NUMBER``: a source dataset to an ordinary nnU-Net dataset."""

from __future__ import annotations

import importlib
import inspect
import os
import pkgutil
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import click

from nnunet_ext.errors import CasesFailedError
from nnunet_ext.locations import nnunet_folder

if TYPE_CHECKING:
    from nnunet_ext.conversion.convert import Converted
    from nnunet_ext.conversion.source import Empty, Option

PACKAGE = "nnunet_ext.dataset_conversion"


class _Sources(click.Group):
    """Finds a source's command in ``dataset_conversion/<name>.py``."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return source_names()

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in source_names():
            return None
        return _command_for(cmd_name)


@click.group(cls=_Sources, name="convert", context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """Convert a source dataset to nnU-Net's format in $nnUNet_raw.

    Bad cases are named with their cause and left out (exit code 3). A killed conversion continues when run
    again.
    """


def source_names() -> list[str]:
    """Verbs of all converters: file names with ``-`` for ``_``."""
    package = importlib.import_module(PACKAGE)
    return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(package.__path__))


def _command_for(verb: str) -> click.Command:
    module = importlib.import_module(f"{PACKAGE}.{verb.replace('-', '_')}")
    options: tuple[Option, ...] = getattr(module, "OPTIONS", ())

    def run(**values: Any) -> None:
        _run(module, {option.keyword: values.pop(option.keyword) for option in options}, **values)

    text = inspect.getdoc(module) or ""
    return click.Command(
        verb,
        callback=run,
        params=[*_common_params(verb, module), *(_param(option) for option in options)],
        help="\b\n" + text.replace("\n\n", "\n\n\b\n"),
        short_help=text.partition("\n")[0],
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def _common_params(verb: str, module: ModuleType) -> list[click.Parameter]:
    """What every converter takes; no ``--empty`` where it says ``NEVER_EMPTY``."""
    name = "".join(part.capitalize() for part in verb.split("-"))
    folder = click.Path(exists=True, file_okay=False, path_type=Path)
    empty = click.Option(
        ["--empty"],
        type=click.Choice(["not-contoured", "absent"]),
        default="not-contoured",
        show_default=True,
        help="What an organ without a voxel means: nobody drew it, or the patient has none.",
    )
    return [
        click.Argument(["folder"], type=folder),
        click.Option(["-d", "--dataset", "number"], type=int, required=True, help="Dataset number, 1 to 999."),
        click.Option(["--name"], default=name, show_default=True, help="Dataset name."),
        click.Option(["--overwrite"], is_flag=True, help="Replace a dataset of this number."),
        click.Option(["--seed"], type=int, default=12345, show_default=True, help="Seed of folds and test cases."),
        click.Option(["--folds"], type=click.IntRange(2), help="Folds, by patient; default: the source's, else 5."),
        *([] if getattr(module, "NEVER_EMPTY", False) else [empty]),
        click.Option(["--quiet"], is_flag=True, help="No progress and no table."),
    ]


def _param(option: Option) -> click.Option:
    if isinstance(option.default, bool):
        return click.Option([option.flag], help=option.help, is_flag=True, default=option.default, show_default=True)
    return click.Option(
        [option.flag],
        help=option.help,
        default=option.default,
        required=option.required,
        show_default=option.default is not None,
        type=click.Choice(option.choices) if option.choices else click.STRING,
    )


def _run(
    module: ModuleType,
    options: dict[str, Any],
    *,
    folder: Path,
    number: int,
    name: str,
    overwrite: bool,
    seed: int,
    folds: int | None,
    quiet: bool,
    empty: Empty = "not-contoured",
) -> None:
    from nnunet_ext.conversion.convert import convert
    from nnunet_ext.conversion.noise import orphaned_copies
    from nnunet_ext.io.numbered import stale_data, taken_by

    raw = nnunet_folder("nnUNet_raw")
    source = replace(module.open_source(folder, **options), empty=empty)
    others = [Path(os.environ[key]) for key in ("nnUNet_preprocessed", "nnUNet_results") if os.environ.get(key)]
    replaced = taken_by(raw, number)
    done = convert(
        source, raw, number, name, overwrite=overwrite, seed=seed, folds=folds, quiet=quiet, elsewhere=others
    )
    preprocessed = os.environ.get("nnUNet_preprocessed")
    if preprocessed and (stale := stale_data(Path(preprocessed), done.folder.name)):
        click.echo(f"WARNING {stale}", err=True)
    if orphaned := orphaned_copies(raw, [*replaced, done.folder]):
        click.echo(f"WARNING {orphaned}", err=True)
    _print(done, quiet=quiet)


def _print(done: Converted, *, quiet: bool) -> None:
    from nnunet_ext.conversion.report import failures_as_text, table_of

    if not quiet:
        click.echo(f"{table_of(done.report)}\nDataset: {done.folder}")
    if done.failed:
        causes = failures_as_text(done.failed)
        raise CasesFailedError(f"{len(done.failed)} case(s) refused, the others are in {done.folder}:\n{causes}")
