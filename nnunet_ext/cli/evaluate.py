"""``nnunet-ext evaluate``: judge a folder of label maps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nnunet_ext.errors import InputError, some_of

if TYPE_CHECKING:
    from nnunet_ext.evaluation.dataset import DatasetOrgans


@click.command(name="evaluate", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-p", "--predictions", type=Path, required=True, help="Folder with the label maps to judge.")
@click.option("-r", "--references", type=Path, required=True, help="Folder with the label maps to believe.")
@click.option("-o", "--output", type=Path, required=True, help="Folder for metrics.csv, metrics.json, table.txt.")
@click.option("-djfile", "--dataset-json", type=Path, help="Organs; default: beside the references, or in a folder.")
@click.option("--present", type=Path, help="Contoured labels per case; default: present_labels.json beside the organs.")
@click.option("--compare", "other", type=Path, help="A second prediction folder: paired Wilcoxon per organ, Holm.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
def command(
    predictions: Path,
    references: Path,
    output: Path,
    dataset_json: Path | None,
    present: Path | None,
    other: Path | None,
    quiet: bool,
) -> None:
    """DSC, HD95, ASSD and RVE per case and organ, with mean ± SD and every empty case counted."""
    from nnunet_ext.evaluation.caveats import noise_warning
    from nnunet_ext.evaluation.dataset import default_present, find_dataset_json, read_organs
    from nnunet_ext.evaluation.folder import known_cases

    dataset_json = dataset_json or find_dataset_json(predictions, references)
    dataset = read_organs(dataset_json)
    _check_numbers(predictions, dataset_json, dataset)
    present = present or default_present(dataset_json)
    contoured = _contoured(present, dataset, [predictions, references]) if present else None
    folders = [predictions, *([other] if other else [])]
    noise = noise_warning(references, known_cases(*folders) & known_cases(references))
    if other is None:
        from nnunet_ext.evaluation.folder import score_folder

        results = [
            score_folder(
                predictions,
                references,
                dataset.organs,
                contoured,
                ignore=dataset.ignore,
                contains=dataset.contains,
                quiet=quiet,
            )
        ]
        results[0].write(output)
        click.echo(results[0].text())
    else:
        from nnunet_ext.evaluation.comparison import compare_folders

        *results, text = compare_folders(
            predictions,
            other,
            references,
            output,
            dataset.organs,
            contoured,
            ignore=dataset.ignore,
            contains=dataset.contains,
            quiet=quiet,
        )
        click.echo(f"{results[0].text()}\n{text}")
    for line in [*noise, *_overlaps(folders, references, dataset)]:
        click.echo(f"WARNING {line}", err=True)
    click.echo(f"Written to {output}.")
    for result in results:
        result.raise_failed()


def _check_numbers(predictions: Path, dataset_json: Path, dataset: DatasetOrgans) -> None:
    from nnunet_ext.evaluation.dataset import read_organs

    own = predictions / "dataset.json"  # nnunet-ext predict and nnU-Net leave one that numbers the organs of the maps
    if own.is_file():
        numbers = read_organs(own).organs
        other_number = [o for o, n in dataset.organs.items() if numbers.get(o, n) != n]
        if other_number:
            raise InputError(
                f"{own} and {dataset_json} number {', '.join(other_number)} differently; renumber one of them."
            )


def _contoured(path: Path, dataset: DatasetOrgans, folders: Sequence[Path]) -> dict[str, Sequence[int]]:
    """Contoured labels per case; other organs and cases of the dataset that the list lies in may be listed, too."""
    from nnunet_ext.evaluation.dataset import DATASET_FILE, check_present, read_organs, read_present
    from nnunet_ext.evaluation.folder import known_cases

    listed, beside = read_present(path), path.absolute().parent
    numbers = dataset.numbers
    if (beside / DATASET_FILE).is_file():
        numbers |= read_organs(beside / DATASET_FILE).numbers
    known = known_cases(*folders, beside / "labelsTr")
    whole = (beside / "labelsTr").is_dir()  # elsewhere a list may be of more cases than are judged
    check_present(path, listed, numbers, known if whole else None)
    if unknown := sorted(set(listed) - known) if not whole else []:
        click.echo(f"WARNING {path} lists {some_of(unknown)}, of which no map is here.", err=True)
    return listed


def _overlaps(folders: Sequence[Path], references: Path, dataset: DatasetOrgans) -> Iterator[str]:
    """What the scores of some folders cannot say, a line each."""
    from nnunet_ext.evaluation.caveats import overlap_warning
    from nnunet_ext.evaluation.folder import label_files

    drawn = label_files(references)
    for folder in folders:
        yield from overlap_warning(
            folder, [(p, drawn[c]) for c, p in label_files(folder).items() if c in drawn], dataset
        )
