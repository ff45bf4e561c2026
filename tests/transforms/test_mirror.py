from __future__ import annotations

import pickle

import pytest
import torch

from nnunet_ext.transforms.mirror import MirrorSwapTransform, swap_labels

PAIRS = [(1, 2), (4, 5)]
IGNORE = 9
LATERAL = {2: 1, 3: 2}
"""Left-right axis of the drawn patches, per number of dimensions."""


def drawn(dim: int) -> dict[str, torch.Tensor]:
    """One image channel of noise; a target and a previous stage with pairs, an unpaired organ, −1 and ignore.

    One row along left-right, the other axes repeat it::

        target    -1  1  1  0  3  2  4  9
        previous   0  1  5  5  3  0  2  0
    """
    rows = torch.tensor([[-1, 1, 1, 0, 3, 2, 4, IGNORE], [0, 1, 5, 5, 3, 0, 2, 0]], dtype=torch.int16)
    others = (3, 4)[: dim - 1]
    segmentation = rows.reshape(2, *[1] * (dim - 1), 8).expand(2, *others, 8).clone()
    image = torch.randn(1, *others, 8, generator=torch.Generator().manual_seed(0))
    return {"image": image, "segmentation": segmentation}


def mirrored(dim: int, p: float = 1.0) -> dict[str, torch.Tensor]:
    return MirrorSwapTransform(LATERAL[dim], PAIRS, p=p)(**drawn(dim))


@pytest.mark.parametrize("dim", [2, 3])
def test_one_mirror_flips_the_image_along_left_right_only(dim):
    torch.testing.assert_close(mirrored(dim)["image"], drawn(dim)["image"].flip(-1), rtol=0, atol=0)


@pytest.mark.parametrize("dim", [2, 3])
def test_one_mirror_flips_the_labels_and_exchanges_the_pairs(dim):
    target = mirrored(dim)["segmentation"][0].reshape(-1, 8)
    assert target.unique(dim=0).tolist() == [[IGNORE, 5, 1, 3, 0, 2, 2, -1]]


@pytest.mark.parametrize("dim", [2, 3])
def test_the_previous_stage_of_a_cascade_is_exchanged_too(dim):
    previous = mirrored(dim)["segmentation"][1].reshape(-1, 8)
    assert previous.unique(dim=0).tolist() == [[0, 1, 0, 3, 4, 4, 2, 0]]


@pytest.mark.parametrize("dim", [2, 3])
def test_two_mirrors_are_none(dim):
    transform = MirrorSwapTransform(LATERAL[dim], PAIRS, p=1.0)
    twice = transform(**transform(**drawn(dim)))
    for key, value in drawn(dim).items():
        assert torch.equal(twice[key], value)


@pytest.mark.parametrize("value", [0, 3, -1, IGNORE])
def test_background_unpaired_padding_and_ignore_labels_are_not_exchanged(value):
    labels = torch.full((2, 3), value, dtype=torch.int16)
    assert torch.equal(swap_labels(labels, PAIRS), labels)


def test_exchanging_labels_leaves_the_original_alone_and_keeps_its_type():
    labels = torch.tensor([[1, 2, 4]], dtype=torch.uint8)
    swapped = swap_labels(labels, PAIRS)
    assert (labels.tolist(), swapped.tolist(), swapped.dtype) == ([[1, 2, 4]], [[2, 1, 5]], torch.uint8)


def test_a_pair_may_lack_one_side_in_the_patch():
    assert swap_labels(torch.tensor([0, 1, 1]), PAIRS).tolist() == [0, 2, 2]


def test_another_lateral_axis_is_flipped_when_told_so():
    image = drawn(3)["image"]
    assert torch.equal(MirrorSwapTransform(0, PAIRS, p=1.0)(image=image.clone())["image"], image.flip(1))


def test_a_regression_target_is_flipped_without_exchange():
    target = drawn(2)["image"]
    assert torch.equal(
        MirrorSwapTransform(1, PAIRS, p=1.0)(regression_target=target)["regression_target"], target.flip(2)
    )


def test_probability_zero_never_mirrors():
    for _ in range(20):
        assert torch.equal(mirrored(2, p=0.0)["segmentation"], drawn(2)["segmentation"])


def test_image_and_labels_are_mirrored_together_about_half_of_the_time():
    torch.manual_seed(0)
    flips = 0
    for _ in range(200):
        result = mirrored(2, p=0.5)
        flipped = not torch.equal(result["image"], drawn(2)["image"])
        assert flipped != torch.equal(result["segmentation"], drawn(2)["segmentation"])
        flips += flipped
    assert 70 <= flips <= 130


def test_the_transform_reaches_worker_processes():
    copy = pickle.loads(pickle.dumps(MirrorSwapTransform(1, PAIRS, p=1.0)))
    assert torch.equal(copy(**drawn(2))["segmentation"], mirrored(2)["segmentation"])
