from __future__ import annotations

from itertools import pairwise
from typing import Any, ClassVar

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import nn

from nnunet_ext.networks.deep_res_unet import DeepResUNet
from nnunet_ext.networks.refinement_unet import RefinementUNet, find_network
from nnunet_ext.networks.se_res_unet import SEResUNet
from tests.networks.contract import CHANNELS, CLASSES, SHAPES, NetworkContract, keywords, path_of

FOREGROUND = CLASSES - 1


class TestRefinementOfSERes(NetworkContract):
    network = RefinementUNet
    own: ClassVar[dict[str, Any]] = {"base": path_of(SEResUNet), "passes": 2, "every_pass": False}
    inputs = CHANNELS + FOREGROUND


class TestRefinementOfOverlappingClasses(NetworkContract):
    network = RefinementUNet
    own: ClassVar[dict[str, Any]] = {
        "base": path_of(DeepResUNet),
        "passes": 2,
        "every_pass": False,
        "regions": True,
    }
    inputs = CHANNELS + CLASSES


def refinement(base: type[nn.Module] = SEResUNet, *, dim: int = 2, passes: int = 3, **changes: Any) -> RefinementUNet:
    torch.manual_seed(0)
    return RefinementUNet(base=path_of(base), passes=passes, **keywords(dim, **{"deep_supervision": False, **changes}))


def image(dim: int = 2) -> torch.Tensor:
    return torch.randn(2, CHANNELS, *SHAPES[dim], generator=torch.Generator().manual_seed(1))


def test_one_pass_is_the_base_network_whatever_the_weights_of_the_added_inputs():
    network, x = refinement(passes=1, features_per_stage=5).eval(), image()
    base = SEResUNet(**keywords(2, deep_supervision=False, features_per_stage=5)).eval()
    weights = network.unet.state_dict()
    added = [key for key, value in base.state_dict().items() if value.shape != weights[key].shape]
    assert added == ["encoder.stages.0.gated.convolutions.0.weight", "encoder.stages.0.project.weight"]
    base.load_state_dict({k: v[:, :CHANNELS] if k in added else v for k, v in weights.items()})
    with torch.no_grad():
        before = network(x)
        torch.testing.assert_close(before, base(x))
        for key in added:
            weights[key][:, CHANNELS:] = 0  # of the network itself
        assert torch.equal(network(x), before)


def test_weights_do_not_depend_on_the_number_of_passes():
    one, five = (refinement(passes=passes).state_dict() for passes in (1, 5))
    assert list(one) == list(five)
    assert all(torch.equal(one[key], five[key]) for key in one)


@pytest.mark.parametrize("checkpoint_passes", [False, True])
def test_the_loss_of_the_last_pass_reaches_the_first_pass(checkpoint_passes):
    network, fed_back = refinement(checkpoint_passes=checkpoint_passes), []
    original = network.foreground

    def foreground(logits: Any) -> torch.Tensor:
        logits.retain_grad()
        fed_back.append(logits)
        return original(logits)

    network.foreground = foreground  # type: ignore[method-assign]
    network(image())[-1].square().mean().backward()
    assert len(fed_back) == 2
    assert all(logits.grad.abs().max() > 0 for logits in fed_back)


def test_checkpointing_changes_neither_output_nor_gradient():
    results = []
    for checkpoint_passes in (False, True):
        network = refinement(checkpoint_passes=checkpoint_passes, dropout_op=nn.Dropout2d,
                             dropout_op_kwargs={"p": 0.3}).train()  # fmt: skip
        torch.manual_seed(3)
        outputs = network(image())
        sum(y.square().mean() for y in outputs).backward()
        results.append([*outputs, *(p.grad for p in network.parameters())])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_checkpointing_keeps_less_for_the_way_back():
    kept = []
    for checkpoint_passes in (False, True):
        network, saved = refinement(checkpoint_passes=checkpoint_passes), {}

        def note(tensor: torch.Tensor, saved: dict[int, int] = saved) -> torch.Tensor:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            outputs = network(image())
        assert len(outputs) == 3
        kept.append(sum(saved.values()))
    assert kept[1] < kept[0] / 5


