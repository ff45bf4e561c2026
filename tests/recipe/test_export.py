"""The exact export is stock's, bit for bit: every grid, every direction, and logits made to tie."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape
from nnunetv2.preprocessing.resampling.no_resampling import no_resampling_hack
from nnunetv2.preprocessing.resampling.resample_torch import resample_torch_fornnunet
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from numpy.typing import NDArray
from scipy import ndimage

from nnunet_ext.recipe import export, interpolation
from nnunet_ext.recipe.export import labels_from_logits

Shape3 = tuple[int, int, int]
TRILINEAR = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": False}
SEPARATE = {**TRILINEAR, "force_separate_z": None}
ANISOTROPIC_MM, ISOTROPIC_MM = (4.0, 1.0, 1.0), (1.0, 1.0, 1.0)


def classes(count: int) -> LabelManager:
    return LabelManager({"background": 0, **{f"organ_{i}": i for i in range(1, count)}}, None)


def regions(count: int) -> LabelManager:
    names = {f"region_{i}": list(range(i, count + 1)) for i in range(1, count)}
    return LabelManager({"background": 0, **names, "last": count}, [7 * i % 251 for i in range(1, count + 1)])


def both(
    logits: NDArray[np.float16],
    shape: Shape3,
    labels: LabelManager,
    spacing_mm: Sequence[float] = ANISOTROPIC_MM,
    function: Callable[..., Any] = resample_data_or_seg_to_shape,
    transpose: Sequence[int] = (0, 1, 2),
    start: Shape3 = (0, 0, 0),
    network_mm: Sequence[float] | None = None,
    **options: Any,
) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
    """Our map and stock's; ``start`` is where the crop lies in a larger image."""
    configuration = SimpleNamespace(
        spacing=list(network_mm or spacing_mm), resampling_fn_probabilities=partial(function, **options)
    )
    backward = [list(transpose).index(i) for i in range(3)]
    plans = SimpleNamespace(transpose_forward=list(transpose), transpose_backward=backward)
    properties = {
        "spacing": [spacing_mm[backward[i]] for i in range(3)],
        "shape_after_cropping_and_before_resampling": shape,
        "shape_before_cropping": tuple(n + 2 * a for n, a in zip(shape, start, strict=True)),
        "bbox_used_for_cropping": [[a, a + n] for n, a in zip(shape, start, strict=True)],
    }
    ours = labels_from_logits(torch.from_numpy(logits), plans, configuration, labels, properties)  # type: ignore[arg-type]
    stock = convert_predicted_logits_to_segmentation_with_correct_shape(
        torch.from_numpy(logits.copy()), plans, configuration, labels, dict(properties), num_threads_torch=1
    )
    return ours, stock


def check(*arguments: Any, **options: Any) -> NDArray[np.integer]:
    ours, stock = both(*arguments, **options)
    np.testing.assert_array_equal(ours, stock)
    assert (ours.dtype, ours.shape) == (stock.dtype, stock.shape)
    return ours


def noise(seed: int, heads: int, shape: Shape3, scale: float = 10.0) -> NDArray[np.float16]:
    return np.random.default_rng(seed).normal(0, scale, (heads, *shape)).astype(np.float16)


def smooth(seed: int, heads: int, shape: Shape3) -> NDArray[np.float16]:
    return np.stack(
        [ndimage.gaussian_filter(head.astype(float), 2.0) * 8 for head in noise(seed, heads, shape)]
    ).astype(np.float16)


def coarse(seed: int, heads: int, shape: Shape3) -> NDArray[np.float16]:
    """Few different values: many exact ties."""
    return np.rint(noise(seed, heads, shape, 1.0)).astype(np.float16)


def near(seed: int, heads: int, shape: Shape3) -> NDArray[np.float16]:
    """Neighbouring halves around numbers of different size: they tie after the mix is rounded."""
    random = np.random.default_rng(seed)
    base = random.choice(np.array([0.0, 1e-7, 3e-5, 0.999, 1.999, 8.0, 31.98, 1000.0], np.float16), shape)
    base *= random.choice(np.array([-1, 1], np.float16), shape)
    bits = base[None].view(np.int16) + random.integers(0, 3, (heads, *shape), dtype=np.int16)
    return np.ascontiguousarray(bits).view(np.float16)


