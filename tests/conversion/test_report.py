from __future__ import annotations

from pathlib import Path

from nnunet_ext.conversion.record import CaseRecord
from nnunet_ext.conversion.report import report_of, table_of
from nnunet_ext.conversion.source import Source

SOURCE = Source("drawn", Path("nowhere"), "", "", "", {"Brainstem": 1, "Parotid_L": 2}, ())


def _record(name: str, volumes_ml: dict[str, float], **changes) -> CaseRecord:
    fields = {
        "identifier": name,
        "patient": name,
        "test": False,
        "shape": (8, 12, 16),
        "spacing_mm": (3.0, 1.0, 1.0),
        "orientation": "LPS",
        "contoured": tuple(SOURCE.organs[organ] for organ in volumes_ml),
        "volumes_ml": volumes_ml,
        "kept": {},
        "notes": (),
        "doubts": (),
        "voxel_hash": name,
        "stamp": name,
    }
    return CaseRecord(**{**fields, **changes})


def _report(records: list[CaseRecord], splits=({"train": ["c0"], "val": []},)) -> dict:
    return report_of(SOURCE, records, {}, splits)


def test_volumes_are_summed_up_per_organ():
    records = [_record(f"c{i}", {"Brainstem": v}) for i, v in enumerate((10.0, 20.0, 60.0))]
    row = _report(records)["organs"]["Brainstem"]
    assert (row["cases"], row["min_ml"], row["median_ml"], row["max_ml"]) == (3, 10.0, 20.0, 60.0)


def test_organ_in_no_case_is_a_warning_and_has_no_volume():
    report = _report([_record("c0", {"Brainstem": 10.0})])
    assert report["organs"]["Parotid_L"] == {"label": 2, "cases": 0, "not_contoured": 1, "outliers": []}
    assert "Parotid_L is in no case" in report["warnings"]


def test_volume_beyond_four_standard_deviations_is_named():
    records = [_record(f"c{i}", {"Brainstem": 10.0 + 0.1 * (i % 2)}) for i in range(30)]
    records.append(_record("odd", {"Brainstem": 40.0}))
    outliers = _report(records)["organs"]["Brainstem"]["outliers"]
    assert len(outliers) == 1
    assert outliers[0].startswith("odd: Brainstem 40.00 ml")


def test_equal_volumes_have_no_outlier():
    records = [_record(f"c{i}", {"Brainstem": 10.0}) for i in range(5)]
    assert _report(records)["organs"]["Brainstem"]["outliers"] == []


def test_organ_missing_in_a_training_fold_is_a_warning():
    records = [_record("c0", {"Brainstem": 1.0}), _record("c1", {"Brainstem": 1.0, "Parotid_L": 1.0})]
    splits = [{"train": ["c0"], "val": ["c1"]}, {"train": ["c1"], "val": ["c0"]}]
    assert "Parotid_L is in no training case of fold 0" in _report(records, splits)["warnings"]


def test_kept_fraction_is_summed_up():
    records = [_record(f"c{i}", {"Brainstem": 1.0}, kept={"Brainstem": k}) for i, k in enumerate((1.0, 0.5, 0.9))]
    report = _report(records)
    assert report["organs"]["Brainstem"]["kept_median"] == 0.9
    assert "0.90 / 0.50" in table_of(report)


def test_table_groups_notes_of_one_kind():
    records = [_record(f"c{i}", {"Brainstem": 1.0}, notes=(f"{i} voxels clipped",)) for i in range(4)]
    table = table_of(_report(records))
    assert "changed: c0: 0 voxels clipped (and 3 more like it" in table
    assert table.count("clipped") == 1


def test_test_cases_do_not_count_as_training():
    report = _report([_record("c0", {"Brainstem": 1.0}), _record("t", {}, test=True)])
    assert (report["training_cases"], report["test_cases"]) == (1, 1)
    assert not any("t:" in text for text in report["warnings"])


def test_one_patient_is_a_warning():
    assert any("cross-validation is not possible" in text for text in _report([], splits=())["warnings"])


def test_record_survives_json():
    record = _record("c0", {"Brainstem": 1.0}, notes=("x",))
    assert CaseRecord.from_json(record.as_json()) == record
