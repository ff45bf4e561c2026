from __future__ import annotations

import json
from pathlib import Path

import pytest
from nnunet_ext.dataset_conversion.nifti import open_source

from nnunet_ext.conversion.convert import convert
from nnunet_ext.errors import InputError
from nnunet_ext.labels import SYNONYMS, tg263_name

DATA = Path(__file__).parents[2] / "../shared/data"


@pytest.fixture
def folder(tmp_path):
    for part in ("images", "labels"):
        (tmp_path / part).mkdir()
        for case in ("pt_1_a", "pt_1_b", "pt_2_a"):
            (tmp_path / part / f"{case}.nii.gz").touch()
    return tmp_path


def test_organs_get_tg263_names_and_numbers_in_the_order_given(folder):
    source = open_source(folder, labels="SpinalCord=2, Left Parotid=4, Mandible=7")
    assert source.organs == {"SpinalCord": 1, "Parotid_L": 2, "Bone_Mandible": 3}
    assert source.values == {0: 0, 2: 1, 4: 2, 7: 3}


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("optic_nerve_l", "OpticNrv_L"),
        ("Right Parotid", "Parotid_R"),
        ("parotid_gland_r", "Parotid_R"),
        ("mandible_l", "Bone_Mandible_L"),
        ("Mandible", "Bone_Mandible"),
        ("Parotid_L", "Parotid_L"),
        ("GTVp", "GTVp"),
    ],
)
def test_spellings_of_the_source_datasets_are_understood(folder, spelling, name):
    assert list(open_source(folder, labels=f"{spelling}=1").organs) == [name]


def test_tg263_names_stay_what_they_are():
    assert all(tg263_name(name) == name for name in SYNONYMS.values())


def test_chosen_organs_come_first_to_last_and_the_others_become_background(folder):
    source = open_source(folder, labels="Brainstem=1,SpinalCord=2,Larynx=6", organs="Larynx,Brainstem")
    assert source.organs == {"Larynx": 1, "Brainstem": 2}
    assert source.values == {0: 0, 1: 2, 2: 0, 6: 1}


def test_ignored_values_become_background(folder):
    assert open_source(folder, labels="Brainstem=1", ignore_labels="5, 6").values == {0: 0, 1: 1, 5: 0, 6: 0}


def test_unlisted_values_are_an_error_unless_asked_for(folder):
    assert not open_source(folder, labels="Brainstem=1").unlisted_is_background
    assert open_source(folder, labels="Brainstem=1", unlisted="background").unlisted_is_background


@pytest.mark.parametrize("content", [{"Eye_L": 1}, {"labels": {"background": 0, "Eye_L": 1}}])
def test_labels_may_come_from_a_json_file(folder, tmp_path, content):
    (tmp_path / "labels.json").write_text(json.dumps(content))
    assert open_source(folder, labels=str(tmp_path / "labels.json")).organs == {"Eye_L": 1}


def test_patient_is_found_in_the_name(folder):
    source = open_source(folder, labels="Brainstem=1", patient=r"^pt_\d+")
    assert [case.patient for case in source.cases] == ["pt_1", "pt_1", "pt_2"]


def test_channels_are_named_in_order(folder):
    source = open_source(folder, labels="Brainstem=1", channel="CT,MR")
    assert source.channels == ("CT", "MR")
    assert all("expected 2 channel" in case.fault for case in source.cases)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"labels": ""}, "not understood"),
        ({"labels": "Brainstem"}, "not understood"),
        ({"labels": "Brainstem=x"}, "not understood"),
        ({"labels": "A=1,A=2"}, "twice"),
        ({"labels": "A=1,B=1"}, "its own number"),
        ({"labels": "A=0"}, "its own number"),
        ({"labels": "none.json"}, "cannot be read"),
        ({"labels": "A=1", "organs": "B"}, "--organs names B"),
        ({"labels": "A=1", "organs": "A,A"}, "twice"),
        ({"labels": "A=1", "ignore_labels": "x"}, "whole numbers"),
        ({"labels": "A=1", "ignore_labels": "1"}, "drop one of the two"),
        ({"labels": "A=1", "patient": "("}, "regular expression"),
        ({"labels": "A=1", "patient": "nobody"}, "finds nothing"),
    ],
)
def test_contradicting_options_are_refused(folder, options, word):
    with pytest.raises(InputError, match=word):
        open_source(folder, **options)


def test_files_nobody_reads_are_mentioned(folder):
    (folder / "images/more.nrrd").touch()
    assert open_source(folder, labels="A=1").notes == ("not NIfTI, not read: images/more.nrrd",)


@pytest.mark.realdata
def test_real_patients_convert_without_a_refusal(tmp_path):
    source = DATA / "openkbp_hn"
    if not source.is_dir():
        pytest.skip(f"no OpenKBP patients at {DATA}")
    table = "Brainstem=1,SpinalCord=2,Parotid_R=3,Parotid_L=4,Mandible=7"
    done = convert(open_source(source, labels=table, ignore_labels="5,6"), tmp_path / "raw", 102, "HN", quiet=True)
    assert not done.failed
    assert done.report["training_cases"] == 40
    assert all(row["cases"] == 40 for row in done.report["organs"].values())
    assert not any("right of" in text for text in done.report["warnings"])
