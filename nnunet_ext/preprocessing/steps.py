"""Named steps, so that a new patient is treated exactly as the training data were.

A dataset.json lists them per channel under ``nnunet_ext.preprocessing``, such as ``{"CT": ["remove_couch"]}``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from nnunet_ext.errors import InputError
from nnunet_ext.geometry import Grid
from nnunet_ext.io.orientation import from_lps, to_lps
from nnunet_ext.preprocessing.bias_field import Progress, correct_bias_field
from nnunet_ext.preprocessing.body_mask import remove_couch
from nnunet_ext.preprocessing.images import Mask

Image = NDArray[np.float32]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Stepped:
    """What one step made of one image.

    Args:
        image: (Z, Y, X) float32, new.
        notes: What was done, in words.
        kept: Where values were kept; None for a step that removes nothing.
    """

    image: Image
    notes: list[str]
    kept: Mask | None = None


def _without_couch(image: Image, grid: Grid, progress: Progress) -> Stepped:
    result, kept, notes = remove_couch(image, grid)
    progress(1.0)
    return Stepped(result, notes, kept)


def _without_bias_field(image: Image, grid: Grid, progress: Progress) -> Stepped:
    done = correct_bias_field(image, grid, progress=progress)
    spread = float(np.exp(np.ptp(done.log_field)))
    note = f"bias field removed by N4, {done.iterations} iterations, brightest to darkest {spread:.2f}"
    return Stepped(done.image, [note + (", stopped by the time limit" if done.stopped else "")])


STEPS: dict[str, Callable[[Image, Grid, Progress], Stepped]] = {
    "remove_couch": _without_couch,
    "n4": _without_bias_field,
}
"""Name to step: ``remove_couch`` for CT (couch and thermoplastic mask), ``n4`` for MR (bias field)."""


def apply_steps(
    images: Mapping[str, Image], grid: Grid, steps: Mapping[str, Sequence[str]], *, say: Say | None = None
) -> tuple[dict[str, Image], list[str]]:
    """The images after their steps, and what was done in words.

    Args:
        images: Channel name to image; channels without steps come back as they are.
        grid: Of all images.
        steps: Channel name to step names, in order.
        say: Called with the progress, such as ``T1w: n4 35 %``.

    Shape:
        images: (Z, Y, X) float32 each, CT in HU.
        returns: the same channels and shapes; a treated image is a new array.

    Raises:
        InputError: a channel or step is unknown, or a step cannot be done; the message names the channel.
    """
    done, _, notes = treat(images, grid, steps, say=say)
    return done, notes


def treat(
    images: Mapping[str, Image], grid: Grid, steps: Mapping[str, Sequence[str]], *, say: Say | None = None
) -> tuple[dict[str, Image], dict[str, Mask], list[str]]:
    """As ``apply_steps``, with the masks of what was kept, for channels from which something was removed.

    Raises:
        InputError: as apply_steps.
    """
    check_steps(steps, images)
    done: dict[str, Image] = dict(images)
    kept: dict[str, Mask] = {}
    notes: list[str] = []
    for channel, names in steps.items():
        for name in names:
            step = _step(channel, name, done[channel], grid, say)
            done[channel] = step.image
            notes += [f"{channel}: {note}" for note in step.notes]
            if step.kept is not None:
                kept[channel] = step.kept
    return done, kept, notes


def check_steps(steps: Mapping[str, Sequence[str]], channels: Mapping[str, object] | Sequence[str]) -> None:
    """Refuse steps or channels that do not exist.

    Raises:
        InputError: naming the first one.
    """
    for channel, names in steps.items():
        if channel not in channels:
            raise InputError(f"steps are listed for channel {channel}, but there are only {', '.join(channels)}.")
        for name in names:
            if name not in STEPS:
                raise InputError(
                    f"channel {channel} asks for step {name!r}, known are {', '.join(STEPS)}; "
                    "correct dataset.json or update nnunet-ext."
                )


def _step(channel: str, name: str, image: Image, grid: Grid, say: Say | None) -> Stepped:
    """One step, done in the canonical frame, so that the orientation of a file changes nothing."""

    def progress(fraction: float) -> None:
        if say:
            say(f"{channel}: {name} {fraction:.0%}")

    try:
        progress(0.0)
        step = STEPS[name](*to_lps(image, grid), progress)
    except InputError as error:
        raise InputError(f"{channel}: {error}") from error
    kept = None if step.kept is None else from_lps(step.kept, grid)
    return replace(step, image=from_lps(step.image, grid), kept=kept)
