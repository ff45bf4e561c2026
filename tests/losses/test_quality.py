"""Weights, their gradients, and that every way of sharing a step between batches and processes gives the same ones."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nnunet_ext.losses.quality import (
    Verdict,
    alone,
    batch_weights,
    bounded_score,
    compete,
    step_loss,
    surrogate_loss,
    weighted_loss,
)


def drawn(n: int = 5, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses and answers with a gradient, double precision."""
    generator = torch.Generator().manual_seed(seed)
    losses = torch.rand(n, generator=generator, dtype=torch.float64)
    answers = torch.randn(n, generator=generator, dtype=torch.float64)
    return losses.requires_grad_(), answers.requires_grad_()


def gradients(loss: torch.Tensor, *of: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, of, retain_graph=True))


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


# --- the published loss ----------------------------------------------------------------------------------------------


class TestWeightedLoss:
    def test_gradients_are_the_formulas(self):
        losses, answers = drawn()
        weights = batch_weights(bounded_score(answers, 2))
        of_losses, of_answers = gradients(weighted_loss(losses, weights), losses, answers)
        close(of_losses, weights)
        mean = (weights * losses).sum()
        close(of_answers, weights * (losses - mean) * 2 * (1 - answers.tanh() ** 2))

    def test_the_surrogate_has_the_same_gradients(self):
        losses, answers = drawn()
        scores = bounded_score(answers, 2)
        published = gradients(weighted_loss(losses, batch_weights(scores)), losses, answers)
        for a, b in zip(published, gradients(surrogate_loss(losses, scores), losses, answers), strict=True):
            close(a, b)

    def test_so_has_a_competition_of_all(self):
        losses, answers = drawn()
        scores = bounded_score(answers, 2)
        published = gradients(weighted_loss(losses, batch_weights(scores)), losses, answers)
        verdict = compete(scores.detach(), losses.detach())
        competition = gradients(step_loss(losses, scores, verdict, len(losses)), losses, answers)
        for a, b in zip(published, competition, strict=True):
            close(a, b)

    def test_a_driver_of_its_own_moves_the_scores_and_not_the_losses(self):
        losses, answers = drawn()
        scores, driver = bounded_score(answers, 2), torch.arange(5.0, dtype=torch.float64)
        weights = batch_weights(scores)
        of_losses, of_answers = gradients(surrogate_loss(losses, scores, driver), losses, answers)
        close(of_losses, weights)
        (expected,) = gradients(weighted_loss(driver, weights), answers)
        close(of_answers, expected)

    def test_one_backward_pass_trains_both_networks(self):
        segmenter, qam = nn.Linear(3, 1), nn.Linear(3, 1)
        inputs = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
        losses, scores = segmenter(inputs).square()[:, 0], bounded_score(qam(inputs)[:, 0], 2)
        weighted_loss(losses, batch_weights(scores)).backward()
        assert segmenter.weight.grad.abs().min() > 0
        assert qam.weight.grad.abs().min() > 0

    def test_detached_weights_freeze_the_qam(self):
        losses, answers = drawn()
        loss = weighted_loss(losses, batch_weights(bounded_score(answers, 2)).detach())
        assert torch.autograd.grad(loss, answers, allow_unused=True) == (None,)


class TestWeights:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
    def test_sum_to_one_in_single_and_from_half_precision(self, dtype):
        weights = batch_weights(bounded_score(torch.linspace(-3, 3, 33).to(dtype), 2))
        assert weights.dtype == torch.float32
        assert weights.sum().item() == pytest.approx(1, abs=1e-6)

    @pytest.mark.parametrize("bound", [0.5, 2.0])
    @pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
    def test_no_answer_however_large_breaks_the_bound(self, bound, dtype):
        weights = batch_weights(bounded_score(torch.tensor([-1e4, 0.0, 1e4], dtype=dtype), bound))
        assert (weights.max() / weights.min()).item() <= math.exp(2 * bound) * (1 + 1e-5)

    def test_without_the_bound_one_sample_takes_all(self):
        assert batch_weights(torch.tensor([-1e4, 0.0, 1e4])).tolist() == [0, 0, 1]

    def test_are_equal_where_the_bound_is_zero(self):
        assert batch_weights(bounded_score(torch.randn(8), 0)).tolist() == [1 / 8] * 8


# --- competition -----------------------------------------------------------------------------------------------------


