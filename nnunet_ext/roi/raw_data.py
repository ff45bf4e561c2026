"""What the files of a raw dataset hold, a few letters per case, so that corrected contours are noticed later."""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunet_ext.errors import InputError, some_of
from nnunet_ext.evaluation.dataset import DATASET_FILE, PRESENT_FILE, check_present, read_organs, read_present
from nnunet_ext.io.atomic import sha256_of
from nnunet_ext.locations import FILE_ENDING

GZIP_END = 8
"""Bytes: a gzip stream ends with the CRC-32 and the length of its content (RFC 1952, section 2.3.1)."""


def digest_of(content: Any) -> str:
    """Hash of content as JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def contoured_in(dataset: Path) -> dict[str, Sequence[int]]:
    """Case to contoured labels, as a raw folder lists them; a case that is not listed is fully contoured.

    Raises:
        InputError: the list is damaged, or names a case or a label that the dataset does not have.
    """
    path = dataset / PRESENT_FILE
    if not path.exists():
        return {}
    listed = read_present(path)
    cases = {path.name.removesuffix(FILE_ENDING) for path in (dataset / "labelsTr").glob(f"*{FILE_ENDING}")}
    check_present(path, listed, read_organs(dataset / DATASET_FILE).numbers, cases)
    return listed


def case_digests(dataset: Path) -> dict[str, str]:
    """Training case to a hash of its images, its contours, and the list of those that were drawn.

    Copying a dataset changes none of them: times do not count, images by size and checksum, because to read them all
    takes long.

    Args:
        dataset: Raw folder.

    Raises:
        InputError: the list of contoured labels is damaged, or a file cannot be read.
    """
    images, contoured = image_digests(dataset), contoured_in(dataset)
    labels = {path.name.removesuffix(FILE_ENDING): path for path in (dataset / "labelsTr").glob(f"*{FILE_ENDING}")}
    return {
        case: digest_of(
            [images.get(case), sha256_of(labels[case]), sorted(contoured[case]) if case in contoured else None]
        )
        for case in sorted(labels)
    }


def image_digests(dataset: Path) -> dict[str, str]:
    """Training case to a hash of its images alone.

    Raises:
        InputError: an image cannot be read.
    """
    found: dict[str, list[Any]] = defaultdict(list)
    for path in sorted((dataset / "imagesTr").glob(f"[!.]*_[0-9][0-9][0-9][0-9]{FILE_ENDING}")):
        found[path.name.removesuffix(FILE_ENDING)[:-5]].append([path.name, *_size_and_checksum(path)])
    return {case: digest_of(stamps) for case, stamps in found.items()}


def _size_and_checksum(path: Path) -> tuple[int, str]:
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - GZIP_END))
            return size, stream.read().hex()
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}); restore it, or the clean dataset that it is a link to "
            "(`nnunet-ext noise` links to the images of its source)."
        ) from error


def changed_cases(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Names of the cases that differ, for a message; empty where none does."""
    return some_of(sorted(case for case in {*before, *now} if before.get(case) != now.get(case)))
