from __future__ import annotations

import numpy as np
import pytest

from nnunet_ext.preprocessing.label_noise import Displacement, corrupt_labels, displaced

SPACING_MM = (3.0, 1.0, 1.0)


def ball(shape: tuple[int, ...], centre: tuple[int, ...], radius: float) -> np.ndarray:
    grid = np.indices(shape).astype(float) - np.reshape(centre, (3, 1, 1, 1))
    return (grid**2).sum(axis=0) <= radius**2


def cube(low: int, high: int, size: int = 20) -> np.ndarray:
    labels = np.zeros((size, size, size), np.uint8)
    labels[low:high, low:high, low:high] = 1
    return labels


class TestOneStructure:
    @pytest.mark.parametrize(("direction", "radius"), [("erode", 5), ("dilate", 11)])
    def test_a_disc_becomes_a_disc_with_another_radius(self, direction, radius):
        disc = ball((1, 41, 41), (0, 20, 20), 8)
        moved = displaced(disc, Displacement(direction, 3), SPACING_MM)
        assert moved.sum() == pytest.approx(ball((1, 41, 41), (0, 20, 20), radius).sum(), rel=0.08)
        assert moved.sum(axis=(0, 1)).max() == 2 * radius + 1

    def test_voxels_are_steps_along_every_axis_whatever_the_spacing(self):
        grown = displaced(cube(8, 12) == 1, Displacement("dilate", 2), SPACING_MM)
        assert [tuple(map(int, (w.min(), w.max()))) for w in np.nonzero(grown)] == [(6, 13)] * 3

    def test_millimetres_use_the_spacing(self):
        grown = displaced(cube(8, 12) == 1, Displacement("dilate", 3.0, "mm"), SPACING_MM)
        assert [tuple(map(int, (w.min(), w.max()))) for w in np.nonzero(grown)] == [(7, 12), (5, 14), (5, 14)]

    @pytest.mark.parametrize(("mm", "voxels"), [(1.4, 1), (1.6, 2), (2.4, 2), (2.6, 3)])
    def test_millimetres_are_rounded_to_the_nearest_voxel(self, mm, voxels):
        eroded = displaced(cube(5, 15) == 1, Displacement("erode", mm, "mm"), (1.0, 1.0, 1.0))
        assert [int(w.min()) for w in np.nonzero(eroded)] == [5 + voxels] * 3

    def test_in_plane_leaves_the_number_of_slices(self):
        mask = cube(8, 12) == 1
        for direction, width in (("dilate", 8), ("erode", 2)):
            amount = 2 if direction == "dilate" else 1
            moved = displaced(mask, Displacement(direction, amount, in_plane=True), SPACING_MM)
            assert np.flatnonzero(moved.any(axis=(1, 2))).tolist() == [8, 9, 10, 11]
            assert [int(np.ptp(w)) + 1 for w in np.nonzero(moved)[1:]] == [width, width]

    def test_an_organ_cut_by_the_image_is_not_eroded_there(self):
        mask = np.zeros((1, 10, 10), bool)
        mask[:, :5] = True
        eroded = displaced(mask, Displacement("erode", 2), SPACING_MM)
        assert np.array_equal(eroded[0, :, 0], [True] * 3 + [False] * 7)

    def test_everything_and_nothing_stay(self):
        for mask in (np.ones((3, 4, 5), bool), np.zeros((3, 4, 5), bool)):
            for direction in ("erode", "dilate"):
                assert np.array_equal(displaced(mask, Displacement(direction, 2), SPACING_MM), mask)

    def test_a_thin_organ_vanishes(self):
        assert not displaced(cube(8, 12) == 1, Displacement("erode", 2), SPACING_MM).any()


