from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nnunet_ext.errors import InputError
from nnunet_ext.training.checkpoint import (
    DAMAGE,
    is_latest,
    plain,
    previous_of,
    read_checkpoint,
    read_with_fall_back,
    write_checkpoint,
)


def content(epoch: int = 1) -> dict[str, Any]:
    """A checkpoint as a trainer makes it, with the numpy numbers that nnU-Net logs."""
    network = torch.nn.Linear(64, 64)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    network(torch.ones(1, 64)).sum().backward()
    optimizer.step()
    return {
        "network_weights": network.state_dict(),
        "optimizer_state": optimizer.state_dict(),
        "grad_scaler_state": None,
        "logging": {"ema_fg_dice": [np.float32(0.5)], "mean_fg_dice": [np.float64(0.25)], "dice": [[np.float32(1)]]},
        "_best_ema": np.float64(0.5),
        "current_epoch": epoch,
        "init_args": {"fold": 0, "plans": {"patch_size": [np.int64(8), 8]}},
        "trainer_name": "nnUNetTrainerExt",
        "inference_allowed_mirroring_axes": (0, 1),
    }


def cut(path: Path, share: float = 0.5) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def read(path: Path, said: list[str] | None = None) -> dict[str, Any]:
    return read_with_fall_back(path, torch.device("cpu"), ([] if said is None else said).append)


# --- content ---------------------------------------------------------------------------------------------------------


def test_numpy_numbers_become_plain_ones_at_every_depth():
    value = plain({np.int64(1): [np.float32(0.5), (np.bool_(True), np.arange(3))], "text": "a", "none": None})
    assert value == {1: [0.5, (True, [0, 1, 2])], "text": "a", "none": None}
    assert [type(v) for v in (next(iter(value)), value[1][0], value[1][1][0])] == [int, float, bool]


def test_tensors_stay_tensors():
    tensor = torch.ones(2, requires_grad=True)
    assert plain({"a": [tensor]})["a"][0] is tensor


def test_numbers_keep_their_value_exactly():
    for number in (np.float32(0.1), np.float64(0.1), np.float64("nan"), np.int64(2**62)):
        np.testing.assert_equal(plain(number), number)


def test_our_checkpoint_loads_with_weights_only_and_no_allow_list(tmp_path):
    write_checkpoint(content(), tmp_path / "checkpoint_final.pth")
    with torch.serialization.safe_globals([]):
        read = torch.load(tmp_path / "checkpoint_final.pth", weights_only=True)
    assert read["logging"] == {"ema_fg_dice": [0.5], "mean_fg_dice": [0.25], "dice": [[1.0]]}
    assert read["inference_allowed_mirroring_axes"] == (0, 1)


def test_weights_and_optimiser_come_back_bit_by_bit(tmp_path):
    written = content()
    write_checkpoint(written, tmp_path / "checkpoint_final.pth")
    read = read_checkpoint(tmp_path / "checkpoint_final.pth")
    for name, weight in written["network_weights"].items():
        assert torch.equal(read["network_weights"][name], weight)
    assert torch.equal(
        read["optimizer_state"]["state"][0]["exp_avg"], written["optimizer_state"]["state"][0]["exp_avg"]
    )
    assert read["optimizer_state"]["param_groups"] == written["optimizer_state"]["param_groups"]


def test_nothing_but_the_checkpoint_is_left_in_the_folder(tmp_path):
    write_checkpoint(content(), tmp_path / "checkpoint_final.pth")
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint_final.pth"]


def test_a_failure_while_writing_leaves_the_old_checkpoint_and_its_predecessor(tmp_path):
    latest = tmp_path / "checkpoint_latest.pth"
    for epoch in (1, 2):
        write_checkpoint(content(epoch), latest, previous_of(latest))
    with pytest.raises((pickle.PicklingError, AttributeError)):
        write_checkpoint({"network_weights": lambda: None}, latest, previous_of(latest))
    assert read_checkpoint(latest)["current_epoch"] == 2
    assert read_checkpoint(previous_of(latest))["current_epoch"] == 1
    assert len(list(tmp_path.iterdir())) == 2


# --- other people's checkpoints --------------------------------------------------------------------------------------


def test_a_checkpoint_of_stock_nnunet_loads_although_it_holds_numpy_numbers(tmp_path):
    stock = content()
    stock["init_args"]["device"] = torch.device("cpu")
    torch.save(stock, tmp_path / "stock.pth")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "stock.pth", weights_only=True)
    read = read_checkpoint(tmp_path / "stock.pth")
    assert read["_best_ema"] == 0.5
    assert read["logging"]["ema_fg_dice"] == [0.5]


