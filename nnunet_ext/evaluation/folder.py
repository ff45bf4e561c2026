"""Two folders of label maps to a report: each case judged on its own, a bad one named, the others done."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from nnunet_ext.errors import CasesFailedError, InputError
from nnunet_ext.evaluation.metrics import Contains, Organs, OrganScore, inner_labels, score_case
from nnunet_ext.evaluation.report import csv_text, json_content, table
from nnunet_ext.geometry import grid_difference
from nnunet_ext.io.atomic import write_json, write_text
from nnunet_ext.io.nifti import read_labels

ENDINGS = (".nii.gz", ".nii")
Present = Mapping[str, Collection[int]]
"""Case to the labels that were contoured in it."""


@dataclass(frozen=True)
class FolderScores:
    """What came out of two folders.

    Args:
        scores: Case to the scores of its organs.
        failed: Case to the sentence that says why it has none.
        only_predicted: Cases without a reference.
        only_reference: Cases without a prediction.
        contains: Organ to the organs inside it, whose voxels were counted as its own.
    """

    scores: dict[str, list[OrganScore]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    only_predicted: list[str] = field(default_factory=list)
    only_reference: list[str] = field(default_factory=list)
    contains: Contains = field(default_factory=dict)

    @property
    def notes(self) -> list[str]:
        """One line for every way in which the two folders did not fit, naming the cases."""
        notes = []
        if self.only_predicted:
            notes.append(f"Not judged, prediction without reference: {', '.join(self.only_predicted)}.")
        if self.only_reference:
            notes.append(f"Not judged, reference without prediction: {', '.join(self.only_reference)}.")
        notes += [f"Failed, {case}: {cause}" for case, cause in self.failed.items()]
        return notes

    @property
    def definitions(self) -> list[str]:
        """One line for every organ that was judged with the organs inside it."""
        return [
            f"{organ} is judged together with {', '.join(inner)}, inside it, in both maps."
            for organ, inner in self.contains.items()
        ]

    def text(self) -> str:
        """The table, the definitions and the notes."""
        return table(self.scores) + "".join(f"{line}\n" for line in [*self.definitions, *self.notes])

    def write(self, output: Path) -> None:
        """Write metrics.csv, metrics.json and table.txt, each whole or not at all."""
        content = json_content(self.scores)
        content["definitions"] += self.definitions
        content["failed"] = self.failed
        content["only_predicted"], content["only_reference"] = self.only_predicted, self.only_reference
        write_text(output / "metrics.csv", csv_text(self.scores))
        write_json(output / "metrics.json", content)
        write_text(output / "table.txt", self.text())

    def raise_failed(self) -> None:
        """Raise CasesFailedError with every failed case and its cause, if there is one."""
        if self.failed:
            causes = " ".join(f"{case}: {cause}" for case, cause in self.failed.items())
            raise CasesFailedError(
                f"{len(self.failed)} of {len(self.failed) + len(self.scores)} cases failed, "
                f"the others are done. {causes}"
            )


def label_files(folder: Path) -> dict[str, Path]:
    """Case to NIfTI file, sorted by case.

    Raises:
        InputError: the folder is missing or holds no NIfTI file.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give one with label maps (.nii.gz).")
    files = _maps_in(folder)
    if not files:
        raise InputError(f"{folder} holds no {' or '.join(ENDINGS)} file; give a folder with label maps.")
    return files


def known_cases(*folders: Path) -> set[str]:
    """Cases with a label map in any of some folders, those that are not there left out."""
    return {case for folder in folders if folder.is_dir() for case in _maps_in(folder)}


def _maps_in(folder: Path) -> dict[str, Path]:
    return {
        path.name.removesuffix(ending): path
        for path in sorted(folder.iterdir())
        for ending in ENDINGS
        if path.name.endswith(ending) and not path.name.startswith(".")
    }


def score_files(
    prediction: Path,
    reference: Path,
    organs: Organs,
    contoured: Collection[int] | None = None,
    ignore: int | None = None,
    inside: Mapping[str, Sequence[int]] | None = None,
) -> list[OrganScore]:
    """Scores of one case from its two files.

    Raises:
        InputError: a file cannot be used, or the two grids differ.
    """
    with ThreadPoolExecutor(2) as pool:  # unpacking runs outside Python's lock
        (predicted, grid), (drawn, reference_grid) = pool.map(read_labels, (prediction, reference))
    difference = grid_difference(grid, reference_grid)
    if difference:
        raise InputError(
            f"{prediction} and {reference} differ in grid: {difference}; "
            "predict on the image that the reference was drawn on."
        )
    return score_case(predicted, drawn, organs, grid.spacing_mm, contoured, ignore=ignore, inside=inside)


def score_folder(
    predictions: Path,
    references: Path,
    organs: Organs,
    present: Present | None = None,
    *,
    ignore: int | None = None,
    contains: Contains | None = None,
    quiet: bool = False,
) -> FolderScores:
    """Scores of every case that both folders hold; a case that cannot be used is listed with its cause.

    Args:
        predictions: Folder with the label maps to judge.
        references: Folder with the label maps to believe, under the same names.
        organs: Organ name to label or labels.
        present: Case to contoured labels; a case that is not listed counts as fully contoured.
        ignore: Reference label whose voxels do not count.
        contains: Organ to the organs inside it, whose voxels count as its own.
        quiet: No progress bar.

    Raises:
        InputError: a folder is missing or empty, or the two have no case in common.
    """
    predicted, drawn = label_files(predictions), label_files(references)
    both = [case for case in predicted if case in drawn]
    if not both:
        raise InputError(
            f"{predictions} and {references} have no case in common "
            f"({next(iter(predicted))}, ... and {next(iter(drawn))}, ...); files need equal names."
        )
    inside = inner_labels(contains, organs) if contains else None
    result = FolderScores(
        contains=contains or {},
        only_predicted=[case for case in predicted if case not in drawn],
        only_reference=[case for case in drawn if case not in predicted],
    )
    for case in tqdm(both, desc="evaluate", unit="case", disable=quiet):
        contoured = present.get(case) if present else None
        try:
            result.scores[case] = score_files(predicted[case], drawn[case], organs, contoured, ignore, inside)
        except (InputError, OSError, MemoryError) as error:
            result.failed[case] = str(error) or type(error).__name__
    return result


def evaluate_folder(
    predictions: Path,
    references: Path,
    output: Path,
    organs: Organs,
    present: Present | None = None,
    *,
    ignore: int | None = None,
    contains: Contains | None = None,
    quiet: bool = False,
) -> FolderScores:
    """Judge a folder and write metrics.csv, metrics.json and table.txt.

    Args:
        predictions: Folder with the label maps to judge.
        references: Folder with the label maps to believe, under the same names.
        output: Folder for the three files.
        organs: Organ name to label or labels.
        present: Case to contoured labels; a case that is not listed counts as fully contoured.
        ignore: Reference label whose voxels do not count.
        contains: Organ to the organs inside it, whose voxels count as its own.
        quiet: No progress bar.

    Raises:
        InputError: a folder is missing or empty, or the two have no case in common.
        CasesFailedError: some cases could not be used; the files are written from the others.
    """
    result = score_folder(predictions, references, organs, present, ignore=ignore, contains=contains, quiet=quiet)
    result.write(output)
    result.raise_failed()
    return result
