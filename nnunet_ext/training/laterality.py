"""Which array axis is left-right, and which mirrors are legal: derived from each case's direction cosines.

Mirroring an axis of a plane that is also rotated by 180° equals mirroring the other axis
(flip_y ∘ R180 = flip_x), so forbidding the left-right axis alone is not enough inside nnU-Net.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nnunet_ext.errors import InputError
from nnunet_ext.geometry import LEFT_RIGHT, MAX_OBLIQUE_DEG, body_axis
from nnunet_ext.labels import tg263_name


def direction_of(properties: Mapping[str, Any]) -> tuple[float, ...] | None:
    """Direction cosines (row-major 3×3, LPS) that nnU-Net's reader noted for a case, or None for plain pictures.

    Args:
        properties: The reader's properties of one case, as kept beside the preprocessed data.
    """
    if "sitk_stuff" in properties:
        direction = properties["sitk_stuff"]["direction"]
        return tuple(direction) if len(direction) == 9 else None
    if "nibabel_stuff" in properties:
        stuff = properties["nibabel_stuff"]
        affine = np.asarray(stuff.get("reoriented_affine", stuff.get("original_affine")))[:3, :3]
        cosines = affine / np.linalg.norm(affine, axis=0)
        return tuple((np.diag([-1.0, -1.0, 1.0]) @ cosines).ravel().tolist())
    return None


def lateral_axis(directions: Mapping[str, Sequence[float] | None], transpose_forward: Sequence[int]) -> int:
    """The axis of nnU-Net's transposed 3D arrays that runs left-right, agreed on by all cases.

    Args:
        directions: Case to direction cosines, as direction_of gives them.
        transpose_forward: Of the plans.

    Raises:
        InputError: a case has no direction or is oblique beyond 20°, or the cases disagree; the message names them.
    """
    found: dict[int, list[str]] = {}
    refused = []
    for case, direction in sorted(directions.items()):
        if direction is None:
            refused.append(f"{case} (no orientation)")
            continue
        axis, oblique_deg = body_axis(direction, LEFT_RIGHT)
        if oblique_deg > MAX_OBLIQUE_DEG:
            refused.append(f"{case} ({oblique_deg:.0f}° oblique)")
        found.setdefault(list(transpose_forward).index(axis), []).append(case)
    if refused:
        raise InputError(f"no left-right axis within {MAX_OBLIQUE_DEG:.0f}° for: {', '.join(refused)}; reorient them.")
    if len(found) != 1:
        groups = "; ".join(f"axis {axis}: {', '.join(cases[:5])}" for axis, cases in sorted(found.items()))
        raise InputError(f"the cases disagree on the left-right axis ({groups}); convert them to one orientation.")
    return next(iter(found))


def has_side(organ: str) -> bool:
    """Whether a name says left or right: a suffix after TG-263, a known spelling, or the word; in doubt yes."""
    return bool(re.search(r"left|right|(^|[^a-z])[lr]([^a-z]|$)", f"{organ} {tg263_name(organ)}".lower()))


def rotated_plane(dim: int, dummy_2d: bool) -> tuple[int, ...]:
    """The axes (of the transposed 3D array) that nnU-Net's rotation mixes: two in 2D and dummy-2D, else all three."""
    return (1, 2) if dim == 2 or dummy_2d else (0, 1, 2)


def legal_mirror_axes(dim: int, lateral: int, dummy_2d: bool, rotation_deg: float) -> tuple[int, ...]:
    """The axes that may be mirrored without turning a left organ into something that looks right.

    Args:
        dim: Dimensions of the patch, 2 or 3.
        lateral: Left-right axis in the transposed 3D array, 0 to 2.
        dummy_2d: 3D patches augmented slice by slice.
        rotation_deg: Largest rotation angle.

    Returns:
        Axes of the patch (in 2D the slice axis is dropped, so 3D axis 1 is 0), possibly none.
    """
    plane = rotated_plane(dim, dummy_2d)
    illegal = {lateral}
    if rotation_deg >= 90 and lateral in plane:
        illegal |= set(plane)
    offset = 3 - dim
    return tuple(axis - offset for axis in range(offset, 3) if axis not in illegal)
