from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from nnunet_ext.dataset_conversion.brain_ctmr import CHANNELS, ORGANS, open_source

from nnunet_ext.cli import main
from nnunet_ext.conversion import convert as module
from nnunet_ext.conversion.convert import convert
from nnunet_ext.errors import InputError
from nnunet_ext.evaluation.dataset import read_organs
from nnunet_ext.geometry import Grid
from nnunet_ext.labels import swap_pairs
from nnunet_ext.preprocessing import bias_field

GRID = Grid((20, 70, 60), (3.0, 2.0, 2.0), (-59.0, -69.0, -28.5))
EYES = {"Eye_L": (20, -36, 0), "Eye_R": (-20, -36, 0)}
CENTRES = {
    "Lens_L": (20, -43, 0),
    "Lens_R": (-20, -43, 0),
    "OpticNrv_L": (12, -20, 0),
    "OpticNrv_R": (-12, -20, 0),
    "OpticChiasm": (0, -10, 6),
}


def _ball(centre_mm, radii_mm, shift_mm=(0.0, 0.0, 0.0)) -> np.ndarray:
    points = GRID.points_mm(np.indices(GRID.shape).reshape(3, -1).T).T.reshape(3, *GRID.shape)
    return sum(((points[i] - shift_mm[i] - centre_mm[i]) / radii_mm[i]) ** 2 for i in range(3)) <= 1


def _organs() -> dict[str, np.ndarray]:
    """Eyes that contain their lens, nerves, chiasm."""
    eyes = {name: _ball(centre, (9, 9, 9)) for name, centre in EYES.items()}
    return eyes | {name: _ball(centre, (4, 4, 4)) for name, centre in CENTRES.items()}


def _label_map() -> np.ndarray:
    labels = np.zeros(GRID.shape, np.uint8)
    for name, mask in _organs().items():
        labels[mask] = ORGANS[name]
    return labels


def _volumes(seed: int, shift_mm=(0.0, 0.0, 0.0)) -> dict[str, np.ndarray]:
    """CT with a couch behind the head, T1w and T2w that are moved by ``shift_mm``."""
    rng = np.random.default_rng(seed)
    ct = np.full(GRID.shape, -1000.0)
    ct[_ball((0, 0, 0), (42, 52, 60))] = 40.0
    ct[:, 64:66, 2:58] = -200.0
    mr = np.where(_ball((0, 0, 0), (42, 52, 60), shift_mm), 300.0, 0.0)
    mr[_ball(EYES["Eye_L"], (9, 9, 9), shift_mm)] = 600.0
    mr[_ball((-12, 8, 5), (14, 18, 14), shift_mm)] = 420.0
    noise = rng.normal(0, 8, (3, *GRID.shape))
    return {"CT": ct + noise[0], "T1w": mr + noise[1], "T2w": mr * 0.8 + noise[2]}


def _save(path: Path, array: np.ndarray, origin_mm=GRID.origin_mm) -> None:
    image = sitk.GetImageFromArray(np.asarray(array, dtype=np.int16))
    image.SetSpacing(GRID.spacing_mm[::-1])
    image.SetOrigin(origin_mm)
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))


def _save_case(folder: Path, seed: int = 0, shift_mm=(0.0, 0.0, 0.0), labels: np.ndarray | None = None) -> Path:
    for channel, volume in _volumes(seed, shift_mm).items():
        _save(folder / f"{channel}.nii.gz", volume)
    _save(folder / "label.nii.gz", _label_map() if labels is None else labels)
    return folder


def _json(path: Path):
    return json.loads(path.read_text())