DRAWN = {"noise": noise, "smooth": smooth, "ties": coarse, "near ties": near}
SIZES = [
    ((5, 12, 13), (5, 24, 26)),
    ((5, 12, 13), (5, 23, 31)),
    ((5, 24, 26), (5, 11, 13)),
    ((4, 9, 10), (9, 17, 10)),
    ((9, 9, 10), (4, 9, 23)),
    ((1, 7, 8), (3, 15, 15)),
    ((6, 1, 9), (6, 4, 20)),
    ((7, 8, 9), (7, 8, 9)),
]


@pytest.mark.parametrize("draw", DRAWN.values(), ids=DRAWN.keys())
@pytest.mark.parametrize("options", [SEPARATE, TRILINEAR], ids=["separate z", "trilinear"])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_classes_are_stocks_bit_for_bit(
    draw: Callable[..., NDArray[np.float16]], options: dict[str, Any], sizes: tuple[Shape3, Shape3]
) -> None:
    for seed, heads in [(0, 2), (1, 7), (2, 23)]:
        check(draw(seed, heads, sizes[0]), sizes[1], classes(heads), **options)


@pytest.mark.parametrize("draw", DRAWN.values(), ids=DRAWN.keys())
@pytest.mark.parametrize("options", [SEPARATE, TRILINEAR], ids=["separate z", "trilinear"])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_regions_are_stocks_bit_for_bit(
    draw: Callable[..., NDArray[np.float16]], options: dict[str, Any], sizes: tuple[Shape3, Shape3]
) -> None:
    for seed, heads in [(0, 2), (1, 5), (2, 9)]:
        check(draw(seed, heads, sizes[0]) - np.float16(0.5), sizes[1], regions(heads), **options)


def test_an_earlier_class_that_ends_on_the_same_half_wins_as_in_stock() -> None:
    """The later class is ahead at every voxel of the network's grid, and yet not in stock's map."""
    ulps = np.array([[1, 2, 1, 2], [2, 3, 2, 3]], np.int16)  # the means 1.5 and 2.5 are both rounded to the even 2
    halves = (np.float16(1).view(np.int16) + ulps).view(np.float16)
    logits = np.ascontiguousarray(np.broadcast_to(halves[:, None, None], (2, 1, 4, 4)))
    assert (logits.argmax(0) == 1).all()
    assert not check(logits, (1, 4, 2), classes(2), **TRILINEAR).any()


def test_constant_logits_give_the_first_class() -> None:
    assert not check(np.full((5, 4, 6, 7), 1.25, np.float16), (4, 13, 15), classes(5), **TRILINEAR).any()
    check(np.zeros((3, 4, 6, 7), np.float16), (4, 13, 15), regions(3), **TRILINEAR)


def test_both_zeros_are_equal() -> None:
    logits = np.zeros((3, 2, 5, 5), np.float16)
    logits[0] = -0.0
    assert not check(logits, (2, 9, 9), classes(3), **TRILINEAR).any()


@pytest.mark.parametrize("transpose", [(0, 1, 2), (1, 0, 2), (2, 0, 1), (2, 1, 0)])
@pytest.mark.parametrize("start", [(0, 0, 0), (2, 1, 3)])
def test_the_transpose_and_the_crop_are_undone(transpose: Sequence[int], start: Shape3) -> None:
    labels = check(noise(3, 4, (5, 8, 9)), (5, 15, 17), classes(4), transpose=transpose, start=start, **SEPARATE)
    sizes = [n + 2 * a for n, a in zip((5, 15, 17), start, strict=True)]
    assert [labels.shape[axis] for axis in transpose] == sizes


@pytest.mark.parametrize("spacing", [(4.0, 1.0, 1.0), (1.0, 5.0, 1.0), (1.0, 1.0, 6.0), (4.0, 4.0, 1.0)])
def test_the_slow_axis_may_be_any(spacing: Sequence[float]) -> None:
    for draw in DRAWN.values():
        check(draw(5, 4, (6, 7, 8)), (9, 11, 13), classes(4), spacing, **SEPARATE)


@pytest.mark.parametrize("order", [0, 1])
def test_a_2d_network_keeps_its_slices(order: int) -> None:
    options = {**SEPARATE, "order": order}
    check(noise(6, 5, (4, 9, 9)), (4, 17, 19), classes(5), network_mm=(2.0, 2.0), **options)
    check(noise(6, 5, (4, 9, 9)), (4, 17, 19), classes(5), ISOTROPIC_MM, network_mm=(2.0, 2.0), **options)