class TestCompetition:
    def test_a_sample_that_does_not_compete_has_its_share_exactly_and_no_pull(self):
        scores = torch.tensor([1.0, -1.0, 2.0, 0.5])
        competes = torch.tensor([True, False, True, True])
        verdict = compete(scores, torch.tensor([1.0, math.nan, 2.0, 3.0]), competes)
        assert verdict.weights[1] == 1  # of N: 1/N of the loss
        assert verdict.pull[1] == 0
        assert verdict.weights.sum().item() == pytest.approx(4)
        torch.testing.assert_close(verdict.weights[competes], 3 * torch.softmax(scores[competes], 0))

    def test_pulls_of_competitors_add_up_to_nothing(self):
        verdict = compete(torch.randn(6), torch.rand(6), torch.tensor([True] * 4 + [False] * 2))
        assert verdict.pull.sum().item() == pytest.approx(0, abs=1e-6)

    def test_where_nobody_competes_all_weights_are_one(self):
        verdict = compete(torch.randn(3), torch.full((3,), math.nan), torch.zeros(3, dtype=torch.bool))
        assert verdict.weights.tolist() == [1, 1, 1]
        assert verdict.pull.tolist() == [0, 0, 0]

    def test_a_sample_alone_gives_the_qam_no_gradient(self):
        losses, answers = drawn(1)
        scores = bounded_score(answers, 2)
        verdict = compete(scores.detach(), losses.detach())
        (of_answers,) = gradients(step_loss(losses, scores, verdict, 1), answers)
        assert of_answers.item() == 0
        assert verdict.weights.item() == 1

    def test_remembered_samples_give_it_one(self):
        losses, answers = drawn(1)
        scores = bounded_score(answers, 2)
        remembered = torch.tensor([[0.3, 0.1], [-0.2, 0.9]], dtype=torch.float64)
        verdict = compete(scores.detach(), losses.detach(), remembered=remembered)
        (of_answers,) = gradients(step_loss(losses, scores, verdict, 1), answers)
        share = torch.softmax(torch.cat([scores.detach(), remembered[:, 0]]), 0)
        mean = share[0] * losses[0] + share[1] * 0.1 + share[2] * 0.9
        close(of_answers, 3 * share[:1] * (losses - mean) * 2 * (1 - answers.tanh() ** 2))
        close(verdict.weights, 3 * share[:1])

    def test_limits_hold_for_the_loss_and_leave_the_pull(self):
        remembered = torch.tensor([[-2.0, 1.0]] * 31)
        free = compete(torch.tensor([2.0]), torch.tensor([0.5]), remembered=remembered)
        limited = compete(torch.tensor([2.0]), torch.tensor([0.5]), remembered=remembered, limits=(0.1, 5.0))
        assert free.weights.item() == pytest.approx(32 * math.exp(4) / (math.exp(4) + 31))  # 20.4 at λ = 2
        assert limited.weights.item() == 5
        assert limited.pull.item() == free.pull.item() != 0
        low = compete(torch.tensor([-2.0]), torch.tensor([0.5]), remembered=-remembered, limits=(0.1, 5.0))
        assert low.weights.item() == pytest.approx(0.1)

    def test_the_gather_of_one_process_changes_nothing(self):
        rows = torch.rand(2, 3)
        assert alone(rows) == (rows, 0)


# --- parts of a step -------------------------------------------------------------------------------------------------


