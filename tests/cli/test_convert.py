from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from nnunet_ext.cli import main

LABELS = ["--labels", "Brainstem=1,SpinalCord=2"]


def _save(path: Path, array: np.ndarray, **fields) -> None:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((1.0, 1.0, 3.0))
    image.SetOrigin(fields.get("origin", (0.0, 0.0, 0.0)))
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path), True)


def _draw(folder: Path, cases: int, shape: tuple[int, int, int] = (6, 8, 10)) -> Path:
    for i in range(cases):
        noise = np.random.default_rng(i).integers(-20, 20, shape).astype(np.int16)
        noise[: shape[0] // 2] -= 1000
        labels = np.zeros(shape, np.uint8)
        labels[2:4, 2:4, 2:4] = 1
        labels[2:4, 5:7, 2:4] = 2
        _save(folder / f"images/c{i}.nii.gz", noise)
        _save(folder / f"labels/c{i}.nii.gz", labels)
    return folder


def _run(monkeypatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["nnunet-ext", "convert", *map(str, words)])
    with pytest.raises(SystemExit) as caught:
        main()
    return int(caught.value.code or 0)


@pytest.fixture
def raw(tmp_path, monkeypatch):
    for key in ("nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    return tmp_path / "raw"


def test_good_folder_ends_with_0_and_a_table(monkeypatch, raw, tmp_path, capsys):
    assert _run(monkeypatch, "nifti", _draw(tmp_path / "s", 3), "-d", 7, "--name", "Mine", *LABELS) == 0
    out = capsys.readouterr().out
    assert "Brainstem" in out
    assert "3 training cases converted" in out
    assert (raw / "Dataset007_Mine/dataset.json").is_file()


def test_quiet_says_nothing(monkeypatch, raw, tmp_path, capfd):
    assert _run(monkeypatch, "nifti", _draw(tmp_path / "s", 3), "-d", 7, "--quiet", *LABELS) == 0
    assert capfd.readouterr() == ("", "")


def test_some_bad_cases_end_with_3_and_name_every_one(monkeypatch, raw, tmp_path, capsys):
    source = _draw(tmp_path / "s", 7)
    cut = source / "images/c0.nii.gz"
    cut.write_bytes(cut.read_bytes()[:200])
    holes = np.full((6, 8, 10), -1000.0, np.float32)
    holes[3, 3, 3] = np.nan
    _save(source / "images/c1.nii.gz", holes)
    _save(source / "labels/c2.nii.gz", np.ones((6, 8, 10), np.uint8), origin=(0.0, 4.0, 0.0))
    _save(source / "labels/c3.nii.gz", np.full((6, 8, 10), 5, np.uint8))
    assert _run(monkeypatch, "nifti", source, "-d", 7, "--name", "Mine", *LABELS) == 3
    err = capsys.readouterr().err
    for words in ("images/c0.nii.gz is truncated", "images/c1.nii.gz has 1 NaN", "another grid", "label value 5 (480"):
        assert words in err
    assert sorted(p.name for p in (raw / "Dataset007_Mine/labelsTr").iterdir()) == [
        "c4.nii.gz",
        "c5.nii.gz",
        "c6.nii.gz",
    ]
    assert not list(raw.rglob(".*"))


def test_taken_number_ends_with_2(monkeypatch, raw, tmp_path, capsys):
    source = _draw(tmp_path / "s", 2)
    assert _run(monkeypatch, "nifti", source, "-d", 7, *LABELS) == 0
    assert _run(monkeypatch, "nifti", source, "-d", 7, "--name", "Other", *LABELS) == 2
    assert "Dataset007_Nifti" in capsys.readouterr().err
    assert _run(monkeypatch, "nifti", source, "-d", 7, "--name", "Other", "--overwrite", *LABELS) == 0


def test_preprocessed_data_of_the_replaced_dataset_are_named(monkeypatch, raw, tmp_path, capsys):
    source = _draw(tmp_path / "s", 2)
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    assert _run(monkeypatch, "nifti", source, "-d", 7, *LABELS) == 0
    assert "WARNING" not in capsys.readouterr().err
    (tmp_path / "preprocessed" / "Dataset007_Nifti").mkdir(parents=True)
    assert _run(monkeypatch, "nifti", source, "-d", 7, "--overwrite", *LABELS) == 0
    assert "Dataset007_Nifti was made from an earlier dataset of this name; delete it" in capsys.readouterr().err


def test_noisy_copies_of_the_replaced_dataset_are_named(monkeypatch, raw, tmp_path, capsys):
    source = _draw(tmp_path / "s", 2)
    assert _run(monkeypatch, "nifti", source, "-d", 7, *LABELS) == 0
    (raw / "Dataset008_Noisy").mkdir()
    (raw / "Dataset008_Noisy" / "noise.json").write_text(json.dumps({"source": "Dataset007_Nifti"}))
    capsys.readouterr()
    assert _run(monkeypatch, "nifti", source, "-d", 7, "--name", "Other", "--overwrite", *LABELS) == 0
    assert (
        "WARNING Dataset008_Noisy links to the images of Dataset007_Nifti, which was replaced;"
        in capsys.readouterr().err
    )
    assert _run(monkeypatch, "nifti", source, "-d", 7, "--name", "Third", "--overwrite", *LABELS) == 0
    assert "WARNING" not in capsys.readouterr().err  # nothing is derived from Dataset007_Other
    shutil.rmtree(raw / "Dataset007_Third")
    assert _run(monkeypatch, "nifti", source, "-d", 7, *LABELS) == 0
    assert (
        "WARNING Dataset008_Noisy links to the images of Dataset007_Nifti, which was replaced;"
        in capsys.readouterr().err
    )


def test_missing_variable_ends_with_2_and_is_named(monkeypatch, tmp_path, capsys):
    monkeypatch.delenv("nnUNet_raw", raising=False)
    assert _run(monkeypatch, "nifti", _draw(tmp_path / "s", 2), "-d", 7, *LABELS) == 2
    assert "nnUNet_raw is not set; export nnUNet_raw=FOLDER" in capsys.readouterr().err


def test_unusable_folder_ends_with_2_and_leaves_nothing(monkeypatch, raw, tmp_path):
    (tmp_path / "empty").mkdir()
    assert _run(monkeypatch, "nifti", tmp_path / "empty", "-d", 7, *LABELS) == 2
    assert not raw.exists()


def test_unknown_source_ends_with_2(monkeypatch, raw, tmp_path):
    assert _run(monkeypatch, "nowhere", tmp_path, "-d", 7) == 2


def test_help_lists_the_sources_and_their_options(monkeypatch, capsys):
    assert _run(monkeypatch, "--help") == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("nifti", "openkbp", "structseg-han"))
    assert _run(monkeypatch, "nifti", "--help") == 0
    out = capsys.readouterr().out
    assert all(flag in out for flag in ("--labels", "--ignore-labels", "--overwrite"))


@pytest.mark.parametrize("source", ["nifti", "openkbp", "structseg-han"])
def test_help_loads_nothing_heavy(source):
    code = (
        "import sys\nfrom nnunet_ext.cli import cli\n"
        f"cli(['convert', '{source}', '--help'], standalone_mode=False)\n"
        "heavy = {'numpy', 'SimpleITK', 'nibabel', 'torch', 'nnunetv2'} & set(sys.modules)\n"
        "sys.exit(' '.join(heavy) or None)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _hashes(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def _start(source: Path, raw: Path) -> subprocess.Popen[bytes]:
    words = ["convert", "nifti", str(source), "-d", "7", "--name", "Mine", "--quiet", *LABELS]
    code = f"import sys; sys.argv = ['nnunet-ext', *{words!r}]; from nnunet_ext.cli import main; main()"
    return subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "nnUNet_raw": str(raw)})


