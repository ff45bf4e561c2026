"""The files beside the checkpoints that hold QAM and memories, and which of them belongs to a segmenter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nnunet_ext.training.checkpoint import DAMAGE, read_checkpoint, write_checkpoint

LATEST, PREVIOUS, BEST = (f"checkpoint_{which}.quality.pth" for which in ("latest", "previous", "best"))


def quality_file(checkpoint: Path) -> Path:
    """Where QAM and memories of a checkpoint are."""
    return checkpoint.with_suffix(".quality.pth")


def write_quality(content: dict[str, Any], path: Path) -> None:
    """Write a file; the latest one keeps the one before."""
    write_checkpoint(content, path, path.with_name(PREVIOUS) if path.name == LATEST else None)


def read_quality(path: Path, epoch: int) -> tuple[Path, dict[str, Any]] | None:
    """The file of the segmenter's epoch: a run killed between two writes has it under an older name; None if none.

    Args:
        path: Beside the segmenter's checkpoint.
        epoch: Of the segmenter.
    """
    candidates = [path, path.with_name(PREVIOUS), path.with_name(BEST)] if path.name == LATEST else [path]
    for candidate in candidates:
        try:
            content = read_checkpoint(candidate)
        except DAMAGE:
            continue
        if content["current_epoch"] == epoch:
            return candidate, content
    return None


def is_trained(content: dict[str, Any]) -> bool:
    """Whether the QAM of a file was ever trained; a file that does not say so shows it by its optimiser's moments."""
    moments = content["qam_optimizer"]["state"].values()
    return bool(content.get("qam_trained", any(bool(m["exp_avg_sq"].any()) for m in moments)))
