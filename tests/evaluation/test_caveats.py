from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nnunet_ext.errors import InputError
from nnunet_ext.evaluation.caveats import lost_labels, lost_overlaps, planted_noise
from nnunet_ext.evaluation.dataset import DatasetOrgans
from nnunet_ext.geometry import Grid
from nnunet_ext.io.atomic import write_json
from nnunet_ext.io.nifti import write_labels

GRID = Grid((2, 3, 4), (3.0, 1.0, 1.0))
CHEST = DatasetOrgans({"Lung_L": (1, 3), "Heart": (2, 3)}, exported=(1, 2))


@pytest.fixture
def noisy(tmp_path: Path) -> Path:
    write_json(tmp_path / "noise.json", {"source": "Dataset700_Clean", "cases": {"a": {"amount": 2}, "b": None}})
    return tmp_path


class TestNoise:
    def test_the_corrupted_ones_of_the_judged_cases_are_named(self, noisy: Path) -> None:
        assert planted_noise(noisy / "labelsTr", ["b", "a", "c"]) == ("Dataset700_Clean", ["a"])
        assert planted_noise(noisy / "labelsTr", ["b"])[1] == []

    @pytest.mark.parametrize("folder", ["labelsTs", "predictions"])
    def test_only_training_labels_are_noisy(self, noisy: Path, folder: str) -> None:
        assert planted_noise(noisy / folder, ["a"]) == ("", [])

    def test_the_copy_of_the_labels_that_nnunet_keeps_is_as_noisy(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        copies = tmp_path / "preprocessed" / "Dataset701_Noisy" / "gt_segmentations"
        done = {"source": "Clean", "cases": {"a": None, "b": {"amount": 2}}}
        write_json(tmp_path / "raw" / "Dataset701_Noisy" / "noise.json", done)
        monkeypatch.delenv("nnUNet_raw", raising=False)
        assert planted_noise(copies, ["a", "b"]) == ("", [])
        monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
        assert planted_noise(copies, ["a", "b"]) == ("Clean", ["b"])

    def test_the_folder_may_be_the_current_one(self, noisy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (noisy / "labelsTr").mkdir()
        monkeypatch.chdir(noisy / "labelsTr")
        assert planted_noise(Path(), ["a"])[1] == ["a"]

    def test_labels_without_such_a_list_are_believed(self, tmp_path: Path) -> None:
        assert planted_noise(tmp_path / "labelsTr", ["a"]) == ("", [])

    @pytest.mark.parametrize("content", [[], {}, {"cases": ["a"]}])
    def test_a_damaged_list_is_named(self, noisy: Path, content: object) -> None:
        write_json(noisy / "noise.json", content)
        with pytest.raises(InputError, match=r"noise\.json has no"):
            planted_noise(noisy / "labelsTr", ["a"])


class TestOverlap:
    def test_an_overlap_without_an_exported_label_of_its_own_is_lost(self) -> None:
        assert lost_labels(CHEST) == {3}

    def test_nothing_is_lost_of_nested_regions_and_of_plain_labels(self) -> None:
        nested = DatasetOrgans({"whole": (1, 2, 3), "core": (2, 3), "enhancing": 3}, exported=(1, 2, 3))
        assert lost_labels(nested) == lost_labels(DatasetOrgans({"Eye_L": 1, "Lens_L": 2}, ignore=3)) == set()

    def test_two_labels_of_the_same_regions_stand_for_each_other(self) -> None:
        assert lost_labels(DatasetOrgans({"whole": (1, 2, 3), "core": (2, 3)}, exported=(1, 2))) == set()

    def stored(self, folder: Path, *numbers: int) -> Path:
        labels = np.zeros(GRID.shape, np.uint8)
        labels[0, 0, : len(numbers)] = numbers
        write_labels(folder / "a.nii.gz", labels, GRID)
        return folder / "a.nii.gz"

    @pytest.mark.parametrize(
        ("predicted", "drawn", "lost"), [((1, 2), (1, 2, 3), [3]), ((1, 2, 3), (1, 3), []), ((1, 2), (1, 2), [])]
    )
    def test_only_what_the_references_use_and_no_prediction_has(
        self, tmp_path: Path, predicted: tuple[int, ...], drawn: tuple[int, ...], lost: list[int]
    ) -> None:
        pair = self.stored(tmp_path / "p", *predicted), self.stored(tmp_path / "r", *drawn)
        assert lost_overlaps([pair], lost_labels(CHEST)) == lost

    def test_one_prediction_that_has_an_overlap_speaks_for_all(self, tmp_path: Path) -> None:
        drawn = self.stored(tmp_path / "r", 3)
        pairs = [(self.stored(tmp_path / "p", 1), drawn), (self.stored(tmp_path / "q", 3), drawn)]
        assert lost_overlaps(pairs, [3]) == lost_overlaps(pairs[::-1], [3]) == []

    def test_a_damaged_file_is_left_to_whoever_judges_it(self, tmp_path: Path) -> None:
        good = self.stored(tmp_path / "p", 1), self.stored(tmp_path / "r", 3)
        (tmp_path / "bad.nii.gz").write_bytes(b"no image")
        assert lost_overlaps([(tmp_path / "bad.nii.gz", good[1]), good], [3]) == [3]