def test_a_checkpoint_written_under_numpy_1_loads(tmp_path):
    torch.save(content(), tmp_path / "new.pth")
    with zipfile.ZipFile(tmp_path / "new.pth") as new, zipfile.ZipFile(tmp_path / "old.pth", "w") as old:
        for name in new.namelist():
            text = new.read(name)
            old.writestr(name, text.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert read_checkpoint(tmp_path / "old.pth")["_best_ema"] == 0.5


class Malicious:
    """Runs a command when it is unpickled without care."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


def test_a_checkpoint_that_runs_code_is_refused_and_the_code_does_not_run(tmp_path):
    trace = tmp_path / "it_ran"
    torch.save({**content(), "extra": Malicious(f"touch {trace}")}, tmp_path / "checkpoint_final.pth")
    with pytest.raises(pickle.UnpicklingError):
        read_checkpoint(tmp_path / "checkpoint_final.pth")
    with pytest.raises(InputError):
        read(tmp_path / "checkpoint_final.pth")
    assert not trace.exists()


# --- fall-back -------------------------------------------------------------------------------------------------------


def test_the_latest_checkpoint_keeps_its_predecessor(tmp_path):
    latest = tmp_path / "checkpoint_latest.pth"
    for epoch in (1, 2, 3):
        write_checkpoint(content(epoch), latest, previous_of(latest))
    assert read_checkpoint(latest)["current_epoch"] == 3
    assert read_checkpoint(previous_of(latest))["current_epoch"] == 2
    assert is_latest(latest)
    assert not is_latest(previous_of(latest))


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_a_cut_file_is_recognised_as_damage(tmp_path, share):
    write_checkpoint(content(), tmp_path / "checkpoint_latest.pth")
    cut(tmp_path / "checkpoint_latest.pth", share)
    with pytest.raises(DAMAGE):
        read_checkpoint(tmp_path / "checkpoint_latest.pth")


@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_a_cut_latest_checkpoint_falls_back_to_the_one_before_and_says_so(tmp_path, share):
    latest = tmp_path / "checkpoint_latest.pth"
    for epoch in (1, 2):
        write_checkpoint(content(epoch), latest, previous_of(latest))
    cut(latest, share)
    said: list[str] = []
    assert read(latest, said)["current_epoch"] == 1
    assert said[0].startswith("checkpoint_latest.pth is damaged")
    assert said[1] == "Continuing from checkpoint_previous.pth, epoch 1."


def test_after_a_fall_back_the_next_save_keeps_a_good_predecessor(tmp_path):
    latest = tmp_path / "checkpoint_latest.pth"
    for epoch in (1, 2):
        write_checkpoint(content(epoch), latest, previous_of(latest))
    cut(latest)
    read(latest)
    write_checkpoint(content(2), latest, previous_of(latest))
    assert read_checkpoint(latest)["current_epoch"] == 2
    assert read_checkpoint(previous_of(latest))["current_epoch"] == 1


def test_zeros_in_the_middle_of_the_latest_checkpoint_fall_back_too(tmp_path):
    """What a power cut leaves on some file systems: the length is right, a block is not."""
    latest = tmp_path / "checkpoint_latest.pth"
    for epoch in (1, 2):
        write_checkpoint(content(epoch), latest, previous_of(latest))
    damaged = bytearray(latest.read_bytes())
    damaged[len(damaged) // 2 : len(damaged) // 2 + 512] = bytes(512)
    latest.unlink()
    latest.write_bytes(bytes(damaged))
    assert read(latest)["current_epoch"] == 1


def test_the_best_checkpoint_is_the_last_resort(tmp_path):
    latest = tmp_path / "checkpoint_latest.pth"
    write_checkpoint(content(1), tmp_path / "checkpoint_best.pth")
    write_checkpoint(content(2), latest)
    write_checkpoint(content(3), latest, previous_of(latest))
    cut(latest)
    cut(previous_of(latest))
    said: list[str] = []
    assert read(latest, said)["current_epoch"] == 1
    assert [line.split()[0] for line in said[:2]] == ["checkpoint_latest.pth", "checkpoint_previous.pth"]


def test_when_every_checkpoint_is_damaged_the_file_is_named_with_what_to_do(tmp_path):
    latest = tmp_path / "checkpoint_latest.pth"
    write_checkpoint(content(), latest)
    cut(latest)
    with pytest.raises(InputError, match=r"checkpoint_latest\.pth is damaged .* train this fold again"):
        read(latest)


def test_a_damaged_final_checkpoint_is_not_replaced_by_an_older_one(tmp_path):
    """A finished training must not silently become an unfinished one."""
    write_checkpoint(content(1), tmp_path / "checkpoint_previous.pth")
    write_checkpoint(content(2), tmp_path / "checkpoint_final.pth")
    cut(tmp_path / "checkpoint_final.pth")
    with pytest.raises(InputError):
        read(tmp_path / "checkpoint_final.pth")
