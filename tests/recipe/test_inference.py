"""Our predictor gives stock's logits and labels to the last bit, and prepares an image once for models that agree."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from numpy.typing import NDArray
from torch import nn

from nnunet_ext.recipe.inference import CasePredictor, Preprocessed, PreprocessedCache
from nnunet_ext.recipe.models import LoadedModel

SPACING_MM = (3.0, 0.8, 0.9)
Change = Callable[[dict[str, Any]], None]
SAME: Change = lambda page: None  # noqa: E731
LABELS = {"background": 0, "Parotid_L": 1, "Parotid_R": 2}


def plans() -> dict[str, Any]:
    configuration: dict[str, Any] = {
        "data_identifier": "drawn",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [4, 8, 8],
        "spacing": [3.0, 1.0, 1.0],
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "architecture": {},
        "batch_dice": True,
    }
    for kind in ("data", "seg", "probabilities"):
        configuration[f"resampling_fn_{kind}"] = "resample_data_or_seg_to_shape"
        configuration[f"resampling_fn_{kind}_kwargs"] = {"is_seg": kind == "seg", "order": 1}
    intensities = {"mean": 0.0, "std": 400.0, "percentile_00_5": -1000.0, "percentile_99_5": 1000.0}
    return {
        "label_manager": "LabelManager",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "foreground_intensity_properties_per_channel": {"0": intensities},
        "configurations": {"3d_fullres": configuration},
    }


def build(change: Change = SAME, folds: int = 1, mirror: tuple[int, ...] | None = None) -> LoadedModel:
    """A small network with random weights, other ones in every fold."""
    page = plans()
    change(page)
    manager = PlansManager(page)
    torch.manual_seed(folds)
    networks = [
        PlainConvUNet(
            1, 2, (4, 8), nn.Conv3d, ((1, 3, 3), (3, 3, 3)), ((1, 1, 1), (1, 2, 2)), 1, len(LABELS), 1, True,
            nn.InstanceNorm3d, {"affine": True}, nonlin=nn.LeakyReLU,
        )
        for _ in range(folds)
    ]  # fmt: skip
    predictor = CasePredictor(device=torch.device("cpu"), allow_tqdm=False)
    dataset = {"labels": LABELS, "channel_names": {"0": "CT"}}
    predictor.manual_initialization(
        networks[0], manager, manager.get_configuration("3d_fullres"),
        [copy.deepcopy(network.state_dict()) for network in networks], dataset, "drawn", mirror,
    )  # fmt: skip
    return LoadedModel(predictor, {"Parotid_L": 1, "Parotid_R": 2}, "0123", ["CT"])


def image(seed: int = 0, shape: tuple[int, int, int] = (9, 23, 21)) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 400, (1, *shape)).astype(np.float32)


def stock_of(model: LoadedModel) -> nnUNetPredictor:
    """Stock's predictor with the same weights and plans."""
    ours = model.predictor
    stock = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    stock.manual_initialization(
        ours.network, ours.plans_manager, ours.configuration_manager, ours.list_of_parameters, ours.dataset_json,
        ours.trainer_name, ours.allowed_mirroring_axes,
    )  # fmt: skip
    return stock


def varied(**change: Any) -> Change:
    return lambda page: page["configurations"]["3d_fullres"].update(change)


def transposed(page: dict[str, Any]) -> None:
    page["transpose_forward"], page["transpose_backward"] = [1, 0, 2], [1, 0, 2]


def separate(page: dict[str, Any]) -> None:
    configuration = page["configurations"]["3d_fullres"]
    configuration["resampling_fn_probabilities_kwargs"] |= {"order_z": 0, "force_separate_z": None}
    configuration["spacing"] = [5.0, 1.1, 1.3]


def cubic(page: dict[str, Any]) -> None:
    configuration = page["configurations"]["3d_fullres"]
    configuration["resampling_fn_data_kwargs"] = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}


VARIANTS: dict[str, tuple[Change, tuple[int, ...] | None]] = {
    "as planned": (SAME, None),
    "coarser": (varied(spacing=[4.0, 1.3, 1.2]), None),
    "mirrored": (varied(spacing=[3.0, 1.3, 1.2]), (0, 1, 2)),
    "transposed": (transposed, None),
    "separate z": (separate, None),
    "cubic": (cubic, None),
}


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
@pytest.mark.parametrize("folds", [1, 3])
def test_logits_and_labels_are_stocks_bit_for_bit(variant: tuple[Change, tuple[int, ...] | None], folds: int) -> None:
    model = build(variant[0], folds, variant[1])
    stock, ours = stock_of(model), model.predictor
    data, properties = ours.preprocess(image(), SPACING_MM)
    expected, _, expected_properties = DefaultPreprocessor(verbose=False).run_case_npy(
        image(), None, {"spacing": list(SPACING_MM)}, stock.plans_manager, stock.configuration_manager, {}
    )
    np.testing.assert_array_equal(data.numpy(), expected)
    assert properties == expected_properties
    logits = ours.predict_logits_from_preprocessed_data(data)
    reference = stock.predict_logits_from_preprocessed_data(torch.from_numpy(expected))
    assert logits.dtype == reference.dtype == torch.half
    assert torch.equal(logits.contiguous().view(torch.int16), reference.contiguous().view(torch.int16))
    ras = np.ascontiguousarray(image()[:, :, ::-1, ::-1])
    with np.errstate(all="ignore"):
        labels = stock.predict_single_npy_array(ras, {"spacing": list(SPACING_MM)}, None, None, False)
    found = model.predict(image(), SPACING_MM)
    np.testing.assert_array_equal(found, labels[:, ::-1, ::-1])
    assert found.dtype == labels.dtype


