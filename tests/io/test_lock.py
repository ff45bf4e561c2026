from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nnunet_ext.errors import BusyError, InputError
from nnunet_ext.io.lock import locked

TAKE = """
import sys
from pathlib import Path
from nnunet_ext.errors import NnunetExtError
from nnunet_ext.io.lock import locked
try:
    with locked(Path(sys.argv[1])):
        print("taken", flush=True)
        sys.stdin.read()
except NnunetExtError as error:
    print(error)
    sys.exit(error.exit_code)
"""


def take(path: Path) -> subprocess.CompletedProcess[str]:
    """Another process that takes the lock and lets it go at once."""
    return subprocess.run([sys.executable, "-c", TAKE, path], input="", capture_output=True, text=True, check=False)


def test_a_second_process_is_told_to_wait_with_exit_code_75(tmp_path):
    with locked(tmp_path / "new" / ".lock"):
        second = take(tmp_path / "new" / ".lock")
    assert second.returncode == 75
    assert f"another process works in {tmp_path / 'new'}" in second.stdout


def test_the_lock_is_free_again_after_the_block_and_after_an_error(tmp_path):
    with pytest.raises(KeyError), locked(tmp_path / ".lock"):
        raise KeyError
    assert take(tmp_path / ".lock").returncode == 0


def test_the_caller_says_what_the_other_process_does_and_may_leave_no_file(tmp_path):
    path = tmp_path / ".lock"
    with locked(path, "another one converts.", remove=True):
        with pytest.raises(BusyError, match="another one converts"), locked(path, "another one converts.", remove=True):
            pass
        assert path.exists()
    assert not path.exists()


def test_the_lock_ends_with_a_killed_process(tmp_path):
    command = [sys.executable, "-c", TAKE, tmp_path / ".lock"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "taken\n"
        with pytest.raises(BusyError), locked(tmp_path / ".lock"):
            pass
        holder.kill()
        holder.wait()
    with locked(tmp_path / ".lock"):
        pass


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_not_taken_for_another_process(tmp_path, monkeypatch, code):
    def refuse(handle: int, how: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    message = rf"\.lock cannot be locked \({os.strerror(code)}\), as on some network drives"
    with pytest.raises(InputError, match=message), locked(tmp_path / ".lock"):
        pass