def networks() -> tuple[nn.Module, nn.Module]:
    """Segmenter and QAM in double precision, whose norms do not mix samples."""
    torch.manual_seed(0)
    made = [
        nn.Sequential(nn.Conv1d(1, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.Tanh(), nn.Conv1d(4, 1, 1)).double()
        for _ in range(2)
    ]
    return made[0], made[1]


def numbers(segmenter: nn.Module, qam: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return (segmenter(x) - x.roll(1, 2)).square().flatten(1).mean(1), bounded_score(qam(x).flatten(1).mean(1), 2)


def whole(segmenter: nn.Module, qam: nn.Module, x: torch.Tensor) -> None:
    losses, scores = numbers(segmenter, qam, x)
    step_loss(losses, scores, compete(scores.detach(), losses.detach()), len(x)).backward()


def in_two_passes(segmenter: nn.Module, qam: nn.Module, x: torch.Tensor) -> None:
    with torch.no_grad():
        seen = [numbers(segmenter, qam, part) for part in x.split(1)]
    losses, scores = (torch.cat(column) for column in zip(*seen, strict=True))
    verdict = compete(scores, losses)
    for i, part in enumerate(x.split(1)):
        mine = Verdict(*(column[i : i + 1] for column in verdict))
        step_loss(*numbers(segmenter, qam, part), mine, len(x)).backward()


def trained(step: Any, steps: int = 50) -> list[torch.Tensor]:
    pair = networks()
    generator = torch.Generator().manual_seed(1)
    optimizers = [torch.optim.Adam(network.parameters(), 1e-2) for network in pair]
    for _ in range(steps):
        step(*pair, torch.randn(6, 1, 16, generator=generator, dtype=torch.float64))
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return [parameter.detach() for network in pair for parameter in network.parameters()]


def test_two_passes_over_single_samples_are_one_batch_of_them():
    """In double precision: Adam amplifies rounding."""
    for a, b in zip(trained(whole), trained(in_two_passes), strict=True):
        close(a, b, 1e-10)


DISTRIBUTED = """
import copy, json, os, sys
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from nnunet_ext.losses.quality import Verdict, bounded_score, compete, step_loss
from nnunet_ext.training.quality_gather import gather_rows

rank, meeting, answer = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.set_num_threads(1)
distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
cpu = torch.device("cpu")
torch.manual_seed(0)
bare = [nn.Sequential(nn.Conv1d(1, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.Tanh(), nn.Conv1d(4, 1, 1)).double()
        for _ in range(2)]

def numbers(segmenter, qam, x):
    return (segmenter(x) - x.roll(1, 2)).square().flatten(1).mean(1), bounded_score(qam(x).flatten(1).mean(1), 2)

def right(losses, scores):
    rows, start = gather_rows(torch.stack([scores, losses], 1).detach(), cpu)
    verdict = compete(rows[:, 0], rows[:, 1])
    mine = Verdict(*(column[start:start + len(losses)] for column in verdict))
    return step_loss(losses, scores, mine, len(rows), processes=2)

def local_softmax(losses, scores):
    return step_loss(losses, scores, compete(scores.detach(), losses.detach()), len(losses))

def without_surrogate(losses, scores):
    rows, start = gather_rows(scores.detach()[:, None], cpu)
    everyone = torch.cat([rows[:start, 0], scores, rows[start + len(scores):, 0]])
    return 2 * (torch.softmax(everyone, 0)[start:start + len(losses)] * losses).sum()

def gradients(networks):
    return [torch.cat([p.grad.flatten() for p in network.parameters()]) for network in networks]

errors = {}
for sizes in ((3, 3), (3, 2)):
    x = torch.randn(sum(sizes), 1, 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    single = copy.deepcopy(bare)
    losses, scores = numbers(*single, x)
    (torch.softmax(scores, 0) * losses).sum().backward()
    mine = x.split(sizes)[rank]
    for variant in (right, local_softmax, without_surrogate):
        wrapped = [DistributedDataParallel(network) for network in copy.deepcopy(bare)]
        variant(*numbers(*wrapped, mine)).backward()
        errors[f"{variant.__name__} {sizes[0]}+{sizes[1]}"] = [
            float((a - b).norm() / b.norm()) for a, b in zip(gradients(wrapped), gradients(single))]
if rank == 0:
    open(answer, "w").write(json.dumps(errors))
distributed.barrier()
os._exit(0)  # torch's threads abort a process that is torn down on a busy machine
"""


@pytest.fixture(scope="module")
def errors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    """Relative error of the gradients of segmenter and QAM in two processes, by variant and sizes of the batches."""
    folder = tmp_path_factory.mktemp("distributed")
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", DISTRIBUTED, str(rank), str(folder / "meeting"),
             str(folder / "answer")],
            env=environment, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
        )
        for rank in range(2)
    ]  # fmt: skip
    said = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    found: dict[str, list[float]] = json.loads((folder / "answer").read_text())
    return found


@pytest.mark.slow
@pytest.mark.parametrize("sizes", ["3+3", "3+2"])
class TestTwoProcesses:
    def test_have_the_gradients_of_one(self, errors, sizes):
        assert max(errors[f"right {sizes}"]) < 1e-12

    def test_scores_gathered_without_the_surrogate_train_the_qam_wrongly(self, errors, sizes):
        segmenter, qam = errors[f"without_surrogate {sizes}"]
        assert segmenter < 1e-12
        assert qam > 0.1

    def test_a_softmax_of_each_process_is_wrong_for_both(self, errors, sizes):
        assert min(errors[f"local_softmax {sizes}"]) > 1e-3
