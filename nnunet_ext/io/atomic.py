"""Files that are whole or not there: write to a temporary name in the same folder, sync, rename."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nnunet_ext.errors import BusyError, InputError

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
"""The disk is full, or the user's share of it."""


@contextlib.contextmanager
def atomic_path(final: Path) -> Iterator[Path]:
    """A temporary path beside ``final`` with the same ending; renamed onto it when the block ends without an error.

    Raises:
        BusyError: the disk is full.
    """
    ending = "".join(final.suffixes[-2:]) if final.name.endswith(".gz") else final.suffix
    with _full_disk_named(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".part-", suffix=ending, dir=final.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            with temporary.open("rb") as stream:
                os.fsync(stream.fileno())
            temporary.chmod(0o644)
            temporary.replace(final)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _full_disk_named(final: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in NO_SPACE:
            raise BusyError(
                f"no space left while writing {final}; free some and run the same command again."
            ) from error
        raise


def write_text(path: Path, text: str) -> None:
    """Write a whole text file or nothing."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write a whole JSON file or nothing; NaN and infinity, which JSON does not have, become null."""
    write_text(path, json.dumps(without_nan(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def without_nan(content: Any) -> Any:
    """The same content with None for every float that is not finite."""
    if isinstance(content, dict):
        return {key: without_nan(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [without_nan(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def read_json(path: Path) -> Any:
    """Content of a JSON file.

    Raises:
        InputError: the file is missing, cannot be read, or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error}); check the path and the file.") from error


def sha256_of(path: Path, remedy: str = "restore it, or what it is a link to") -> str:
    """SHA-256 of a file's content.

    Args:
        path: The file.
        remedy: What to do where it is missing.

    Raises:
        InputError: it is missing.
    """
    if not path.exists():
        raise InputError(f"{path} is missing; {remedy}.")
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