@pytest.fixture
def model() -> LoadedModel:
    return build()


def test_a_logit_beyond_half_precision_ends_the_case(model: LoadedModel) -> None:
    model.predictor.list_of_parameters[0]["decoder.seg_layers.0.bias"][0] = 1e6
    with pytest.raises(RuntimeError, match="Encountered inf"):
        model.predict(image(), SPACING_MM)


def test_the_image_is_left_as_it_was(model: LoadedModel) -> None:
    given = image()
    model.predict(given, SPACING_MM)
    np.testing.assert_array_equal(given, image())


def test_another_device_or_a_flat_window_is_left_to_stock(model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def remember(self: Any, data: torch.Tensor, *rest: Any) -> torch.Tensor:
        calls.append(1)
        return torch.zeros((3, *data.shape[1:]), dtype=torch.half)

    monkeypatch.setattr(nnUNetPredictor, "_internal_predict_sliding_window_return_logits", remember)
    model.predictor.use_gaussian = False
    model.predict(image(), SPACING_MM)
    assert calls == [1]


# --- sharing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        varied(spacing=[3.0, 1.0, 1.1]),
        varied(normalization_schemes=["ZScoreNormalization"]),
        varied(use_mask_for_norm=[True]),
        varied(resampling_fn_data="resample_torch_fornnunet", resampling_fn_data_kwargs={}),
        lambda page: page["foreground_intensity_properties_per_channel"]["0"].update(std=2.0),
        transposed,
    ],
)
def test_whatever_changes_the_array_changes_its_key(change: Change) -> None:
    assert build(change).preprocessing(SPACING_MM) != build().preprocessing(SPACING_MM)


def test_the_network_and_the_patch_do_not_change_the_key() -> None:
    other = build(varied(patch_size=[8, 8, 8], batch_size=9), 2, (0,))
    assert other.preprocessing(SPACING_MM) == build().preprocessing(SPACING_MM)


def test_a_2d_model_shares_with_a_3d_model_where_the_slices_stay() -> None:
    flat, solid = build(varied(spacing=[1.0, 1.0], patch_size=[8, 8])), build()
    assert flat.preprocessing((3.0, 0.8, 0.9)) == solid.preprocessing((3.0, 0.8, 0.9))
    assert flat.preprocessing((2.0, 0.8, 0.9)) != solid.preprocessing((2.0, 0.8, 0.9))
    for spacing_mm, equal in [((3.0, 0.8, 0.9), True), ((2.0, 0.8, 0.9), False)]:
        one, other = (model.predictor.preprocess(image(), spacing_mm).data for model in (flat, solid))
        assert (one.shape == other.shape and torch.equal(one, other)) == equal


def made(log: list[str], name: str) -> Callable[[], Preprocessed]:
    def make() -> Preprocessed:
        log.append(name)
        return Preprocessed(torch.zeros(1), {})

    return make


def test_an_array_lives_until_the_last_model_that_needs_it() -> None:
    log: list[str] = []
    cache = PreprocessedCache(["fine", "coarse", "fine"])
    kept = cache.take("fine", made(log, "fine"))
    assert len(cache) == 1
    cache.take("coarse", made(log, "coarse"))
    assert len(cache) == 1
    assert cache.take("fine", made(log, "fine")) is kept
    assert (len(cache), log) == (0, ["fine", "coarse"])


def test_an_array_that_nobody_announced_is_not_kept() -> None:
    log: list[str] = []
    cache = PreprocessedCache([])
    for _ in range(2):
        cache.take("fine", made(log, "fine"))
    assert (len(cache), log) == (0, ["fine", "fine"])


def test_two_models_with_one_preprocessing_prepare_the_image_once(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = model.predict(image(), SPACING_MM)
    calls: list[int] = []
    preprocess = CasePredictor.preprocess

    def remember(self: CasePredictor, *arguments: Any) -> Preprocessed:
        calls.append(1)
        return preprocess(self, *arguments)

    monkeypatch.setattr(CasePredictor, "preprocess", remember)
    shared = PreprocessedCache([model.preprocessing(SPACING_MM)] * 2)
    for _ in range(2):
        np.testing.assert_array_equal(model.predict(image(), SPACING_MM, shared), alone)
    assert calls == [1]