def test_kill_9_and_the_same_command_again_give_the_same_files(raw, tmp_path):
    source = _draw(tmp_path / "s", 12, shape=(40, 96, 96))
    process = _start(source, raw)
    records = raw / ".converting-Dataset007_Mine/.cases"
    deadline = time.monotonic() + 60
    while len(list(records.glob("case-*.json"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (raw / "Dataset007_Mine").exists()
    finished = {path: path.stat().st_mtime_ns for path in records.glob("case-*.json")}
    assert len(finished) >= 3
    assert _start(source, raw).wait() == 0
    assert _start(source, tmp_path / "whole").wait() == 0
    assert _hashes(raw / "Dataset007_Mine") == _hashes(tmp_path / "whole/Dataset007_Mine")
    assert json.loads((raw / "Dataset007_Mine/dataset.json").read_text())["numTraining"] == 12
    assert [path.name for path in raw.iterdir()] == ["Dataset007_Mine"]


def test_an_empty_contour_is_absent_where_the_user_says_so(monkeypatch, raw, tmp_path, capsys):
    source = _draw(tmp_path / "s", 3)
    _save(source / "labels/c0.nii.gz", np.zeros((6, 8, 10), np.uint8))
    assert _run(monkeypatch, "nifti", source, "-d", 7, "--name", "Mine", *LABELS) == 0
    assert "no voxel of Brainstem in 1, SpinalCord in 1 of 3 cases" in capsys.readouterr().out
    listed = raw / "Dataset007_Mine" / "present_labels.json"
    assert json.loads(listed.read_text())["c0"] == []
    assert (
        _run(monkeypatch, "nifti", source, "-d", 7, "--name", "Mine", *LABELS, "--overwrite", "--empty", "absent") == 0
    )
    assert json.loads(listed.read_text())["c0"] == [1, 2]
