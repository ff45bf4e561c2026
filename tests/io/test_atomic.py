from __future__ import annotations

import errno
import hashlib
import os
import re

import pytest

from nnunet_ext.errors import BusyError, InputError
from nnunet_ext.io.atomic import atomic_path, read_json, sha256_of, write_json, write_text


def test_a_failure_leaves_the_old_file_and_no_temporary(tmp_path):
    final = tmp_path / "plans.json"
    final.write_text("old")

    def fail_half_way() -> None:
        with atomic_path(final) as temporary:
            temporary.write_text("half of the ne")
            raise RuntimeError("power")

    with pytest.raises(RuntimeError, match="power"):
        fail_half_way()
    assert final.read_text() == "old"
    assert list(tmp_path.iterdir()) == [final]


def test_an_interruption_leaves_the_old_file_and_no_temporary(tmp_path):
    final = tmp_path / "plans.json"
    with pytest.raises(KeyboardInterrupt), atomic_path(final):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_at_the_final_name_before_the_block_ends(tmp_path):
    final = tmp_path / "deep" / "folder" / "labels.nii.gz"
    with atomic_path(final) as temporary:
        temporary.write_bytes(b"new")
        assert not final.exists()
        assert temporary.parent == final.parent
    assert final.read_bytes() == b"new"
    assert list(final.parent.iterdir()) == [final]


@pytest.mark.parametrize(
    ("name", "ending"),
    [("case_1.5.nii.gz", ".nii.gz"), ("plans.json", ".json"), ("model.best.pth", ".pth"), ("README", "")],
)
def test_the_temporary_keeps_the_ending_that_writers_look_at(tmp_path, name, ending):
    with atomic_path(tmp_path / name) as temporary:
        assert "".join(temporary.suffixes) == ending
    assert (tmp_path / name).exists()


def test_the_file_is_readable_for_others(tmp_path):
    write_text(tmp_path / "note.txt", "all")
    assert (tmp_path / "note.txt").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_said_as_such_and_other_errors_as_they_are(tmp_path, code):
    final = tmp_path / "labels.nii.gz"
    with pytest.raises(BusyError, match=f"no space left while writing {final}"), atomic_path(final):
        raise OSError(code, os.strerror(code))
    with pytest.raises(PermissionError), atomic_path(final):
        raise PermissionError
    assert list(tmp_path.iterdir()) == []


def test_json_comes_back_as_it_was_written(tmp_path):
    content = {"organ": "Sehnerv, größer", "box": [[-3, 0, 5], [9, 4, 8]], "dsc": 0.1, "none": None}
    write_json(tmp_path / "a.json", content)
    assert read_json(tmp_path / "a.json") == content
    assert "größer" in (tmp_path / "a.json").read_text(encoding="utf-8")


def test_content_that_json_cannot_hold_leaves_the_old_file(tmp_path):
    write_json(tmp_path / "a.json", {"old": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"new": {1, 2}})
    assert read_json(tmp_path / "a.json") == {"old": 1}
    assert len(list(tmp_path.iterdir())) == 1


def test_numbers_that_json_does_not_have_become_null(tmp_path):
    write_json(tmp_path / "a.json", {"kept": [float("nan"), 1.0], "worst": (float("inf"), -float("inf"))})
    assert read_json(tmp_path / "a.json") == {"kept": [None, 1.0], "worst": [None, None]}
    assert "NaN" not in (tmp_path / "a.json").read_text()


@pytest.mark.parametrize("content", [None, b"{broken", b"\xff\xfe\x00", b""])
def test_a_file_that_is_missing_or_no_json_is_named(tmp_path, content):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.json cannot be read as JSON .*; check the path and the file"):
        read_json(path)


def test_the_hash_of_a_file_is_that_of_its_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"organ")
    assert sha256_of(tmp_path / "a") == hashlib.sha256(b"organ").hexdigest()


def test_a_file_that_is_missing_or_a_link_to_nothing_is_named_with_the_remedy(tmp_path):
    path = tmp_path / "a"
    for _ in range(2):
        with pytest.raises(InputError, match=rf"^{re.escape(str(path))} is missing; restore it, or what it is a link"):
            sha256_of(path)
        path.unlink(missing_ok=True)
        path.symlink_to("nowhere")
    with pytest.raises(InputError, match="is missing; train it"):
        sha256_of(path, "train it")