def _read(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


@pytest.fixture(autouse=True)
def _quick_n4(monkeypatch):
    monkeypatch.setattr(bias_field, "LEVELS", 1)
    monkeypatch.setattr(bias_field, "ITERATIONS", 10)


@pytest.fixture
def run(tmp_path):
    def convert_folder(folder: Path, raw: str = "raw", overwrite: bool = False, **options):
        return convert(open_source(folder, **options), tmp_path / raw, 103, "Brain", quiet=True, overwrite=overwrite)

    return convert_folder


@pytest.fixture
def cause(run):
    """Function that converts a folder with one bad case and gives the message."""

    def convert_folder(folder: Path, **options) -> str:
        with pytest.raises(InputError, match="no usable training case") as caught:
            run(folder, **options)
        return str(caught.value)

    return convert_folder


def test_table_is_numbered_with_partners_side_by_side():
    assert list(ORGANS.values()) == list(range(1, 8))
    assert swap_pairs(ORGANS) == [(1, 2), (3, 4), (5, 6)]


def test_full_conversion_removes_couch_and_bias_field_and_records_the_steps(run, tmp_path):
    for n in (1, 2):
        _save_case(tmp_path / f"s/pt_{n}", seed=n)
    done = run(tmp_path / "s")
    assert not done.failed
    content = _json(done.folder / "dataset.json")
    assert content["channel_names"] == {"0": "CT", "1": "T1w", "2": "T2w"}
    assert content["nnunet_ext"] == {
        "source": "brain-ctmr",
        "converter_version": 1,
        "swap_pairs": [[1, 2], [3, 4], [5, 6]],
        "preprocessing": {"CT": ["remove_couch"], "T1w": ["n4"], "T2w": ["n4"]},
    }
    ct, source = _read(done.folder / "imagesTr/pt_1_0000.nii.gz"), _read(tmp_path / "s/pt_1/CT.nii.gz")
    head = _ball((0, 0, 0), (42, 52, 60))
    assert (ct[:, 64:66] == -1024).all()
    assert np.array_equal(ct[head], source[head])
    assert np.array_equal(_read(done.folder / "labelsTr/pt_1.nii.gz"), _label_map())
    notes = "\n".join(done.report["cases"]["pt_1"]["notes"])
    for words in ("CT: couch and mask", "T1w: bias field removed", "T2w: overlap of the heads 0.9"):
        assert words in notes


def test_steps_that_are_switched_off_are_neither_done_nor_recorded(run, tmp_path):
    _save_case(tmp_path / "s/a")
    done = run(tmp_path / "s", couch=False, n4=False)
    assert "preprocessing" not in _json(done.folder / "dataset.json")["nnunet_ext"]
    for i, channel in enumerate(CHANNELS):
        written = _read(done.folder / f"imagesTr/a_{i:04d}.nii.gz")
        assert np.array_equal(written, np.maximum(_read(tmp_path / f"s/a/{channel}.nii.gz"), -1024))


def test_organ_files_are_painted_lens_over_eye_and_the_overlap_is_counted(run, tmp_path):
    case = _save_case(tmp_path / "s/a")
    (case / "label.nii.gz").unlink()
    for name, mask in _organs().items():
        _save(case / f"{name}.nii.gz", mask)
    (case / "OpticChiasm.nii.gz").unlink()
    done = run(tmp_path / "s", n4=False, eye_includes_lens=True)
    labels = _read(done.folder / "labelsTr/a.nii.gz")
    expected = _label_map()
    expected[expected == 7] = 0
    assert np.array_equal(labels, expected)
    lens, eye = _organs()["Lens_L"], _organs()["Eye_L"]
    assert f"{(lens & eye).sum()} voxels of Eye_L became Lens_L" in done.report["cases"]["a"]["notes"]
    assert done.report["cases"]["a"]["contoured"] == (1, 2, 3, 4, 5, 6)
    written = _json(done.folder / "dataset.json")["nnunet_ext"]
    assert written["contains"] == {"Eye_L": ["Lens_L"], "Eye_R": ["Lens_R"]}
    assert read_organs(done.folder / "dataset.json").contains == {"Eye_L": ("Lens_L",), "Eye_R": ("Lens_R",)}
    assert any("contain their lens" in text for text in done.report["warnings"])


def test_an_organ_file_with_several_values_is_refused(cause, tmp_path):
    case = _save_case(tmp_path / "s/a")
    (case / "label.nii.gz").rename(case / "Eye_L.nii.gz")
    assert "expected 0 and 1" in cause(tmp_path / "s", n4=False)


def test_nnunet_layout_and_short_names_are_understood(tmp_path):
    for n in range(3):
        for name in (f"images/a_000{n}", "labels/a"):
            (tmp_path / "n" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / f"n/{name}.nii.gz").touch()
    for name in ("CT", "T1", "T2", "label"):
        (tmp_path / "f/deep/b").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"f/deep/b/{name}.nii").touch()
    for folder, name in (("n", "a"), ("f", "b")):
        (case,) = open_source(tmp_path / folder).cases
        assert (case.identifier, case.fault, len(case.images)) == (name, "", 3)
        assert case.label is not None


def test_a_case_without_labels_is_a_test_case(tmp_path):
    (_save_case(tmp_path / "s/a") / "label.nii.gz").unlink()
    (case,) = open_source(tmp_path / "s").cases
    assert case.label is None
    assert not case.organs


def test_a_missing_modality_is_named_with_its_file(cause, tmp_path):
    case = _save_case(tmp_path / "s/a")
    (case / "T2w.nii.gz").unlink()
    assert f"case a has no T2w; expected {case / 'T2w'}.nii.gz" in cause(tmp_path / "s")


