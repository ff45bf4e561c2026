from __future__ import annotations

import pytest
from click.testing import CliRunner

from nnunet_ext.cli.doctor import command
from nnunet_ext.errors import InputError
from nnunet_ext.training import doctor
from nnunet_ext.training.doctor import Finding


def test_findings_are_printed_with_what_to_do(monkeypatch):
    monkeypatch.setattr(doctor, "examine", lambda: [Finding("warning", "GPU", "none", "buy one.")])
    result = CliRunner().invoke(command)
    assert result.exit_code == 0
    assert result.output.split() == ["warning", "GPU:", "none", "->", "buy", "one."]


def test_problems_end_with_the_code_of_bad_input(monkeypatch):
    monkeypatch.setattr(doctor, "examine", lambda: [Finding("problem", "torch", "is missing", "install it.")] * 2)
    with pytest.raises(InputError, match="2 problems") as caught:
        CliRunner().invoke(command, catch_exceptions=False)
    assert caught.value.exit_code == 2
