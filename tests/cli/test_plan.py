from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from nnunet_ext.cli.plan import command
from nnunet_ext.planning.names import NETWORKS


def nnunet_ext(world: SimpleNamespace, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in a fresh process, on the tiny world of tests/conftest.py."""
    command_line = [sys.executable, "-m", "nnunet_ext.cli", *arguments]
    return subprocess.run(command_line, env=world.environment, capture_output=True, text=True)


def test_plans_are_written_and_preprocessed_as_asked_and_the_next_command_is_named(world: SimpleNamespace) -> None:
    done = nnunet_ext(world, "plan", "-d", "901", "--preset", "cpu", "-p", "Mine", "-c", "2d", "-np", "1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == (
        "plans Mine are ready; next: nnunet-ext train RECIPE, or nnUNetv2_train 901 3d_fullres 0 -p Mine"
    )
    plans = json.loads((world.preprocessed / "Mine.json").read_text())
    assert plans["transpose_forward"][0] == 0
    assert plans["configurations"]["2d"]["nnunet_ext"]["optimizer"] == "AdamW"
    data = world.preprocessed / plans["configurations"]["2d"]["data_identifier"]
    assert sorted(path.stem for path in data.glob("*.pkl")) == world.cases
    assert not (world.preprocessed / plans["configurations"]["3d_fullres"]["data_identifier"]).exists()


def test_network_and_voxel_size_reach_the_plans(world: SimpleNamespace) -> None:
    done = nnunet_ext(
        world,
        *("plan", "-d", "901", "--preset", "cpu", "--network", "context", "--spacing-mm", "6", "2.5", "2", "--no-pp"),
    )
    assert done.returncode == 0, done.stderr
    plans = json.loads((world.preprocessed / "nnUNetPlansExtCPUContext.json").read_text())
    whole = plans["configurations"]["3d_fullres"]
    assert whole["spacing"] == [6.0, 2.5, 2.0]
    assert whole["architecture"]["network_class_name"] == "nnunet_ext.networks.context_unet.ContextUNet"
    (world.preprocessed / "nnUNetPlansExtCPUContext.json").unlink()


def test_the_published_preset_of_a_network_without_a_paper_is_refused_with_those_that_have_one(
    world: SimpleNamespace,
) -> None:
    done = nnunet_ext(world, "plan", "-d", "901", "--preset", "published", "--network", "refine:plain", "--no-pp")
    assert done.returncode == 2
    assert done.stderr.startswith("nnunet-ext: no paper has trained refine:plain")
    assert "ras" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_dataset_that_does_not_exist_ends_with_exit_code_2_and_one_sentence(world: SimpleNamespace) -> None:
    done = nnunet_ext(world, "plan", "-d", "99")
    assert done.returncode == 2
    assert done.stderr.startswith("nnunet-ext: ")
    assert "99" in done.stderr
    assert "nnunet-ext convert" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_dataset_that_lost_a_case_ends_with_exit_code_2_and_one_sentence(
    world: SimpleNamespace, tmp_path: Path
) -> None:
    raw = tmp_path / "raw" / world.dataset
    shutil.copytree(world.raw, raw)
    image = raw / "imagesTr" / f"{world.cases[0]}_0000.nii.gz"
    image.unlink()
    image.symlink_to(tmp_path / "gone.nii.gz")
    here = SimpleNamespace(environment={**world.environment, "nnUNet_raw": str(tmp_path / "raw")})
    done = nnunet_ext(here, "plan", "-d", "901", "--preset", "cpu", "-p", "Lost", "--no-pp")
    assert done.returncode == 2
    assert done.stderr.startswith(f"nnunet-ext: {raw} has links to files that are gone: imagesTr/{image.name};")
    assert "Traceback" not in done.stderr
    assert not (world.preprocessed / "Lost.json").exists()


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["-d", "eleven"],
        ["-d", "11", "--preset", "gpu"],
        ["-d", "11", "--gpu-gb", "much"],
        ["-d", "11", "--preset", "cpu", "--gpu-gb", "24"],
        ["-d", "11", "--network", "transformer"],
        ["-d", "11", "--spacing-mm", "3", "1"],
        ["-d", "11", "--spacing-mm", "3", "1", "0"],
    ],
)
def test_wrong_options_are_usage_errors(options: list[str]) -> None:
    assert CliRunner().invoke(command, options).exit_code == 2


def test_help_names_every_option() -> None:
    text = CliRunner().invoke(command, ["--help"]).output
    options = ["-d", "--preset", "--network", "--axial / --no-axial", "-c", "--gpu-gb", "--spacing-mm", "-p", "-np"]
    for option in [*options, "--no-pp"]:
        assert option in text


def test_help_names_and_explains_every_network() -> None:
    option = next(parameter for parameter in command.params if parameter.name == "network")
    for network, meaning in NETWORKS.items():
        assert f"{network}: {meaning}" in option.help