def test_a_missing_modality_is_named_in_the_nnunet_layout_and_so_is_a_missing_ct(tmp_path):
    for name in ("images/a_0000", "images/a_0001", "labels/a"):
        (tmp_path / "n" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"n/{name}.nii.gz").touch()
    fault = open_source(tmp_path / "n").cases[0].fault
    assert fault == f"case a has no T2w; expected {tmp_path / 'n/images/a_0002'}.nii.gz."
    (_save_case(tmp_path / "s/b") / "CT.nii.gz").unlink()
    assert open_source(tmp_path / "s").cases[0].fault.startswith("case b has no CT; expected")


def test_two_files_of_one_channel_are_a_fault(tmp_path):
    case = _save_case(tmp_path / "s/a")
    (case / "T1.nii.gz").touch()
    assert "lies beside T1.nii.gz; keep one" in open_source(tmp_path / "s").cases[0].fault


def test_an_mr_on_another_grid_is_refused(cause, tmp_path):
    case = _save_case(tmp_path / "s/a")
    _save(case / "T1w.nii.gz", _volumes(0)["T1w"], origin_mm=(0.0, 0.0, 0.0))
    message = cause(tmp_path / "s")
    assert "T1w.nii.gz lies on another grid than" in message


def test_a_shifted_mr_is_refused_and_registration_rescues_it(cause, run, tmp_path):
    _save_case(tmp_path / "s/a", shift_mm=(14.0, -6.0, 0.0))
    message = cause(tmp_path / "s", n4=False)
    assert "T1w.nii.gz does not lie on the CT: overlap (Dice) of the heads 0.7" in message
    assert "--register rigid" in message
    done = run(tmp_path / "s", n4=False, register="rigid")
    eye = _ball(EYES["Eye_L"], (7, 7, 7))
    assert np.median(_read(done.folder / "imagesTr/a_0001.nii.gz")[eye]) > 500
    notes = done.report["cases"]["a"]["notes"]
    assert sum("registered rigidly, overlap of the heads 0.7" in note for note in notes) == 2
    assert "preprocessing" in _json(done.folder / "dataset.json")["nnunet_ext"]


def test_the_limit_of_the_overlap_can_be_set(run, tmp_path):
    _save_case(tmp_path / "s/a", shift_mm=(14.0, -6.0, 0.0))
    assert not run(tmp_path / "s", n4=False, min_overlap="0.5").failed
    with pytest.raises(InputError, match="from 0 to 1"):
        open_source(tmp_path / "s", min_overlap="90")


def test_a_contour_that_couch_removal_would_cut_names_case_organ_and_count(cause, run, tmp_path):
    labels = _label_map()
    labels[8:10, 2, 30] = ORGANS["Lens_L"]
    _save_case(tmp_path / "s/pt_7", labels=labels)
    assert "case pt_7: removing couch and mask would cut Lens_L (2 voxels)" in cause(tmp_path / "s", n4=False)
    assert not run(tmp_path / "s", n4=False, couch=False).failed


def test_a_killed_conversion_resumes_and_other_options_do_not(run, tmp_path, monkeypatch):
    for n in (1, 2):
        _save_case(tmp_path / f"s/pt_{n}", seed=n)
    loaded: list[str] = []
    original = module.load_case

    def load(case, source):
        loaded.append(case.identifier)
        if len(loaded) == 2:
            raise KeyboardInterrupt
        return original(case, source)

    monkeypatch.setattr(module, "load_case", load)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "s", n4=False)
    with pytest.raises(InputError, match="other options"):
        run(tmp_path / "s", n4=False, couch=False)
    run(tmp_path / "s", n4=False)
    assert loaded == ["pt_1", "pt_2", "pt_2"]


def test_the_command_line_has_switches(tmp_path, monkeypatch, capsys):
    for n in (1, 2):
        _save_case(tmp_path / f"s/pt_{n}", seed=n)
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    for key in ("nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(key, raising=False)
    words = ["convert", "brain-ctmr", str(tmp_path / "s"), "-d", "103", "--no-n4", "--eye-includes-lens"]
    monkeypatch.setattr(sys, "argv", ["nnunet-ext", *words])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    assert "2 training cases converted" in capsys.readouterr().out
    block = _json(tmp_path / "raw/Dataset103_BrainCtmr/dataset.json")["nnunet_ext"]
    assert block["preprocessing"] == {"CT": ["remove_couch"]}


def test_a_folder_without_cases_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"CT\.nii\.gz"):
        open_source(tmp_path)