class TestLabelMaps:
    STRUCTURES = {"A": (1,), "B": (2,)}  # noqa: RUF012

    def row(self, text: str) -> np.ndarray:
        return np.array([[[int(c) for c in text]]], np.uint8)

    def corrupted(self, text: str, direction: str, amount: int, structures=None) -> tuple[str, object]:
        done = corrupt_labels(self.row(text), structures or self.STRUCTURES, Displacement(direction, amount), (1, 1, 1))
        return "".join(map(str, done.labels.ravel())), done

    def test_growing_organs_meet_in_the_middle(self):
        assert self.corrupted("011000022", "dilate", 3)[0] == "111112222"

    def test_a_voxel_as_near_to_both_goes_to_the_lower_number(self):
        assert self.corrupted("1000002", "dilate", 3)[0] == "1111222"

    def test_a_neighbour_is_not_overgrown(self):
        assert self.corrupted("0011122200", "dilate", 1)[0] == "0111122220"

    def test_neighbours_part_when_eroded(self):
        text, done = self.corrupted("0111112222", "erode", 1)
        assert text == "0011100222"
        assert done.voxels == {"A": (5, 3), "B": (4, 3)}
        assert done.lost == 0

    def test_lost_voxels_are_counted(self):
        assert self.corrupted("0110002200", "dilate", 2)[1].lost == 1  # the middle
        assert self.corrupted("0111222000", "dilate", 2)[1].lost == 4  # two in either organ, that the other one claims

    def test_the_ignore_label_stays_and_is_not_overgrown(self):
        assert self.corrupted("001199", "dilate", 3)[0] == "111199"

    def test_shape_type_and_input_stay(self):
        before = self.row("0110")
        kept = before.copy()
        after = corrupt_labels(before, self.STRUCTURES, Displacement("dilate", 1), (1, 1, 1)).labels
        assert after.dtype == before.dtype
        assert after.shape == before.shape
        assert np.array_equal(before, kept)

    def test_a_picture_without_a_slice_axis_is_refused(self):
        with pytest.raises(ValueError, match=r"\(Z, Y, X\)"):
            corrupt_labels(np.zeros((4, 4), np.uint8), self.STRUCTURES, Displacement("erode", 1), (1, 1, 1))

    @pytest.mark.parametrize("amount", [-1.0, float("inf"), float("nan")])
    def test_a_distance_that_is_none_is_refused(self, amount):
        with pytest.raises(ValueError, match="an amount from 0"):
            corrupt_labels(self.row("0110"), self.STRUCTURES, Displacement("dilate", amount), (1, 1, 1))


class TestOverlappingStructures:
    def test_a_code_per_overlap_keeps_every_structure_exactly(self):
        rng = np.random.default_rng(0)
        masks = [ball((1, 40, 40), (0, *rng.integers(10, 30, 2)), 7) for _ in range(3)]
        codes = sum(mask.astype(np.uint8) << bit for bit, mask in enumerate(masks))
        structures = {str(bit): [c for c in range(1, 8) if c >> bit & 1] for bit in range(3)}
        for direction in ("erode", "dilate"):
            move = Displacement(direction, 3)
            done = corrupt_labels(codes, structures, move, SPACING_MM)
            assert done.lost == 0
            for bit, mask in enumerate(masks):
                assert np.array_equal(done.labels >> bit & 1, displaced(mask, move, SPACING_MM))

    def test_nested_regions_stay_nested(self):
        labels = np.array([[[0, 0, 1, 1, 1, 2, 2, 2, 2, 1, 1, 1, 0, 0]]], np.uint8)
        structures = {"whole": (1, 2), "core": (2,)}
        grown = corrupt_labels(labels, structures, Displacement("dilate", 1), (1, 1, 1))
        assert grown.labels.ravel().tolist() == [0, 1, 1, 1, 2, 2, 2, 2, 2, 2, 1, 1, 1, 0]
        shrunk = corrupt_labels(labels, structures, Displacement("erode", 1), (1, 1, 1))
        assert shrunk.labels.ravel().tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 1, 1, 1, 0, 0, 0]
        assert grown.lost == shrunk.lost == 0

    def test_what_no_label_says_keeps_the_old_label(self):
        labels = np.array([[[1, 1, 3, 3, 2, 2]]], np.uint8)  # 3 is both
        done = corrupt_labels(labels, {"a": (1, 3), "b": (2, 3)}, Displacement("dilate", 1), (1, 1, 1))
        assert done.labels.ravel().tolist() == [1, 3, 3, 3, 3, 2]
        done = corrupt_labels(labels, {"a": (1,), "b": (2,), "both": (3,)}, Displacement("dilate", 1), (1, 1, 1))
        assert done.labels.ravel().tolist() == labels.ravel().tolist()

    def test_equal_labels_of_one_structure_keep_their_number(self):
        labels = np.array([[[0, 5, 6, 6, 0]]], np.uint8)
        done = corrupt_labels(labels, {"one": (5, 6)}, Displacement("dilate", 1), (1, 1, 1))
        assert done.labels.ravel().tolist() == [5, 5, 6, 6, 5]
