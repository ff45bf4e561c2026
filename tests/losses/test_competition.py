"""A whole competition: who takes part, what is remembered, and that it finds planted errors in drawn discs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from nnunet_ext.losses.competition import Competition, Samples, joined
from nnunet_ext.losses.displacement import boundary_displacement, overlap_sums
from nnunet_ext.losses.per_sample import label_loss, one_hot
from nnunet_ext.losses.quality import step_loss
from nnunet_ext.networks.quality_net import QualityNet


def samples(n: int, organs: int = 2, seed: int = 0, **changes: Any) -> Samples:
    """Drawn samples whose organs are known well."""
    generator = torch.Generator().manual_seed(seed)
    volumes = 100 + torch.rand(n, organs, generator=generator, dtype=torch.float64)
    given = {
        "case": torch.arange(n, dtype=torch.float64),
        "answer": torch.randn(n, generator=generator, dtype=torch.float64),
        "loss": torch.rand(n, generator=generator, dtype=torch.float64),
        "displacement": torch.rand(n, organs, generator=generator, dtype=torch.float64),
        "both": 0.9 * volumes,
        "predicted": volumes,
        "labelled": volumes,
        "foreground": torch.full((n,), 200.0, dtype=torch.float64),
    }
    return Samples(**{**given, **changes})


def weights(competition: Competition, given: Samples, strength: float | None = 1.0) -> list[float]:
    found: list[float] = competition.judge(given, strength).verdict.weights.tolist()
    return found


class TestSamples:
    def test_survive_as_rows(self):
        given = samples(3)
        again = Samples.of_rows(given.rows())
        assert given.rows().shape == (3, 12)
        for name in ("case", "answer", "loss", "displacement", "both", "predicted", "labelled", "foreground"):
            assert torch.equal(getattr(again, name), getattr(given, name)), name

    def test_of_micro_batches_are_one_below_the_other(self):
        assert torch.equal(joined([samples(2), samples(1, seed=1)]).rows()[2:], samples(1, seed=1).rows())


class TestWhoCompetes:
    def test_a_patch_without_enough_foreground_keeps_weight_one(self):
        foreground = torch.tensor([200.0, 99.0, 100.0], dtype=torch.float64)
        outcome = Competition(2, min_foreground=100).judge(samples(3, foreground=foreground), 1.0)
        assert outcome.comparable.tolist() == [True, False, True]
        assert outcome.verdict.weights[1] == 1
        assert outcome.verdict.weights.sum().item() == pytest.approx(3)

    def test_so_does_one_without_an_organ_that_is_known(self):
        displacement = torch.tensor([[1.0, math.nan], [math.nan, math.nan], [2.0, 1.0]], dtype=torch.float64)
        found = weights(Competition(2), samples(3, displacement=displacement))
        assert found[1] == 1
        assert found[0] != 1

    def test_one_with_an_organ_that_is_not_known_yet_may_gain_weight_but_not_lose_any(self):
        """Else the organ might never be learnt."""
        for protected, expected in ((False, [True, False]), (True, [False, False])):
            competition, given = Competition(2), samples(2, answer=torch.tensor([-1.0, 1.0], dtype=torch.float64))
            both = given.both.clone()
            both[:, 1] *= 0.1 if protected else 1.0
            found = weights(competition, samples(2, answer=given.answer, both=both))
            assert competition.readiness.ready.tolist() == [True, not protected]
            assert [weight < 1 for weight in found] == expected
            assert found[1] > 1.5

    def test_all_compete_where_no_foreground_is_asked_for(self):
        foreground = torch.zeros(3, dtype=torch.float64)
        found = weights(Competition(2, driver="loss", min_foreground=0), samples(3, foreground=foreground))
        assert 1 not in found

    @pytest.mark.parametrize("spoiled", [math.nan, math.inf])
    def test_an_answer_that_is_no_number_does_not_and_is_not_remembered(self, spoiled):
        competition = Competition(2, memory=5, case_memory=True)
        answer = torch.tensor([0.5, spoiled, -0.5], dtype=torch.float64)
        outcome = competition.judge(samples(3, answer=answer), 1.0)
        assert (outcome.verdict.weights[1], outcome.verdict.pull[1]) == (1, 0)
        assert len(competition.memory.entries()) == 2
        for seed in range(3):
            verdict = competition.judge(samples(3, seed=seed), 1.0).verdict
            assert verdict.weights.isfinite().all()
            assert verdict.pull.isfinite().all()
            assert verdict.weights[1] != 1

    def test_nobody_during_burn_in_which_still_makes_organs_known(self):
        competition = Competition(2, memory=4)
        unasked = samples(3, answer=torch.full((3,), math.nan))
        assert weights(competition, unasked, None) == [1, 1, 1]
        assert competition.readiness.ready.all()
        assert len(competition.memory.entries()) == 0

    def test_at_no_strength_all_weigh_alike(self):
        assert weights(Competition(2), samples(3), 0.0) == pytest.approx([1, 1, 1])


class TestScore:
    def test_is_bounded_and_grows_with_the_strength(self):
        answers = torch.tensor([-1e4, 0.5, 1e4])
        assert Competition(1, bound=2.0).score(answers, 0.5).tolist() == pytest.approx([-1, math.tanh(0.5), 1])

    def test_without_the_bound_is_the_answer(self):
        answers = torch.tensor([-1e4, 0.5])
        assert Competition(1, bounded=False).score(answers, 1.0).tolist() == answers.tolist()


class TestCentre:
    """What all answers have in common must not matter: no softmax sees it, but it takes tanh to where it is flat."""

    def after(self, *, offset: float, steps: int, **given: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights and gradients of the last of some steps; the offset comes after the first."""
        competition = Competition(2, memory=5, **given)
        for seed in range(steps):
            answers = samples(4, seed=seed).answer + (offset if seed else 0)
            verdict = competition.judge(samples(4, seed=seed, answer=answers), 1.0).verdict
        answers.requires_grad_()
        step_loss(torch.zeros(4), competition.score(answers, 1.0), verdict, 4).backward()
        return verdict.weights, answers.grad

    def test_a_common_offset_changes_neither_weights_nor_gradients_in_the_long_run(self):
        for offset in (10.0, -300.0):
            for a, b in zip(*(self.after(offset=x, steps=400) for x in (0.0, offset)), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
                assert a.std() > 0.05

    def test_without_it_an_offset_makes_all_weights_equal_and_stops_learning(self):
        equal, gradients = self.after(offset=10.0, steps=400, centre=False)
        assert equal.tolist() == pytest.approx([1] * 4, abs=1e-6)
        assert gradients.abs().max() < 1e-6

    def test_the_first_step_has_no_offset_either(self):
        given = [samples(4, answer=samples(4).answer + offset) for offset in (0.0, 50.0)]
        assert weights(Competition(2), given[0]) == pytest.approx(weights(Competition(2), given[1]))

    def test_weights_stay_bounded(self):
        competition = Competition(2, bound=2.0)
        for seed, size in enumerate((1.0, 1e6, 1e-3, 1e9)):
            found = weights(competition, samples(8, seed=seed, answer=size * samples(8, seed=seed + 9).answer))
            assert max(found) / min(found) <= math.exp(2 * 2.0) * (1 + 1e-9)

    def test_is_the_mean_of_those_that_compete_alone(self):
        competition = Competition(2, min_foreground=100)
        answer = torch.tensor([1.0, 50.0, 3.0], dtype=torch.float64)
        competition.judge(samples(3, answer=answer, foreground=torch.tensor([200.0, 0.0, 200.0])), 1.0)
        assert competition.mean == 2
        competition.judge(samples(3, answer=answer, foreground=torch.zeros(3)), 1.0)
        assert competition.mean == 2
        competition.judge(samples(1, answer=answer[1:2]), 1.0)
        assert competition.mean == pytest.approx(0.95 * 2 + 0.05 * 50)
        assert competition.score(answer[:1], 1.0).item() == pytest.approx(2 * math.tanh(1 - competition.mean))

    def test_is_in_the_state_which_older_ones_lack(self):
        first, second = Competition(2), Competition(2)
        first.judge(samples(3), 1.0)
        second.load_state_dict(first.state_dict())
        assert first.mean == second.mean is not None
        second.load_state_dict({k: v for k, v in first.state_dict().items() if k != "mean"})
        assert second.mean is None


class TestDriver:
    def pulls(self, driver: Any) -> torch.Tensor:
        given = samples(
            2,
            answer=torch.zeros(2, dtype=torch.float64),
            loss=torch.tensor([0.0, 1.0], dtype=torch.float64),
            displacement=torch.tensor([[8.0, 1.0], [1.0, 4.0]], dtype=torch.float64),
        )
        return Competition(2, driver=driver).judge(given, 1.0).verdict.pull

    def test_the_loss_pulls_down_who_has_more_of_it(self):
        assert self.pulls("loss").tolist() == pytest.approx([-0.5, 0.5])

    def test_the_displacement_pulls_down_who_is_further_off_in_mm(self):
        assert self.pulls("displacement").tolist() == pytest.approx([1, -1])  # 4.5 and 2.5 mm

    def test_readiness_pulls_down_who_is_further_off_than_usual(self):
        expected = ((8 / 4.5 + 1 / 2.5) / 2 - (1 / 4.5 + 4 / 2.5) / 2) / 2
        assert self.pulls("readiness").tolist() == pytest.approx([expected, -expected])


class TestMemory:
    def test_single_samples_compete_with_those_before(self):
        competition = Competition(2, driver="loss", memory=31)
        first = competition.judge(samples(1), 1.0).verdict
        second = competition.judge(samples(1, seed=1), 1.0).verdict
        assert (first.weights.item(), first.pull.item()) == (1, 0)
        assert second.weights.item() != 1
        assert second.pull.item() != 0

    def test_weights_are_limited(self):
        competition = Competition(1, driver="loss", memory=31)
        low, high = (torch.full((31,), value, dtype=torch.float64) for value in (-9.0, 9.0))
        competition.judge(samples(31, 1, answer=low), 1.0)
        assert weights(competition, samples(1, 1, answer=high[:1])) == [5.0]
        competition.judge(samples(31, 1, answer=high), 1.0)
        assert weights(competition, samples(1, 1, answer=low[:1])) == [0.1]

    def test_is_for_steps_in_which_few_compete(self):
        with_memory, without = Competition(2, driver="loss", memory=31), Competition(2, driver="loss")
        for seed in range(3):
            for competition in (with_memory, without):
                found = weights(competition, samples(8, seed=seed))
        assert weights(with_memory, samples(8, seed=9)) == weights(without, samples(8, seed=9))
        foreground = torch.tensor([200.0] + [0.0] * 7, dtype=torch.float64)
        few = [weights(c, samples(8, seed=4, foreground=foreground)) for c in (with_memory, without)]
        assert few[0][0] != 1 == few[1][0]
        assert found != [1] * 8

    def test_remembered_scores_have_the_strength_of_now(self):
        competition = Competition(1, driver="loss", memory=31)
        answer = torch.tensor([1.0], dtype=torch.float64)
        competition.judge(samples(1, 1, answer=answer), 0.0)
        assert weights(competition, samples(1, 1, answer=answer), 1.0) == pytest.approx([1])

    def test_a_case_keeps_its_reputation(self):
        competition = Competition(1, driver="loss", case_memory=True)
        good, bad = torch.tensor([1.0, -1.0], dtype=torch.float64), torch.tensor([0.0, 0.0], dtype=torch.float64)
        competition.judge(samples(2, 1, answer=good), 1.0)
        found = weights(competition, samples(2, 1, answer=bad))
        share = torch.softmax(torch.tensor([math.tanh(1.0), -math.tanh(1.0)]), 0)
        assert found == pytest.approx((2 * share).tolist())

    def test_continues_from_its_state(self):
        makes = {"memory": 5, "case_memory": True}
        first, second = Competition(2, **makes), Competition(2, **makes)
        for seed in range(4):
            first.judge(samples(2, seed=seed), 1.0)
        second.load_state_dict(first.state_dict())
        for a, b in zip(*(c.judge(samples(2, seed=9), 1.0).verdict for c in (first, second)), strict=True):
            assert torch.equal(a, b)


# --- learning --------------------------------------------------------------------------------------------------------


def discs(n: int, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Noisy images of discs, and labels of which a quarter is 3 pixels too large and a quarter as much too small."""
    grid, images, labels = np.indices((40, 40)), [], []
    kinds = np.array([0, 0, 1, -1])[np.arange(n) % 4]
    for kind in kinds:
        radius = rng.uniform(6, 10)
        centre = rng.uniform(radius + 5, 35 - radius, 2)
        distance = np.sqrt(((grid - centre[:, None, None]) ** 2).sum(0)) - radius
        images.append((distance < 0) + rng.normal(0, 0.3, distance.shape))
        labels.append(distance < 3 * kind)
    return torch.tensor(np.array(images)).float()[:, None], torch.tensor(np.array(labels)).long()[:, None], kinds


def small_segmenter() -> nn.Module:
    def layer(inputs: int, dilation: int) -> nn.Sequential:
        convolution = nn.Conv2d(inputs, 8, 3, padding=dilation, dilation=dilation)
        return nn.Sequential(convolution, nn.GroupNorm(4, 8), nn.ReLU())

    return nn.Sequential(layer(1, 1), layer(8, 2), layer(8, 4), nn.Conv2d(8, 2, 1))


def late_weights(batch: int, steps: int, *, memory: int, rate: float) -> dict[int, float]:
    """Mean weight of clean (0), dilated (1) and eroded (−1) labels in the last fifth of a training."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    images, labels, kinds = discs(64, rng)
    segmenter, qam = small_segmenter(), QualityNet(3, 2, (8, 16, 32))
    optimizers = [torch.optim.Adam(segmenter.parameters(), rate), torch.optim.Adam(qam.parameters(), 1e-3)]
    competition = Competition(1, min_foreground=10, memory=memory)
    found: dict[int, list[float]] = {0: [], 1: [], -1: []}
    for step in range(steps):
        progress = step / steps
        optimizers[0].param_groups[0]["lr"] = rate * (1 - progress) ** 0.9
        strength = None if progress < 0.2 else min(1.0, (progress - 0.2) / 0.1)
        chosen = torch.from_numpy(rng.choice(len(images), batch, replace=False))
        heads = one_hot(labels[chosen], 2)
        logits = segmenter(images[chosen])
        losses = label_loss(logits, labels[chosen])
        organ, truth = logits.softmax(1)[:, 1:], heads[:, 1:]
        answers = qam(torch.cat([images[chosen], heads.float()], 1))
        both, predicted, labelled = overlap_sums(organ, truth)
        displacement = boundary_displacement(organ, truth, (1, 1))
        given = Samples(chosen, answers, losses, displacement, both, predicted, labelled, labelled[:, 0])
        outcome = competition.judge(Samples.of_rows(given.rows()), strength)
        scores = None if strength is None else competition.score(answers, strength)
        step_loss(losses, scores, outcome.verdict, batch).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if progress > 0.8:
            for kind, weight in zip(kinds[chosen.numpy()], outcome.verdict.weights.tolist(), strict=True):
                found[int(kind)].append(weight)
    return {kind: float(np.mean(values)) for kind, values in found.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("batch", "steps", "memory", "rate"), [(16, 250, 0, 5e-3), (1, 1500, 31, 1e-3)], ids=["batch 16", "batch 1"]
)
def test_clean_contours_come_to_outweigh_dilated_and_eroded_ones(batch, steps, memory, rate):
    mean = late_weights(batch, steps, memory=memory, rate=rate)
    assert mean[0] > 1.5 * mean[1]
    assert mean[0] > 1.5 * mean[-1]
