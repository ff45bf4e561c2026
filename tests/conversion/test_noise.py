from __future__ import annotations

import errno
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from nnunet_ext.conversion.noise import Noise, add_noise, lines_of, orphaned_copies
from nnunet_ext.conversion.workplace import Workplace
from nnunet_ext.errors import BusyError, InputError
from nnunet_ext.geometry import Grid
from nnunet_ext.io.nifti import read_image, read_labels, write_image, write_labels
from nnunet_ext.io.orientation import to_lps
from nnunet_ext.preprocessing.label_noise import Displacement, displaced

GRID = Grid((12, 14, 16), (3.0, 1.0, 1.0))
SAGITTAL = Grid((16, 12, 14), (1.0, 3.0, 1.0), (0.0, 0.0, 0.0), (0, 0, 1, 1, 0, 0, 0, 1, 0))
CASES = [f"case_{i:02d}" for i in range(10)]
SPLITS = [{"train": CASES[2:], "val": CASES[:2]}]


def draw_labels() -> np.ndarray:
    labels = np.zeros(GRID.shape, np.uint8)
    labels[3:9, 3:11, 2:8] = 1
    labels[5:7, 6:8, 11:13] = 2
    return labels


def write_dataset(folder: Path, grid: Grid = GRID, labels: dict | None = None) -> Path:
    drawn = draw_labels() if grid is GRID else draw_labels().transpose(2, 0, 1)
    for case in CASES:
        write_image(folder / "imagesTr" / f"{case}_0000.nii.gz", np.ones(grid.shape, np.float32), grid)
        write_labels(folder / "labelsTr" / f"{case}.nii.gz", drawn, grid)
    write_image(folder / "imagesTs" / "new_0000.nii.gz", np.ones(grid.shape, np.float32), grid)
    write_labels(folder / "labelsTs" / "new.nii.gz", drawn, grid)
    (folder / "present_labels.json").write_text(json.dumps({case: [1, 2] for case in CASES}))
    content = {"labels": labels or {"background": 0, "Big": 1, "Small": 2}, "file_ending": ".nii.gz"}
    content |= {"channel_names": {"0": "CT"}, "numTraining": 10, "nnunet_ext": {"source": "drawn"}}
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "raw" / "Dataset301_Clean")


def add(source: Path, noise: Noise, **more: object) -> tuple[Path, dict]:
    return add_noise(source, source.parent, 302, "Noisy", noise, splits=SPLITS, **more)  # type: ignore[arg-type]


