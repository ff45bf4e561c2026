from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nnunet_ext.errors import InputError
from nnunet_ext.fusion.rules import FusionTable, default_priority

PAGE: dict[str, Any] = {
    "version": 1,
    "organs": {"Brainstem": 1, "Lens_L": 4, "OpticChiasm": 8},
    "owner": {"Brainstem": "3d", "Lens_L": "2d", "OpticChiasm": "small"},
    "models": {"2d": {"Brainstem": 1, "Lens_L": 4}, "3d": {"Brainstem": 1, "Lens_L": 4}, "small": {"OpticChiasm": 1}},
    "priority": ["OpticChiasm", "Lens_L", "Brainstem"],
    "on_conflict": "priority",
    "channels": ["T1w", "T2w"],
}


def test_a_table_survives_its_file(tmp_path: Path) -> None:
    table = FusionTable.from_dict(PAGE)
    table.save(tmp_path / "fusion.json")
    assert FusionTable.load(tmp_path / "fusion.json") == table
    assert table.as_dict() == PAGE


def test_a_table_of_an_older_version_lists_no_channels() -> None:
    assert FusionTable.from_dict({key: value for key, value in PAGE.items() if key != "channels"}).channels == ()


def test_a_table_for_some_organs_keeps_their_numbers_owners_and_order() -> None:
    table = FusionTable.from_dict(PAGE).only(["OpticChiasm", "Brainstem"])
    assert table.organs == {"Brainstem": 1, "OpticChiasm": 8}
    assert table.owners == ["3d", "small"]
    assert table.priority == ["OpticChiasm", "Brainstem"]
    assert table.channels == ("T1w", "T2w")


@pytest.mark.parametrize(
    ("organs", "message"), [(["Lens_L", "Cord"], "^Cord is no organ"), ([], "^nothing is no organ")]
)
def test_an_organ_that_the_table_does_not_have_is_refused_with_those_it_has(organs: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message + " to contour; known are Brainstem, Lens_L, OpticChiasm"):
        FusionTable.from_dict(PAGE).only(organs)


def test_owners_come_in_the_order_of_the_models_and_know_their_labels() -> None:
    table = FusionTable.from_dict(PAGE)
    assert table.owners == ["2d", "3d", "small"]
    assert table.owned_labels("2d") == {"Lens_L": 4}
    assert table.owned_labels("small") == {"OpticChiasm": 1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"owner": {**PAGE["owner"], "Lens_L": "4d"}}, "owned by '4d', known models"),
        ({"owner": {**PAGE["owner"], "Lens_L": "small"}}, "'small', which knows only"),
        ({"owner": {**PAGE["owner"], "Lens_L": ["2d"]}}, r"owned by \['2d'\], known models"),
        ({"owner": {**PAGE["owner"], "Lens_L": {"2d": 1}}}, "owned by {'2d': 1}, known models"),
        ({"priority": ["OpticChiasm", "Lens_L", ["Brainstem"]]}, "expected the names of the organs"),
        ({"owner": {"Brainstem": "3d"}}, "without owner: .'Lens_L', 'OpticChiasm'."),
        ({"owner": {**PAGE["owner"], "Cord": "3d"}}, "not an organ: .'Cord'."),
        ({"priority": ["OpticChiasm", "Lens_L"]}, "missing .'Brainstem'."),
        ({"priority": [*PAGE["priority"], "Cord"]}, "unknown .'Cord'."),
        ({"priority": [*PAGE["priority"], "Lens_L"]}, "4 entries for 3 organs"),
        ({"on_conflict": "loudest"}, "'loudest', expected one of"),
        ({"organs": {**PAGE["organs"], "Lens_L": 1}}, "a different number for each organ"),
        ({"organs": {**PAGE["organs"], "Lens_L": 0}}, "from 1 to 65535"),
        ({"organs": {}}, "no organ is listed"),
        ({"models": {**PAGE["models"], "2d": ["Lens_L"]}}, "model '2d' is"),
        ({"models": {**PAGE["models"], "2d": {"Lens_L": "4"}}}, "from 1 to 65535"),
        ({"version": 2}, "version 2, this nnunet_ext reads 1"),
        ({"priority": None}, '"priority" is None, expected a list'),
        ({"owner": []}, '"owner" is .., expected an object'),
        ({"channels": "CT"}, "\"channels\" is 'CT', expected a list"),
        ({"channels": ["MR", "MR"]}, "a different name for each file"),
    ],
)
def test_a_table_that_contradicts_itself_is_refused_in_one_sentence(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        FusionTable.from_dict({**PAGE, **change})


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "fusion.json").write_text("[]")
    with pytest.raises(InputError, match=r"fusion\.json must be an object"):
        FusionTable.load(tmp_path / "fusion.json")
    (tmp_path / "fusion.json").write_text("{")
    with pytest.raises(InputError, match=r"fusion\.json cannot be read as JSON"):
        FusionTable.load(tmp_path / "fusion.json")


def test_small_organs_win_by_default_after_the_named_first_ones() -> None:
    volumes = {"Mandible": 60.0, "Lens": 0.2, "Brainstem": 25.0, "Chiasm": 0.5}
    assert default_priority(volumes) == ["Lens", "Chiasm", "Brainstem", "Mandible"]
    assert default_priority(volumes, ["Brainstem"]) == ["Brainstem", "Lens", "Chiasm", "Mandible"]


@pytest.mark.parametrize("first", [["Cord"], ["Lens", "Lens"]])
def test_unknown_or_repeated_first_organs_are_refused(first: list[str]) -> None:
    with pytest.raises(InputError, match="different organs"):
        default_priority({"Lens": 0.2}, first)
