"""What is remembered of earlier samples, and for how long."""

from __future__ import annotations

import pytest
import torch

from nnunet_ext.losses.memory import CaseMemory, ScoreMemory


def numbers(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


class TestScoreMemory:
    def test_keeps_the_last_samples_in_order(self):
        memory = ScoreMemory(3)
        memory.push(numbers(1, 2), numbers(10, 20))
        memory.push(numbers(3, 4), numbers(30, 40))
        assert memory.entries().tolist() == [[2, 20], [3, 30], [4, 40]]

    def test_drops_what_is_older_than_four_times_its_size_in_steps(self):
        memory = ScoreMemory(2)
        memory.push(numbers(1), numbers(1))
        for _ in range(7):
            memory.push(numbers(), numbers())
        assert memory.entries().tolist() == [[1, 1]]
        memory.push(numbers(), numbers())
        assert memory.entries().shape == (0, 2)

    def test_of_size_zero_remembers_nothing(self):
        memory = ScoreMemory(0)
        memory.push(numbers(1), numbers(1))
        assert memory.entries().shape == (0, 2)

    def test_continues_from_its_state(self):
        first, second = ScoreMemory(3), ScoreMemory(3)
        for value in range(5):
            first.push(numbers(value), numbers(-value))
        second.load_state_dict(first.state_dict())
        for memory in (first, second):
            memory.push(numbers(9), numbers(9))
        assert first.state_dict() == second.state_dict()

    def test_a_smaller_one_keeps_the_newest(self):
        first, second = ScoreMemory(3), ScoreMemory(2)
        first.push(numbers(1, 2, 3), numbers(1, 2, 3))
        second.load_state_dict(first.state_dict())
        assert second.entries().tolist() == [[2, 2], [3, 3]]


class TestCaseMemory:
    def test_a_new_case_has_its_own_score(self):
        assert CaseMemory().joined(numbers(7), numbers(0.5)).tolist() == [0.5]

    def test_a_known_case_has_the_mean_of_both(self):
        memory = CaseMemory()
        memory.update(numbers(7), numbers(1.0))
        assert memory.joined(numbers(7, 8), numbers(-1.0, 0.5)).tolist() == [0.0, 0.5]

    def test_nine_tenths_of_the_old_stay(self):
        memory = CaseMemory()
        memory.update(numbers(7, 7), numbers(1.0, 0.0))
        assert memory.state_dict() == {7: pytest.approx(0.9)}

    def test_continues_from_its_state(self):
        first, second = CaseMemory(), CaseMemory()
        first.update(numbers(7, 8), numbers(1.0, -1.0))
        second.load_state_dict(first.state_dict())
        assert second.joined(numbers(8), numbers(0.0)).tolist() == [-0.5]
