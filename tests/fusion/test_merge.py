from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from nnunet_ext.fusion.merge import fuse_labels
from nnunet_ext.fusion.rules import FusionTable

SHAPE = (3, 4, 5)


def table(**changes: Any) -> FusionTable:
    page = {
        "organs": {"A": 1, "B": 2},
        "owner": {"A": "2d", "B": "3d"},
        "models": {"2d": {"A": 1, "B": 2}, "3d": {"A": 1, "B": 2}},
        "priority": ["B", "A"],
    }
    return FusionTable.from_dict({**page, **changes})


def voxel(label: int, at: tuple[int, int, int] = (1, 2, 3)) -> NDArray[np.uint8]:
    labels = np.zeros(SHAPE, dtype=np.uint8)
    labels[at] = label
    return labels


def chance(value: float) -> NDArray[np.float32]:
    return np.full(SHAPE, value, dtype=np.float32)


@pytest.mark.parametrize(
    ("two_d", "three_d", "expected"),
    [
        (0, 0, 0),  # nobody claims
        (1, 0, 1),  # the owner of A claims A
        (0, 1, 0),  # A, but from a model that does not own it; the owner says background
        (2, 0, 0),  # B likewise
        (0, 2, 2),  # the owner of B claims B
        (2, 1, 0),  # both speak about organs of the other
        (2, 2, 2),
        (1, 1, 1),
        (1, 2, 2),  # both claim: priority
    ],
)
def test_only_owners_are_heard_and_conflicts_go_by_priority(two_d: int, three_d: int, expected: int) -> None:
    fused = fuse_labels({"2d": voxel(two_d), "3d": voxel(three_d)}, table())
    np.testing.assert_array_equal(fused.labels, voxel(expected))
    assert fused.contested == ({"B|A": 1} if (two_d, three_d) == (1, 2) else {})


def test_a_small_model_speaks_in_its_own_numbers() -> None:
    rules = table(
        organs={"A": 7, "Chiasm": 300},
        owner={"A": "2d", "Chiasm": "small"},
        models={"2d": {"A": 1}, "small": {"Chiasm": 1}},
        priority=["Chiasm", "A"],
    )
    fused = fuse_labels({"2d": voxel(1, (0, 0, 0)), "small": voxel(1)}, rules)
    assert fused.labels.dtype == np.uint16
    assert fused.labels[0, 0, 0] == 7
    assert fused.labels[1, 2, 3] == 300


def test_a_subset_of_the_models_organs_leaves_the_others_out() -> None:
    rules = table(organs={"B": 2}, owner={"B": "3d"}, priority=["B"])
    labels = np.arange(np.prod(SHAPE), dtype=np.uint8).reshape(SHAPE) % 23
    fused = fuse_labels({"3d": labels}, rules)
    np.testing.assert_array_equal(fused.labels, np.where(labels == 2, 2, 0))


def reference(maps: dict[str, NDArray[np.integer]], rules: FusionTable) -> NDArray[np.integer]:
    """The rule written down once more: from the last priority to the first, overwrite."""
    final = np.zeros(next(iter(maps.values())).shape, dtype=np.int64)
    for organ in reversed(rules.priority):
        owner = rules.owner[organ]
        final[maps[owner] == rules.models[owner][organ]] = rules.organs[organ]
    return final


def test_the_result_equals_the_rule_and_no_order_of_anything_changes_it() -> None:
    rng = np.random.default_rng(0)
    organs = {f"organ_{i}": i for i in range(1, 9)}
    owner = {organ: "xyz"[i % 3] for i, organ in enumerate(organs)}
    priority = [str(organ) for organ in rng.permutation(list(organs))]
    maps = {model: rng.integers(0, 11, size=(6, 7, 8)).astype(np.uint8) for model in "xyz"}
    results = []
    for order in itertools.permutations("xyz"):
        rules = table(
            organs=dict(sorted(organs.items(), key=lambda item: rng.random())),
            owner=dict(sorted(owner.items(), key=lambda item: rng.random())),
            models=dict.fromkeys(rng.permutation(list("xyz")).tolist(), organs),
            priority=priority,
        )
        results.append(fuse_labels({model: maps[model] for model in order}, rules))
        np.testing.assert_array_equal(results[-1].labels, reference(maps, rules))
    assert all(result.contested == results[0].contested for result in results)


def test_every_loser_of_a_voxel_is_counted() -> None:
    rules = table(
        organs={"A": 1, "B": 2, "C": 3},
        owner={"A": "x", "B": "y", "C": "z"},
        models={model: {"A": 1, "B": 2, "C": 3} for model in "xyz"},
        priority=["C", "A", "B"],
    )
    fused = fuse_labels({"x": voxel(1), "y": voxel(2), "z": voxel(3)}, rules)
    assert fused.contested == {"C|A": 1, "C|B": 1}


def test_the_higher_probability_of_the_owners_wins_where_the_table_says_so() -> None:
    rules = table(on_conflict="probability")
    maps = {"2d": voxel(1), "3d": voxel(2)}
    fused = fuse_labels(maps, rules, {"2d": {"A": chance(0.9)}, "3d": {"B": chance(0.8)}})
    assert (fused.labels[1, 2, 3], fused.contested) == (1, {"A|B": 1})
    fused = fuse_labels(maps, rules, {"2d": {"A": chance(0.6)}, "3d": {"B": chance(0.8)}})
    assert (fused.labels[1, 2, 3], fused.contested) == (2, {"B|A": 1})


def test_equal_probabilities_go_by_priority() -> None:
    probabilities = {"2d": {"A": chance(0.7)}, "3d": {"B": chance(0.7)}}
    fused = fuse_labels({"2d": voxel(1), "3d": voxel(2)}, table(on_conflict="probability"), probabilities)
    assert fused.labels[1, 2, 3] == 2


def test_a_high_probability_without_a_claim_counts_for_nothing() -> None:
    probabilities = {"2d": {"A": chance(0.2)}, "3d": {"B": chance(0.9)}}
    fused = fuse_labels({"2d": voxel(1), "3d": voxel(0)}, table(on_conflict="probability"), probabilities)
    assert fused.labels[1, 2, 3] == 1


@pytest.mark.parametrize("probabilities", [None, {"2d": {"A": np.zeros((1, 1, 1))}}])
def test_missing_or_misshapen_probabilities_are_refused(probabilities: Any) -> None:
    with pytest.raises(ValueError, match="model '2d' gives organ 'A'"):
        fuse_labels({"2d": voxel(1), "3d": voxel(2)}, table(on_conflict="probability"), probabilities)


def test_empty_maps_fuse_to_an_empty_map() -> None:
    fused = fuse_labels({"2d": voxel(0), "3d": voxel(0)}, table())
    np.testing.assert_array_equal(fused.labels, voxel(0))
    assert fused.contested == {}


def test_inputs_are_not_changed() -> None:
    maps = {"2d": voxel(1), "3d": voxel(2)}
    fuse_labels(maps, table())
    np.testing.assert_array_equal(maps["2d"], voxel(1))


def test_a_missing_owner_and_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"no label map of \['3d'\]"):
        fuse_labels({"2d": voxel(1)}, table())
    with pytest.raises(ValueError, match="one shape"):
        fuse_labels({"2d": voxel(1), "3d": np.zeros((1, 1, 1), dtype=np.uint8)}, table())
