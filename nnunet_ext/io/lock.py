"""One process per output folder: a lock that ends with its process, whatever ends it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from nnunet_ext.errors import BusyError, InputError

try:
    import fcntl
except ImportError:  # Windows: no advisory locks; two processes at once are then the user's care
    fcntl = None  # type: ignore[assignment]


@contextlib.contextmanager
def locked(path: Path, busy: str = "", *, remove: bool = False) -> Iterator[None]:
    """Hold a lock file while the block runs.

    Args:
        path: The lock file.
        busy: What to say when another process holds it; empty names its folder.
        remove: Leave no lock file behind.

    Raises:
        BusyError: another process holds it.
        InputError: the file system cannot lock it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as stream:
        if not _taken(stream.fileno(), path):
            raise BusyError(busy or f"another process works in {path.parent}; wait for it or stop it.")
        try:
            yield
        finally:
            if remove:
                path.unlink(missing_ok=True)


def _taken(handle: int, path: Path) -> bool:
    """Lock an open file; False where it is locked, or was removed by the process that held it."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.stat(handle), path.stat())
    except (BlockingIOError, FileNotFoundError):
        return False
    except OSError as error:
        raise InputError(
            f"{path} cannot be locked ({error.strerror}), as on some network drives; choose a folder on another drive."
        ) from error
