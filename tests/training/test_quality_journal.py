"""What is reported of the weights of an epoch."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nnunet_ext.losses.competition import Outcome, Samples
from nnunet_ext.losses.quality import Verdict
from nnunet_ext.training import quality_journal
from nnunet_ext.training.quality_journal import (
    COLUMNS,
    CaseTable,
    Journal,
    Summary,
    rank_correlation,
    relative_volume,
)

NAN = math.nan


def tensor(values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def journal(weights: list[float], **changes: Any) -> Journal:
    """A journal of one step of samples with these weights."""
    n = len(weights)
    given = {
        "case": range(n),
        "labelled": [[10.0, 20.0]] * n,
        "foreground": [30.0] * n,
        "score": [0.0] * n,
        "driver": [1.0] * n,
        "comparable": [True] * n,
        **changes,
    }
    given.setdefault("competed", given["comparable"])
    nothing, organs = torch.zeros(n), torch.zeros(n, 2)
    samples = Samples(
        tensor(given["case"]), nothing, nothing, organs, organs, organs, tensor(given["labelled"]),
        tensor(given["foreground"]),
    )  # fmt: skip
    verdict = Verdict(tensor(weights), nothing)
    made = Journal()
    made.add(
        samples,
        Outcome(
            verdict,
            tensor(given["score"]),
            tensor(given["driver"]),
            torch.tensor(given["comparable"]),
            torch.tensor(given["competed"]),
        ),
    )
    return made


class TestSummary:
    def test_of_equal_weights(self):
        summary = journal([1.0] * 4).summary()
        assert summary[:5] == (4, 4, 1, 1, 4)
        assert math.isnan(summary.foreground)
        assert summary.warnings() == []

    def test_counts_effective_samples(self):
        summary = journal([3.0, 1.0, 0.0, 0.0]).summary()
        assert summary[:5] == (4, 4, 1, 3, pytest.approx(16 / 10))

    def test_is_of_comparable_samples_alone(self):
        summary = journal([3.0, 1.0, 50.0], comparable=[True, True, False]).summary()
        assert summary[:4] == (2, 2, 2, 3)

    def test_those_that_do_not_compete_hide_nothing(self):
        """Weights of 1 that nobody gave would water down how closely the others follow the foreground."""
        weights, foreground = [*np.linspace(0.5, 1.5, 25), *[1.0] * 75], [*range(25), *range(75)]
        made = journal(weights, foreground=foreground, competed=[True] * 25 + [False] * 75)
        assert made.summary()[:2] == (100, 25)
        assert made.summary().foreground == pytest.approx(1)
        assert "25 of 100 comparable samples competed" in str(made.summary())

    def test_of_an_epoch_without_any_says_so(self):
        for empty in (Journal(), journal([1.0], comparable=[False])):
            assert empty.summary().samples == 0
            assert empty.summary().warnings() == []
            assert "none of 0 comparable samples" in str(empty.summary())

    def test_finds_weights_that_follow_the_foreground(self):
        weights = np.linspace(0.5, 1.5, 40).tolist()
        summary = journal(weights, foreground=list(range(40, 0, -1))).summary()
        assert summary.foreground == pytest.approx(-1)
        assert ["foreground fraction (rank correlation -1.00)" in line for line in summary.warnings()] == [True]

    def test_finds_weights_that_follow_the_volume_of_small_and_large_organs_alike(self):
        weights = np.tile(np.linspace(0.5, 1.5, 20), 2)
        volumes = np.zeros((40, 2))
        volumes[:20, 0], volumes[20:, 1] = 100 * weights[:20], weights[20:]
        summary = journal(weights.tolist(), labelled=volumes, foreground=volumes.sum(1)).summary()
        assert summary.volume > 0.99
        assert abs(summary.foreground) < 0.6
        assert "foreground volume" in summary.warnings()[-1]

    def test_finds_that_a_few_samples_weigh_all(self):
        (line,) = journal([39.0] + [1 / 39] * 39).summary().warnings()
        assert line.startswith("WARNING: 40 samples weigh as much as 1.")

    def test_a_handful_of_samples_correlates_by_chance(self):
        assert Summary(50, 5, 1, 3, 1.0, 1.0, 1.0).warnings() == []
        assert len(Summary(50, 50, 1, 3, 1.0, 1.0, 1.0).warnings()) == 3


class TestNumbers:
    def test_rank_correlation_is_spearmans(self):
        from scipy.stats import spearmanr

        rng = np.random.default_rng(0)
        a, b = rng.integers(0, 9, 30).astype(float), rng.random(30)
        assert rank_correlation(a, b) == pytest.approx(spearmanr(a, b).statistic)

    def test_rank_correlation_leaves_out_what_is_no_number(self):
        assert rank_correlation(np.array([1, 2, NAN, 3]), np.array([1.0, 2, 9, NAN])) == pytest.approx(1)

    @pytest.mark.parametrize("constant", [np.ones(4), np.full(4, NAN), np.zeros(0)])
    def test_rank_correlation_with_a_constant_is_no_number(self, constant):
        assert math.isnan(rank_correlation(constant, np.arange(float(len(constant)))))

    def test_volumes_are_relative_to_the_organs_median(self):
        volumes = np.array([[10.0, 0], [20, 400], [30, 200], [0, 0]])
        expected = [0.5, (1 + 4 / 3) / 2, (1.5 + 2 / 3) / 2, NAN]
        np.testing.assert_allclose(relative_volume(volumes), expected)

    def test_an_organ_that_never_appears_changes_nothing(self):
        assert relative_volume(np.array([[10.0, 0], [30, 0]])).tolist() == [0.5, 1.5]


class TestTable:
    def test_has_one_row_per_case_with_means_over_its_samples(self):
        made = journal([1.0, 3.0, 2.0], case=[7, 7, 5], score=[0.5, 1.5, NAN], driver=[1.0, NAN, NAN])
        assert made.rows(4, {7: "b", 5: "a"}) == [
            {"epoch": "4", "case": "a", "samples": "1", "weight": "2", "score": "", "driver": ""},
            {"epoch": "4", "case": "b", "samples": "2", "weight": "2", "score": "1", "driver": "1"},
        ]

    def test_leaves_out_samples_that_cannot_compete(self):
        made = journal([1.0, 3.0], comparable=[False, True])
        assert [row["case"] for row in made.rows(0, {0: "a", 1: "b"})] == ["b"]

    def test_of_an_empty_epoch_has_no_rows(self):
        assert Journal().rows(0, {}) == []

    def test_epochs_follow_each_other(self, tmp_path):
        table = CaseTable(tmp_path / "weights.csv")
        for epoch in range(3):
            table.add(epoch, journal([1.0]).rows(epoch, {0: "a"}))
        assert self.read(tmp_path) == [("0", "a"), ("1", "a"), ("2", "a")]
        assert (tmp_path / "weights.csv").read_text().splitlines()[0] == ",".join(COLUMNS)

    def test_a_continued_run_drops_the_epochs_that_it_repeats(self, tmp_path):
        self.add(tmp_path, (0, "a"), (1, "old"), (2, "old"))
        self.add(tmp_path, (1, "new"), (2, "new"))
        assert self.read(tmp_path) == [("0", "a"), ("1", "new"), ("2", "new")]
        assert [path.name for path in tmp_path.iterdir()] == ["weights.csv"]

    def test_a_row_that_a_killed_run_wrote_half_goes(self, tmp_path):
        self.add(tmp_path, *((epoch, "a") for epoch in range(12)))
        whole = (tmp_path / "weights.csv").read_text()
        (tmp_path / "weights.csv").write_text(whole[: whole.index("\n11,") + 2])  # "1", which was to be "11"
        self.add(tmp_path, (11, "b"))
        assert self.read(tmp_path)[-2:] == [("10", "a"), ("11", "b")]
        assert len(self.read(tmp_path)) == 12

    def test_a_new_training_begins_anew(self, tmp_path):
        self.add(tmp_path, (0, "old"), (1, "old"))
        self.add(tmp_path, (0, "new"))
        assert self.read(tmp_path) == [("0", "new")]

    def test_it_grows_instead_of_being_written_again(self, tmp_path, monkeypatch):
        monkeypatch.setattr(
            quality_journal, "write_text", lambda path, text: (written.append(text), path.write_text(text))
        )
        written: list[str] = []
        self.add(tmp_path, *((epoch, "a") for epoch in range(50)))
        assert len(written) == 1
        assert len(self.read(tmp_path)) == 50

    def add(self, folder: Path, *given: tuple[int, str]) -> None:
        table = CaseTable(folder / "weights.csv")
        for epoch, case in given:
            table.add(epoch, journal([1.0]).rows(epoch, {0: case}))

    def read(self, folder: Path) -> list[tuple[str, str]]:
        with (folder / "weights.csv").open(newline="") as stream:
            return [(row["epoch"], row["case"]) for row in csv.DictReader(stream)]
