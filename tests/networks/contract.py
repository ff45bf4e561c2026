"""What nnU-Net asks of a network. A test class inherits it, names its network, and has all of these tests."""

from __future__ import annotations

import inspect
import math
import pickle
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from dynamic_network_architectures.architectures.abstract_arch import test_submodules_loadable as submodules_load
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import nn
from torch.nn.modules.conv import _ConvNd

CLASSES = 3
CHANNELS = 2
ANISOTROPIC = [[1, 1, 1], [1, 2, 2], [2, 2, 2], [1, 2, 2]]
KERNELS = [[1, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3]]
SHAPES: dict[int, tuple[int, ...]] = {2: (24, 32), 3: (6, 16, 24)}
"""Patches that the strides below divide, so that nnU-Net can train on them."""


def keywords(dim: int = 3, **changes: Any) -> dict[str, Any]:
    """Keywords as a plans file gives them: four stages, four features, anisotropic in 3D."""
    return {
        "input_channels": CHANNELS,
        "num_classes": CLASSES,
        "n_stages": 4,
        "features_per_stage": (4, 5, 6, 7),
        "conv_op": nn.Conv3d if dim == 3 else nn.Conv2d,
        "kernel_sizes": KERNELS if dim == 3 else [[3, 3]] * 4,
        "strides": ANISOTROPIC if dim == 3 else [[1, 1], [2, 2], [2, 2], [2, 2]],
        "n_conv_per_stage": (2, 2, 2, 2),
        "n_conv_per_stage_decoder": (2, 2, 2),
        "conv_bias": True,
        "norm_op": nn.InstanceNorm3d if dim == 3 else nn.InstanceNorm2d,
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": nn.LeakyReLU,
        "nonlin_kwargs": {"inplace": True},
        "deep_supervision": True,
        **changes,
    }


def path_of(kind: type) -> str:
    return f"{kind.__module__}.{kind.__name__}"


