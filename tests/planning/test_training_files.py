"""Training cases that got lost after a dataset was written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from nnunet_ext.errors import InputError
from nnunet_ext.geometry import Grid
from nnunet_ext.io.atomic import write_json
from nnunet_ext.io.nifti import write_image, write_labels
from nnunet_ext.planning.plan import make_fingerprint
from nnunet_ext.planning.training_files import check_training_files
from nnunet_ext.roi.raw_data import image_digests

GRID = Grid((4, 6, 8), (3.0, 1.0, 1.0))


@pytest.fixture
def noisy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Dataset 302 with contours of its own and links to the images of dataset 301: cases a to d."""
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    clean, copy = (tmp_path / "raw" / name for name in ("Dataset301_Clean", "Dataset302_Noisy"))
    (copy / "imagesTr").mkdir(parents=True)
    for case in "abcd":
        image = clean / "imagesTr" / f"{case}_0000.nii.gz"
        write_image(image, np.zeros(GRID.shape, np.float32), GRID)
        write_labels(copy / "labelsTr" / f"{case}.nii.gz", np.ones(GRID.shape, np.uint8), GRID)
        (copy / "imagesTr" / image.name).symlink_to(image)
    content = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "Heart": 1}, "file_ending": ".nii.gz"}
    (copy / "dataset.json").write_text(json.dumps({**content, "numTraining": 4}))
    return copy


class TestLostCases:
    def test_whole_datasets_are_planned(self, noisy: Path) -> None:
        check_training_files(noisy)
        (noisy / "imagesTr" / "a_0001.nii.gz").symlink_to(noisy / "imagesTr" / "a_0000.nii.gz")  # a second channel
        check_training_files(noisy)

    def test_links_to_images_that_are_gone(self, noisy: Path) -> None:
        for case in "bd":
            (noisy.with_name("Dataset301_Clean") / "imagesTr" / f"{case}_0000.nii.gz").unlink()
        with pytest.raises(InputError, match=r"imagesTr/b_0000\.nii\.gz, imagesTr/d_0000\.nii\.gz; write the"):
            make_fingerprint(302, 1)
        assert not (noisy.parents[1] / "preprocessed").exists()

    def test_links_to_contours_that_are_gone(self, noisy: Path) -> None:
        (noisy / "labelsTr" / "c.nii.gz").unlink()
        (noisy / "labelsTr" / "c.nii.gz").symlink_to("nowhere")
        with pytest.raises(InputError, match=r"links to files that are gone: labelsTr/c\.nii\.gz;"):
            check_training_files(noisy)

    def test_a_plan_made_before_does_not_help(self, noisy: Path) -> None:
        fingerprint = noisy.parents[1] / "preprocessed" / noisy.name / "dataset_fingerprint.json"
        fingerprint.parent.mkdir(parents=True)
        fingerprint.write_text("{}")
        assert make_fingerprint(302, 1) == fingerprint
        (noisy / "imagesTr" / "a_0000.nii.gz").unlink()
        with pytest.raises(InputError, match="holds 3 cases, expected 4"):
            make_fingerprint(302, 1)

    @pytest.mark.parametrize("lost", [True, False])
    def test_another_number_of_cases_than_the_dataset_says(self, noisy: Path, lost: bool) -> None:
        image = noisy / "imagesTr" / "a_0000.nii.gz"
        image.unlink() if lost else shutil.copy(image, noisy / "imagesTr" / "e_0000.nii.gz")
        with pytest.raises(
            InputError, match=f"holds {3 if lost else 5} cases, expected 4 .numTraining of dataset.json"
        ):
            check_training_files(noisy)

    def test_a_noisy_copy_whose_images_were_replaced(self, noisy: Path) -> None:
        write_json(noisy / "noise.json", {"source": "Dataset301_Clean", "images": image_digests(noisy)})
        check_training_files(noisy)
        image = noisy.with_name("Dataset301_Clean") / "imagesTr" / "c_0000.nii.gz"
        write_image(image, np.ones(GRID.shape, np.float32), GRID)
        with pytest.raises(InputError, match="links to other images of c than its noise was made for"):
            check_training_files(noisy)

    def test_links_of_datasets_without_noise_are_nnunets_matter(self, noisy: Path) -> None:
        """Its readers take files that ours refuse: two axes, channels in one file, contours in another orientation."""
        (noisy.with_name("Dataset301_Clean") / "imagesTr" / "c_0000.nii.gz").write_bytes(b"whatever")
        check_training_files(noisy)

    def test_a_lock_of_an_editor_is_no_lost_file(self, noisy: Path) -> None:
        (noisy / "labelsTr" / ".#lock").symlink_to("nowhere")
        check_training_files(noisy)

    def test_hidden_copies_are_named_because_nnunet_takes_them_for_cases(self, noisy: Path) -> None:
        """As macOS leaves them on other disks."""
        (noisy / "imagesTr" / "._a_0000.nii.gz").write_bytes(b"whatever")
        with pytest.raises(InputError, match=r"nnU-Net takes for cases: \._a_0000\.nii\.gz; delete them"):
            check_training_files(noisy)

    def test_a_case_that_was_taken_out_on_purpose_is_no_other_image(self, noisy: Path) -> None:
        write_json(noisy / "noise.json", {"source": "Dataset301_Clean", "images": image_digests(noisy)})
        for path in ("imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz"):
            (noisy / path).unlink()
        content = json.loads((noisy / "dataset.json").read_text())
        (noisy / "dataset.json").write_text(json.dumps({**content, "numTraining": 3}))
        check_training_files(noisy)

    def test_a_noisy_copy_of_an_older_version_shows_images_of_another_size(self, noisy: Path) -> None:
        write_json(noisy / "noise.json", {"source": "Dataset301_Clean"})
        check_training_files(noisy)
        other = Grid((4, 3, 4), (3.0, 2.0, 2.0))
        image = noisy.with_name("Dataset301_Clean") / "imagesTr" / "c_0000.nii.gz"
        write_image(image, np.zeros(other.shape, np.float32), other)
        with pytest.raises(InputError, match="links to other images of c than its noise was made for"):
            check_training_files(noisy)

    def test_lists_of_files_elsewhere_and_datasets_without_a_number_are_left_to_nnunet(self, noisy: Path) -> None:
        content = json.loads((noisy / "dataset.json").read_text())
        (noisy / "dataset.json").write_text(json.dumps({**content, "numTraining": 9, "dataset": {}}))
        check_training_files(noisy)
        (noisy / "dataset.json").write_text(json.dumps({**content, "numTraining": "4"}))
        check_training_files(noisy)
        del content["numTraining"]
        (noisy / "dataset.json").write_text(json.dumps(content))
        check_training_files(noisy)

    def test_a_description_that_is_none(self, noisy: Path) -> None:
        (noisy / "dataset.json").write_text("[]")
        with pytest.raises(InputError, match="holds a list, expected an object"):
            check_training_files(noisy)