@pytest.mark.parametrize("checkpoint_passes", [False, True])
def test_passes_are_unrolled_by_the_compiler_front_end(checkpoint_passes):
    network = refinement(checkpoint_passes=checkpoint_passes)
    torch._dynamo.reset()
    assert torch._dynamo.explain(network)(image()).graph_break_count == 0


@pytest.mark.parametrize("deep_supervision", [False, True])
def test_prediction_is_the_last_output_of_training(deep_supervision):
    network, x = refinement(deep_supervision=deep_supervision), image()
    with torch.no_grad():
        outputs, predicted = network.train()(x), network.eval()(x)
    assert len(outputs) == 3
    assert isinstance(predicted, list) == isinstance(outputs[0], list) == deep_supervision
    last = outputs[-1]
    for a, b in zip(*((y if deep_supervision else [y]) for y in (last, predicted)), strict=True):
        assert torch.equal(a, b)


def test_the_outputs_of_all_passes_can_be_switched_off_for_trainers_that_want_one():
    network, x = refinement(), image()
    network.every_pass = False
    with torch.no_grad():
        assert network.train()(x).shape == (2, CLASSES, *SHAPES[2])


@pytest.mark.parametrize(("regions", "fed_back"), [(False, FOREGROUND), (True, CLASSES)])
def test_every_pass_sees_the_image_and_the_foreground_of_the_one_before(regions, fed_back):
    network, seen, x = refinement(regions=regions).eval(), [], image()
    network.unet.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    with torch.no_grad():
        network(x)
    assert [inputs.shape[1] for inputs, _ in seen] == 3 * [CHANNELS + fed_back]
    assert all(torch.equal(inputs[:, :CHANNELS], x) for inputs, _ in seen)
    assert not seen[0][0][:, CHANNELS:].any()
    for (_, before), (inputs, _) in pairwise(seen):
        expected = before.sigmoid() if regions else before.softmax(1)[:, 1:]
        assert torch.equal(inputs[:, CHANNELS:], expected)


@pytest.mark.parametrize(("checkpoint_passes", "times"), [(False, 3), (True, 1)])
def test_the_planner_counts_the_passes_that_are_in_memory_at_once(checkpoint_passes, times):
    network = refinement(checkpoint_passes=checkpoint_passes)
    once = network.unet.compute_conv_feature_map_size(SHAPES[2])
    assert network.compute_conv_feature_map_size(SHAPES[2]) == times * once


def test_nnunets_residual_encoder_can_be_refined():
    given = keywords(2, n_blocks_per_stage=(1, 1, 1, 1))
    del given["n_conv_per_stage"]
    network = RefinementUNet(base=path_of(ResidualEncoderUNet), passes=2, every_pass=False, **given)
    network.apply(network.initialize)
    assert [tuple(y.shape[2:]) for y in network(image())] == [(24, 32), (12, 16), (6, 8)]
    network.decoder.deep_supervision = False
    assert network(image()).shape == (2, CLASSES, *SHAPES[2])


@pytest.mark.parametrize(
    "name",
    [
        "torch.hub.load",
        "nnunet_ext.networks.refinement_unet.torch.hub.load",
        "nnunet_ext.networks.refinement_unet.nn.Linear",
        "nnunet_ext.networks.ras_unet.separable_convolution",
        "nnunet_ext.networks.no_such_file.UNet",
        "nnunet_ext.settings.TrainerSettings",
        "SEResUNet",
        "",
    ],
)
def test_a_base_from_elsewhere_is_refused(name):
    with pytest.raises(ValueError, match=rf"base must be the dotted path of a network in .*got '{name}'"):
        RefinementUNet(base=name, **keywords(2))


@pytest.mark.parametrize("kind", [SEResUNet, PlainConvUNet])
def test_networks_are_found_by_their_path(kind):
    assert find_network(path_of(kind)) is kind


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"passes": 0}, "passes must be 1 or more, got 0"),
        ({"num_classes": 1}, "background alone"),
        ({"base": path_of(RefinementUNet)}, "ask for more passes"),
    ],
)
def test_what_it_cannot_do_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        RefinementUNet(**{"base": path_of(SEResUNet), **keywords(2), **changes})
