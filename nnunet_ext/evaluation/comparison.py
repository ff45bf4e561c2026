"""Two predictions of the same references: both evaluations, and the paired statistics per organ."""

from __future__ import annotations

from pathlib import Path

from nnunet_ext.evaluation.folder import FolderScores, Present, score_folder
from nnunet_ext.evaluation.metrics import Contains, Organs
from nnunet_ext.evaluation.statistics import compare, comparison_table
from nnunet_ext.io.atomic import write_text


def compare_folders(
    predictions: Path,
    other: Path,
    references: Path,
    output: Path,
    organs: Organs,
    present: Present | None = None,
    *,
    ignore: int | None = None,
    contains: Contains | None = None,
    quiet: bool = False,
) -> tuple[FolderScores, FolderScores, str]:
    """Judge two prediction folders and compare them case by case.

    Writes the first evaluation to ``output``, the second to ``output/compared`` and the statistics to
    ``output/comparison.txt``, where A is ``other`` and B is ``predictions``: a positive difference speaks for
    ``predictions``. Failed cases do not stop it; ask each result with ``raise_failed``.

    Args:
        predictions: Folder with the label maps to judge.
        other: Folder with the label maps to compare with.
        references: Folder with the label maps to believe.
        output: Folder for the files.
        organs: Organ name to label or labels.
        present: Case to contoured labels.
        ignore: Reference label whose voxels do not count.
        contains: Organ to the organs inside it, whose voxels count as its own.
        quiet: No progress bar.

    Returns:
        Scores of ``predictions``, scores of ``other``, and the text of the comparison.
    """
    first, second = (
        score_folder(folder, references, organs, present, ignore=ignore, contains=contains, quiet=quiet)
        for folder in (predictions, other)
    )
    text = f"A = {other}, B = {predictions}\n" + comparison_table(compare(second.scores, first.scores))
    text += "".join(f"{line}\n" for line in first.definitions)
    first.write(output)
    second.write(output / "compared")
    write_text(output / "comparison.txt", text)
    return first, second, text
