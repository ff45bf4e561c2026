"""The exceptions that reach a user, each with the exit code its command ends with.

Exit codes: 0 done, 1 our fault, 2 usage or input, 3 some cases failed, 75 locked or no space.
A message says what is wrong, what was expected, what came and what to do, in one sentence.
"""

from __future__ import annotations

from collections.abc import Sequence


class NnunetExtError(Exception):
    """Root of all our errors; the command line prints its message and ends with ``exit_code``."""

    exit_code = 1


class InputError(NnunetExtError):
    """The user's files or options are wrong; the message names the file and the fix."""

    exit_code = 2


class CasesFailedError(NnunetExtError):
    """Some cases failed and the others are done; the message lists every failed case with its cause."""

    exit_code = 3


class BusyError(NnunetExtError):
    """Another process works on the same output, or the disk is full; try again later."""

    exit_code = 75


def some_of(names: Sequence[str], at_most: int = 5) -> str:
    """The first names and how many more there are, for a message."""
    more = f" and {len(names) - at_most} more" if len(names) > at_most else ""
    return ", ".join(names[:at_most]) + more