def test_a_permuted_or_cut_array_is_taken_as_it_is() -> None:
    logits = noise(7, 4, (12, 9, 10))[:, 2:8, 1:, :-1]
    check(logits, (6, 17, 19), classes(4), **SEPARATE)


@pytest.mark.parametrize("heads", [255, 256, 300])
def test_many_labels_need_sixteen_bits_as_in_stock(heads: int) -> None:
    labels = check(noise(8, heads, (2, 5, 6)), (2, 11, 12), classes(heads), **TRILINEAR)
    assert labels.dtype == (np.uint8 if heads - 1 < 255 else np.uint16)


def stock_is_called(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []

    def remember(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        return convert_predicted_logits_to_segmentation_with_correct_shape(*arguments, **options)

    monkeypatch.setattr(export, "convert_predicted_logits_to_segmentation_with_correct_shape", remember)
    return calls


@pytest.mark.parametrize(
    ("function", "options"),
    [
        (resample_data_or_seg_to_shape, {**TRILINEAR, "order": 3}),
        (resample_data_or_seg_to_shape, {**SEPARATE, "order_z": 1}),
        (resample_torch_fornnunet, {"force_separate_z": False}),
    ],
)
def test_other_resampling_goes_through_stock(
    function: Callable[..., Any], options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = stock_is_called(monkeypatch)
    check(noise(9, 4, (4, 7, 8)), (6, 13, 15), classes(4), function=function, **options)
    assert calls


@pytest.mark.parametrize("function", [no_resampling_hack, resample_torch_fornnunet, resample_data_or_seg_to_shape])
@pytest.mark.parametrize("labels", [classes(4), regions(4)], ids=["classes", "regions"])
def test_the_same_grid_needs_no_stock(
    function: Callable[..., Any], labels: LabelManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = stock_is_called(monkeypatch)
    for draw in DRAWN.values():
        check(draw(10, 4, (4, 7, 8)), (4, 7, 8), labels, function=function)
    assert not calls


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_no_numbers_go_through_stock(bad: float, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = stock_is_called(monkeypatch)
    logits = noise(11, 3, (3, 6, 6))
    logits[1, 1, 2, 3] = bad
    with np.errstate(invalid="ignore"):
        check(logits, (3, 6, 6), classes(3), **TRILINEAR)
    assert calls


def test_single_precision_goes_through_stock(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = stock_is_called(monkeypatch)
    check(noise(12, 3, (3, 6, 6)).astype(np.float32), (3, 11, 12), classes(3), **TRILINEAR)  # type: ignore[arg-type]
    assert calls


def test_another_scipy_goes_through_stock(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = stock_is_called(monkeypatch)
    monkeypatch.setattr(interpolation, "_arithmetic_is_known", lambda: False)
    check(noise(13, 3, (3, 6, 6)), (3, 11, 12), classes(3), **TRILINEAR)
    assert calls


def test_the_installed_scipy_is_repeated_to_the_last_bit() -> None:
    interpolation._arithmetic_is_known.cache_clear()
    assert interpolation._arithmetic_is_known()


def test_a_changed_order_of_operations_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    interpolation._arithmetic_is_known.cache_clear()
    mix = interpolation.Mixer.mix
    monkeypatch.setattr(interpolation.Mixer, "mix", lambda *arguments: np.nextafter(mix(*arguments), np.inf))
    assert not interpolation._arithmetic_is_known()
    interpolation._arithmetic_is_known.cache_clear()


def test_the_region_threshold_is_torchs() -> None:
    key = export._smallest_half_above_one_half()
    assert key is not None
    on, off = (torch.tensor([bits], dtype=torch.int16).view(torch.half).float() for bits in (key, key - 1))
    assert torch.sigmoid(on).item() > 0.5 >= torch.sigmoid(off).item()


def test_keys_order_as_halves_do_and_lead_back() -> None:
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    halves = halves[np.isfinite(halves)]
    keys = export._keys(halves)
    np.testing.assert_array_equal(np.argsort(keys, kind="stable"), np.argsort(halves, kind="stable"))
    np.testing.assert_array_equal(export._floats(keys), halves.astype(np.float32))
