"""What preprocessing hands on beside nnU-Net's own files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nnunet_ext.planning import plan


def test_the_copy_of_the_contoured_labels_goes_without_test_cases_but_keeps_names_that_nobody_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("raw", "preprocessed"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    monkeypatch.setattr(plan, "dataset_name", lambda number: "Dataset011_Drawn")
    monkeypatch.setattr(plan, "preprocess_dataset", lambda *_, **__: None)
    raw = tmp_path / "raw" / "Dataset011_Drawn"
    for file in ("labelsTr/a.nii.gz", "imagesTs/t_0000.nii.gz"):
        (raw / file).parent.mkdir(parents=True)
        (raw / file).write_text("")
    (raw / "present_labels.json").write_text(json.dumps({"a": [1], "t": [], "typo": [1]}))
    plan.preprocess(11, "plans", ["2d"], 1)
    copy = tmp_path / "preprocessed" / "Dataset011_Drawn" / "present_labels.json"
    assert json.loads(copy.read_text()) == {"a": [1], "typo": [1]}