def files_of(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def content_of(path: Path) -> dict:
    return json.loads(path.read_text())


class TestDraw:
    @pytest.mark.parametrize(("ratio", "count"), [(0, 0), (0.25, 41), (0.5, 82), (0.75, 124), (1, 165)])
    def test_the_share_is_exact(self, ratio, count):
        drawn = Noise(ratio, 5, 13).draw([f"c{i}" for i in range(165)])
        assert sum(move is not None for move in drawn.values()) == count

    def test_a_larger_share_keeps_the_noise_of_a_smaller_one(self):
        cases = [f"c{i}" for i in range(60)]
        few, many = (Noise(ratio, 5, 13).draw(cases) for ratio in (0.25, 0.75))
        assert all(many[case] == move for case, move in few.items() if move is not None)

    def test_the_order_of_cases_does_not_matter_but_the_seed_does(self):
        cases = [f"c{i}" for i in range(60)]
        assert Noise(0.5, 5, 13).draw(cases) == Noise(0.5, 5, 13).draw(cases[::-1])
        assert Noise(0.5, 5, 13).draw(cases) != Noise(0.5, 5, 13, seed=2).draw(cases)

    def test_directions_are_balanced_and_every_amount_occurs(self):
        drawn = list(Noise(1, 5, 13).draw([f"c{i}" for i in range(2000)]).values())
        assert {move.amount for move in drawn} == set(range(5, 14))
        assert abs(np.mean([move.direction == "erode" for move in drawn]) - 0.5) < 0.05

    def test_millimetres_are_real_numbers_within_the_range(self):
        amounts = [move.amount for move in Noise(1, 1.5, 2.5, "mm").draw([f"c{i}" for i in range(100)]).values()]
        assert 1.5 <= min(amounts) < 1.7
        assert 2.3 < max(amounts) <= 2.5
        assert len(set(amounts)) > 90

    @pytest.mark.parametrize(
        ("arguments", "part"),
        [
            ((1.5, 1, 2), "0 to 1"),
            ((0.5, 0, 2), "above 0"),
            ((0.5, 3, 2), "smaller first"),
            ((0.5, 1.5, 2), "whole"),
            ((0.5, 1, float("inf"), "mm"), "1 to inf mm"),
        ],
    )
    def test_what_cannot_be_drawn_is_refused(self, arguments, part):
        with pytest.raises(InputError, match=part):
            Noise(*arguments)

    def test_a_negative_seed_is_refused(self):
        with pytest.raises(InputError, match="seed of the noise is -1, expected a whole number from 0"):
            Noise(0.5, 1, 2, seed=-1)


class TestDataset:
    def test_noisy_cases_are_what_the_record_says_and_clean_ones_are_clean(self, source):
        folder, sidecar = add(source, Noise(0.5, 1, 2))
        truth = draw_labels()
        assert sum(entry is not None for entry in sidecar["cases"].values()) == 5
        for case, entry in sidecar["cases"].items():
            labels, grid = read_labels(folder / "labelsTr" / f"{case}.nii.gz")
            assert grid == GRID
            if entry is None:
                assert np.array_equal(labels, truth)
                continue
            expected = displaced(truth == 1, Displacement(entry["direction"], entry["amount"]), GRID.spacing_mm)
            assert np.array_equal(labels == 1, expected)
            assert entry["voxels"]["Big"] == {"before": int((truth == 1).sum()), "after": int(expected.sum())}
        assert content_of(folder / "noise.json") == sidecar

    def test_images_test_cases_folds_and_present_labels_are_carried(self, source):
        folder, _ = add(source, Noise(1, 1, 2))
        before, after = files_of(source), files_of(folder)
        same = [name for name in before if not name.startswith(("labelsTr", "dataset.json"))]
        assert {name: after[name] for name in same} == {name: before[name] for name in same}
        assert content_of(folder / "splits_final.json") == SPLITS
        block = content_of(folder / "dataset.json")["nnunet_ext"]
        assert block["noise"] == {"source": "Dataset301_Clean", "seed": 1, "ratio": 1, "unit": "voxels",
                                  "range": [1, 2], "in_plane": False}  # fmt: skip
        assert block["source"] == "drawn"

    def test_a_list_of_contoured_labels_that_is_edited_later_is_not_the_sources(self, source):
        folder, _ = add(source, Noise(1, 1, 2))
        (source / "present_labels.json").write_text("{}")
        assert content_of(folder / "present_labels.json") == {case: [1, 2] for case in CASES}

    def test_twice_gives_the_same_files(self, source):
        first = files_of(add(source, Noise(0.5, 1, 3))[0])
        assert files_of(add(source, Noise(0.5, 1, 3), overwrite=True)[0]) == first

    def test_the_source_stays(self, source):
        before = files_of(source)
        add(source, Noise(1, 1, 2))
        assert files_of(source) == before

    def test_labels_that_are_saved_over_in_the_noisy_dataset_leave_the_truth_alone(self, source):
        folder, _ = add(source, Noise(0.5, 1, 2))
        before = files_of(source)
        for path in [*(folder / "labelsTr").iterdir(), *(folder / "labelsTs").iterdir()]:
            path.write_bytes(b"saved in place")
        assert files_of(source) == before

    def test_images_take_no_space_and_are_found_again_when_all_datasets_move(self, source):
        folder, _ = add(source, Noise(0.5, 1, 2))
        assert all(path.is_symlink() for part in ("imagesTr", "imagesTs") for path in (folder / part).iterdir())
        before = files_of(folder)
        moved = source.parent.rename(source.parent.with_name("elsewhere"))
        assert files_of(moved / folder.name) == before

    def test_only_the_given_cases_are_touched(self, source):
        _, sidecar = add(source, Noise(1, 1, 1), cases=CASES[4:])
        assert lines_of(sidecar)[0].startswith("6 of 6 training cases")
        assert [case for case, entry in sidecar["cases"].items() if entry is None] == CASES[:4]

    def test_an_erased_organ_is_counted(self, source):
        _, sidecar = add(source, Noise(1, 1, 1))
        eroded = [case for case, entry in sidecar["cases"].items() if entry["direction"] == "erode"]
        assert sidecar["erased"] == {"Small": eroded}
        text = "\n".join(lines_of(sidecar))
        assert f"10 of 10 training cases corrupted by 1 to 1 voxels: {len(eroded)} eroded" in text
        assert f"erased: Small in {len(eroded)} cases" in text

    def test_many_cases_with_an_erased_organ_are_counted(self, source):
        _, sidecar = add(source, Noise(1, 1, 1))
        assert "erased: Small in 7 cases (case_00, case_01, case_02, case_03, case_04 and 2 more)" in lines_of(
            {**sidecar, "erased": {"Small": CASES[:7]}}
        )

    def test_in_plane_means_axial_whatever_the_axis_order(self, tmp_path):
        source = write_dataset(tmp_path / "raw" / "Dataset301_Clean", SAGITTAL)
        folder, sidecar = add(source, Noise(1, 1, 1, in_plane=True))
        for case, entry in sidecar["cases"].items():
            moved, lps = to_lps(*read_labels(folder / "labelsTr" / f"{case}.nii.gz"))
            assert lps.spacing_mm == GRID.spacing_mm
            move = Displacement(entry["direction"], 1, in_plane=True)
            assert np.array_equal(moved == 1, displaced(draw_labels() == 1, move, GRID.spacing_mm))

    def test_regions_are_moved_each_on_its_own(self, tmp_path):
        regions = {"background": 0, "whole": [1, 2], "core": [2]}
        source = write_dataset(tmp_path / "raw" / "Dataset301_Clean", labels=regions)
        labels = draw_labels()
        labels[5:7, 6:8, 4:6] = 2
        for case in CASES:
            write_labels(source / "labelsTr" / f"{case}.nii.gz", labels, GRID)
        folder, sidecar = add(source, Noise(1, 1, 1))
        case = next(case for case, entry in sidecar["cases"].items() if entry["direction"] == "dilate")
        moved, _ = read_labels(folder / "labelsTr" / f"{case}.nii.gz")
        for values in ((1, 2), (2,)):
            expected = displaced(np.isin(labels, values), Displacement("dilate", 1), GRID.spacing_mm)
            assert np.array_equal(np.isin(moved, values), expected)

    def test_an_organ_grows_with_the_organ_inside_it(self, tmp_path):
        source = write_dataset(tmp_path / "raw" / "Dataset301_Clean", labels={"background": 0, "Eye_L": 1, "Lens_L": 2})
        content = content_of(source / "dataset.json")
        content["nnunet_ext"]["contains"] = {"Eye_L": ["Lens_L"]}
        (source / "dataset.json").write_text(json.dumps(content))
        labels = np.zeros(GRID.shape, np.uint8)
        labels[3:9, 3:11, 2:8], labels[5:7, 3:5, 4:6] = 1, 2  # the lens at the front of the eye
        for case in CASES:
            write_labels(source / "labelsTr" / f"{case}.nii.gz", labels, GRID)
        folder, sidecar = add(source, Noise(1, 1, 1))
        case = next(case for case, entry in sidecar["cases"].items() if entry["direction"] == "dilate")
        moved, _ = read_labels(folder / "labelsTr" / f"{case}.nii.gz")
        for values in ((1, 2), (2,)):
            expected = displaced(np.isin(labels, values), Displacement("dilate", 1), GRID.spacing_mm)
            assert np.array_equal(np.isin(moved, values), expected)


class TestRefusals:
    def test_a_taken_number(self, source):
        add(source, Noise(0.5, 1, 1))
        with pytest.raises(InputError, match="overwrite"):
            add(source, Noise(0.5, 1, 1))

    def test_its_own_source(self, source):
        with pytest.raises(InputError, match="its own noisy copy"):
            add_noise(source, source.parent, 301, "Noisy", Noise(0.5, 1, 1), overwrite=True)

    def test_noise_upon_noise(self, source):
        folder, _ = add(source, Noise(0.5, 1, 1))
        with pytest.raises(InputError, match="not the true ones; take Dataset301_Clean"):
            add_noise(folder, source.parent, 303, "More", Noise(0.5, 1, 1))

    def test_noise_upon_noise_whose_record_was_damaged(self, source):
        folder, _ = add(source, Noise(0.5, 1, 1))
        (folder / "noise.json").write_text("[]")
        with pytest.raises(InputError, match="take the dataset that it was derived from"):
            add_noise(folder, source.parent, 303, "More", Noise(0.5, 1, 1))

    @pytest.mark.parametrize(
        ("content", "part"),
        [([], "holds a list, expected an object"), ({"nnunet_ext": None}, '"nnunet_ext": null, expected an object')],
    )
    def test_an_edited_description_is_named_before_anything_is_written(self, source, content, part):
        path = source / "dataset.json"
        path.write_text(json.dumps({**content_of(path), **content} if content else content))
        with pytest.raises(InputError, match=part) as caught:
            add(source, Noise(0.5, 1, 1))
        assert str(caught.value).startswith(str(path))
        assert list(source.parent.iterdir()) == [source]

    def test_another_file_type(self, source):
        content = content_of(source / "dataset.json")
        (source / "dataset.json").write_text(json.dumps({**content, "file_ending": ".png"}))
        with pytest.raises(InputError, match=r"\.png"):
            add(source, Noise(0.5, 1, 1))

    def test_no_labels(self, source):
        for path in (source / "labelsTr").iterdir():
            path.unlink()
        with pytest.raises(InputError, match="nothing to corrupt"):
            add(source, Noise(0.5, 1, 1))

    def test_a_damaged_label_leaves_nothing_and_can_be_repaired(self, source):
        path = source / "labelsTr" / f"{CASES[3]}.nii.gz"
        good = path.read_bytes()
        path.write_bytes(good[: len(good) // 2])
        with pytest.raises(InputError, match=CASES[3]):
            add(source, Noise(1, 1, 1))
        assert list(source.parent.iterdir()) == [source]
        path.write_bytes(good)
        folder, _ = add(source, Noise(1, 1, 1))
        assert read_image(folder / "imagesTr" / f"{CASES[3]}_0000.nii.gz")[1] == GRID

    @pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "no space"), KeyboardInterrupt()])
    def test_a_full_disk_or_ctrl_c_leaves_nothing_and_the_lock_is_free(self, source, monkeypatch, error):
        def fail(*_: object) -> None:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr("nnunet_ext.conversion.noise.corrupt_labels", fail)
            with pytest.raises(type(error)):
                add(source, Noise(1, 1, 1))
        assert list(source.parent.iterdir()) == [source]
        add(source, Noise(1, 1, 1))

    def test_a_second_process_does_not_remove_what_the_first_one_writes(self, source):
        workplace = Workplace(source.parent, "Dataset302_Noisy")
        with workplace.locked(), workplace.emptied():
            workplace.prepare({}, overwrite=True)
            with pytest.raises(BusyError, match="another process is converting"):
                add(source, Noise(1, 1, 1))
            assert workplace.folder.is_dir()

    def test_a_failure_keeps_the_dataset_that_was_to_be_replaced(self, source):
        folder, _ = add(source, Noise(0.5, 1, 1))
        before = files_of(folder)
        (source / "labelsTr" / f"{CASES[3]}.nii.gz").write_bytes(b"")
        with pytest.raises(InputError, match=CASES[3]):
            add(source, Noise(1, 1, 1), overwrite=True)
        assert files_of(folder) == before
        assert sorted(path.name for path in source.parent.iterdir()) == [source.name, folder.name]


class TestOrphans:
    def test_the_copies_of_a_replaced_dataset_are_named(self, source):
        add(source, Noise(0.5, 1, 1))
        add_noise(source, source.parent, 303, "More", Noise(0.5, 1, 1))
        assert orphaned_copies(source.parent, [source]) == (
            "Dataset302_Noisy, Dataset303_More link to the images of Dataset301_Clean, which was replaced; "
            "write the noise anew, too (nnunet-ext noise --overwrite)"
        )
        assert orphaned_copies(source.parent, [source.with_name("Dataset302_Noisy")]) == ""
        assert orphaned_copies(source.parent, []) == ""

    def test_a_damaged_record_is_nobodys_copy(self, source):
        folder, _ = add(source, Noise(0.5, 1, 1))
        (folder / "noise.json").write_text("{")
        assert orphaned_copies(source.parent, [source]) == ""
