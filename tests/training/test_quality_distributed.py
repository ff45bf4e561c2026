"""The quality trainer in two processes, as ``nnUNetv2_train -num_gpus 2`` starts it, but on the CPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

STEP = """
import json, os, sys
from functools import partial
from pathlib import Path
import numpy as np, torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as stock
from nnunet_ext.training import quality

rank, folder, preprocessed, plans, sizes = int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), *sys.argv[4:6]
sizes = [int(n) for n in sizes.split("+")]
torch.set_num_threads(1)
if rank >= 0:
    distributed.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)

def on_cpu(network, device_ids):
    return DistributedDataParallel(network)

stock.DDP = quality.DistributedDataParallel = on_cpu
plans = json.loads((preprocessed / f"{plans}.json").read_text())
plans["continue_training"] = False
plans["configurations"]["2d"]["batch_size"] = sum(sizes)
plans["configurations"]["2d"]["nnunet_ext"].update(
    deep_supervision=True,
    quality={"burn_in": 0.0, "ramp": 0.0, "ready_dice": 0.0, "min_foreground": 1, "memory": 31})
dataset = json.loads((preprocessed / "dataset.json").read_text())
trainer = quality.nnUNetTrainerExtQuality(plans, "2d", 0, dataset, torch.device("cpu"))
trainer.device = torch.device("cpu")  # stock takes the GPU of the rank
trainer.initialize()
trainer.set_deep_supervision_enabled(True)
trainer.on_train_epoch_start()
for optimizer in (trainer.optimizer, trainer.qam_optimizer):
    optimizer.step = lambda: None

patch = trainer.configuration_manager.patch_size
numbers = torch.Generator().manual_seed(3)
image = torch.randn(sum(sizes), 1, *patch, generator=numbers)
side = torch.arange(patch[0])[None, :, None] < torch.tensor([4, 9, 14, 6, 11, 8][: sum(sizes)])[:, None, None]
label = (side * torch.ones(patch)).long()[:, None]
scales = trainer._get_deep_supervision_scales()
target = [torch.nn.functional.interpolate(label.float(), scale_factor=tuple(s), mode="nearest") for s in scales]
cases = ["case_2", "case_3", "case_4", "case_5", "case_2", "case_3"][: sum(sizes)]
start = 0 if rank <= 0 else sizes[0]
mine = slice(None) if rank < 0 else slice(start, start + sizes[rank])
losses = []
for _ in range(2):  # the second step competes with remembered samples as well
    batch = {"data": image[mine].clone(), "target": [t[mine].clone() for t in target], "keys": cases[mine]}
    losses.append(float(trainer.train_step(batch)["loss"]))

def gradient(network):  # the coarsest output has a weight, 1e-6, in distributed training alone: stock's doing
    found = [torch.zeros_like(p) if p.grad is None else p.grad for p in network.parameters()]
    return torch.cat([grad.flatten() for grad in found]).double().numpy()

np.savez(folder / f"rank{rank}.npz", segmenter=gradient(trainer.bare_network), qam=gradient(trainer.bare_qam),
         memory=trainer.competition.memory.entries().numpy())
if rank >= 0:
    distributed.barrier()
os._exit(0)  # torch's threads abort a process that is torn down on a busy machine
"""


def stepped(world: SimpleNamespace, folder: Path, rank: int, sizes: str) -> subprocess.Popen[str]:
    environment = {**world.environment, "nnUNet_results": str(folder / f"results{rank}"), "nnUNet_compile": "f"}
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", STEP, str(rank), str(folder), str(world.preprocessed), world.plans,
         sizes],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("sizes", ["3+3", "3+2"])
def test_two_processes_step_as_one_with_all_their_samples(world: SimpleNamespace, tmp_path: Path, sizes: str):
    for ranks in ([-1], [0, 1]):
        processes = [stepped(world, tmp_path, rank, sizes) for rank in ranks]
        said = [process.communicate(timeout=300)[1] for process in processes]
        assert [process.returncode for process in processes] == [0] * len(ranks), said
    single, first, second = (np.load(tmp_path / f"rank{rank}.npz") for rank in (-1, 0, 1))
    for name in ("segmenter", "qam"):
        size = np.linalg.norm(single[name])
        assert size > 0
        for process in (first, second):
            assert np.linalg.norm(process[name] - single[name]) < 1e-4 * size
    for process in (first, second):  # every process remembers the samples of both
        np.testing.assert_allclose(process["memory"], single["memory"], rtol=1e-4, atol=1e-6)
    assert len(single["memory"]) == 2 * sum(map(int, sizes.split("+")))