class NetworkContract:
    """Inherit, set ``network``, and add own keywords in ``own`` where a variant is to be tested.

    A network that works in 3D alone says so in ``dims``; one that sees more than the image, in ``inputs``.
    """

    network: ClassVar[type[nn.Module]]
    own: ClassVar[dict[str, Any]] = {}
    dims: ClassVar[tuple[int, ...]] = (2, 3)
    inputs: ClassVar[int] = CHANNELS

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "dim" in metafunc.fixturenames:
            metafunc.parametrize("dim", self.dims)

    def given(self, dim: int = 3) -> dict[str, Any]:
        """The keywords of this variant."""
        return keywords(dim, **self.own)

    def build(self, dim: int = 3, **changes: Any) -> nn.Module:
        torch.manual_seed(0)
        return self.network(**{**self.given(dim), **changes})

    def image(self, dim: int = 3, *shape: int, batch: int = 2) -> torch.Tensor:
        generator = torch.Generator().manual_seed(1)
        return torch.randn(batch, CHANNELS, *(shape or SHAPES[dim]), generator=generator)

    def test_takes_every_keyword_of_nnunets_own_unet(self):
        given = set(keywords(nonlin_first=True))
        assert given == set(inspect.signature(PlainConvUNet).parameters)
        self.build(nonlin_first=True)

    def test_an_unknown_keyword_is_refused(self):
        with pytest.raises(TypeError, match="colour"):
            self.build(colour="red")

    def test_numbers_instead_of_lists_mean_every_stage(self):
        scalars = {"features_per_stage": 4, "kernel_sizes": 3, "strides": 1, "n_conv_per_stage": 2}
        network = self.build(**scalars, n_conv_per_stage_decoder=2)
        assert network(self.image())[0].shape == (2, CLASSES, *SHAPES[3])

    @pytest.mark.parametrize("name", ["features_per_stage", "strides", "kernel_sizes", "n_conv_per_stage_decoder"])
    def test_a_list_of_another_length_is_refused_with_its_name(self, name):
        with pytest.raises(ValueError, match=rf"^{name} must have \d entries"):
            self.build(**{name: [1] * 7})

    def test_one_stage_is_refused(self):
        with pytest.raises(ValueError, match="2 stages or more, got n_stages=1"):
            self.build(n_stages=1)

    @pytest.mark.parametrize("stages", [2, 3, 6])
    def test_any_number_of_stages_works(self, stages):
        dim = min(self.dims)
        network = self.build(
            dim,
            n_stages=stages,
            features_per_stage=4,
            kernel_sizes=3,
            strides=[1] + [[1, 2, 2][-dim:]] * (stages - 1),
            n_conv_per_stage=1,
            n_conv_per_stage_decoder=1,
        )
        outputs = network(self.image(dim, *(3, 64, 64)[-dim:]))
        assert [y.shape[-1] for y in outputs] == [64 // 2**i for i in range(stages - 1)]

    def test_weights_have_the_same_names_with_and_without_deep_supervision(self, dim):
        on, off = (self.build(dim, deep_supervision=value).state_dict() for value in (True, False))
        assert list(on) == list(off)
        assert [w.shape for w in on.values()] == [w.shape for w in off.values()]

    def test_training_gives_logits_finest_first_at_the_scales_of_the_strides(self, dim):
        outputs = self.build(dim)(self.image(dim))
        size, expected = list(SHAPES[dim]), []
        for stride in keywords(dim)["strides"][:-1]:
            size = [n // s for n, s in zip(size, stride, strict=True)]
            expected.append((2, CLASSES, *size))
        assert [tuple(y.shape) for y in outputs] == expected
        assert isinstance(outputs, list)

    def test_prediction_gives_the_finest_of_them_alone(self, dim):
        network = self.build(dim).eval()
        with torch.no_grad():
            finest = network(self.image(dim))[0]
            network.decoder.deep_supervision = False
            alone = network(self.image(dim))
        torch.testing.assert_close(alone, finest, rtol=0, atol=0)

    def test_output_is_logits_not_probabilities(self):
        network = self.build().eval()
        network.apply(network.initialize)
        with torch.no_grad():
            finest = network(self.image())[0]
        assert finest.min() < 0
        assert not torch.allclose(finest.sum(1), torch.ones(()))

    def test_every_output_is_a_fresh_tensor(self):
        """NnU-Net's predictor works on it in place."""
        network, image = self.build().eval(), self.image()
        before = image.clone()
        with torch.no_grad():
            first = [y.clone() for y in network(image)]
            for y in network(image):
                y.mul_(0)
            again = network(image)
        assert len({y.untyped_storage().data_ptr() for y in again} | {image.data_ptr()}) == len(again) + 1
        assert torch.equal(image, before)
        for a, b in zip(first, again, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)

    @pytest.mark.parametrize("deep_supervision", [True, False])
    def test_feature_map_size_is_what_the_convolutions_write(self, dim, deep_supervision):
        network, written = self.build(dim, deep_supervision=deep_supervision), []
        for layer in network.modules():
            if isinstance(layer, _ConvNd):
                layer.register_forward_hook(lambda _, __, output: written.append(output.numel()))
        network(self.image(dim, batch=1))
        assert network.compute_conv_feature_map_size(SHAPES[dim]) == sum(written)

    def test_feature_map_size_refuses_batch_and_channels(self):
        with pytest.raises(ValueError, match="expected 3 edge lengths"):
            self.build().compute_conv_feature_map_size((2, 1, *SHAPES[3]))

    def test_every_parameter_gets_a_gradient(self, dim):
        """DDP stops at the first one that does not."""
        network = self.build(dim)
        sum(y.square().mean() for y in network(self.image(dim))).backward()
        assert [name for name, p in network.named_parameters() if p.grad is None] == []
        assert all(p.grad.isfinite().all() for p in network.parameters())

    @pytest.mark.parametrize("nonlin_first", [False, True])
    def test_gradients_are_those_of_finite_differences(self, nonlin_first):
        """Something changed in place that is needed again would show here."""
        dim = min(self.dims)
        network = self.build(dim, nonlin_first=nonlin_first, deep_supervision=False).double().eval()
        image = self.image(dim, *(3, 16, 16)[-dim:], batch=1).double().requires_grad_()
        network(image).square().sum().backward()
        step = torch.randn(image.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        with torch.no_grad():
            ahead, behind = (network(image + sign * 1e-7 * step).square().sum() for sign in (1, -1))
        torch.testing.assert_close((image.grad * step).sum(), (ahead - behind) / 2e-7, rtol=1e-4, atol=1e-6)

    def test_a_single_case_trains(self, dim):
        outputs = self.build(dim).train()(self.image(dim, batch=1))
        assert all(y.isfinite().all() for y in outputs)

    @pytest.mark.parametrize("shape", [(5, 17, 23), (7, 24, 24), (4, 31, 16)])
    def test_odd_and_anisotropic_patches_keep_their_size(self, shape):
        network = self.build(deep_supervision=False).eval()
        with torch.no_grad():
            assert network(self.image(3, *shape)).shape == (2, CLASSES, *shape)

    def test_stays_finite_in_half_precision(self):
        network = self.build().train()
        with torch.autocast("cpu", torch.bfloat16):
            outputs = network(1000 * self.image())
            loss = sum(y.float().square().mean() for y in outputs)
        loss.backward()
        assert all(y.isfinite().all() for y in outputs)
        assert all(p.grad.isfinite().all() for p in network.parameters())

    def test_pickles(self):
        network = self.build().eval()
        copy = pickle.loads(pickle.dumps(network))
        with torch.no_grad():
            for a, b in zip(network(self.image()), copy(self.image()), strict=True):
                assert torch.equal(a, b)

    def test_is_traced_whole_by_the_compiler_front_end(self):
        """No branch on data and no value read back; deep supervision costs one recompile, not more."""
        dim = min(self.dims)
        network = self.build(dim)
        torch._dynamo.reset()
        explained = torch._dynamo.explain(network)(self.image(dim))
        assert explained.graph_break_count == 0

    def test_nnunet_builds_it_from_plans_by_its_dotted_path(self, dim):
        given = self.given(dim)
        ops = ("conv_op", "norm_op", "nonlin")
        given.update({name: path_of(given[name]) for name in ops})
        for name in ("input_channels", "num_classes", "deep_supervision"):
            del given[name]
        network = get_network_from_plans(
            path_of(self.network), given, (*ops, "dropout_op"), CHANNELS, CLASSES, deep_supervision=False
        )
        assert type(network) is self.network
        with torch.no_grad():
            assert network(self.image(dim)).shape == (2, CLASSES, *SHAPES[dim])

    def test_initialisation_is_he_and_leaves_no_bias(self):
        network = self.build()
        network.apply(network.initialize)
        convolutions = [layer for layer in network.modules() if isinstance(layer, _ConvNd)]
        assert all(layer.bias is None or not layer.bias.any() for layer in convolutions)
        largest = max(convolutions, key=lambda layer: layer.weight.numel())
        fan = math.prod(largest.weight.shape[1:])
        assert largest.weight.std().item() == pytest.approx(math.sqrt(2 / fan), rel=0.15)

    def test_pretrained_weights_find_encoder_stem_and_input(self):
        network = self.build()
        submodules_load(network)
        assert network.get_submodule(network.keys_to_in_proj[0]).weight.shape[1] == self.inputs

    def test_class_name_is_unknown_to_nnunets_own_networks(self):
        """NnU-Net looks among its own networks for the class name where ours cannot be imported."""
        import dynamic_network_architectures.architectures as stock

        name = f"class {self.network.__name__}"
        folder = Path(next(iter(stock.__path__)))
        assert not any(f"{name}(" in file.read_text() or f"{name}:" in file.read_text() for file in folder.glob("*.py"))
