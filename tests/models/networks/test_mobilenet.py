"""The MobileNet family and its elastic parts, against networks that are cut by hand."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from diastole.models.errors import ModelError, SpecError
from diastole.models.methods.supernets.architectures import Architecture, spec_of
from diastole.models.methods.supernets.architectures import build as build_architecture
from diastole.models.methods.widths.width import width_cost
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.family import layout, narrowed, network, parts
from diastole.models.networks.mobilenet import DepthWise, centre, transforms
from diastole.models.networks.shape import Shape
from diastole.models.training import TrainConfig

MODEL = ModelConfig("mobilenet", (3, 16, 16), 5, (8, 16), (2, 2), group=4, kernel=7, expand=3.0)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (2, 5, 7)])
def test_small_images_become_logits(shape: tuple[int, ...]) -> None:
    model = ModelConfig("mobilenet", shape, 10, (8, 16, 24), (1, 2, 1), group=4)
    logits = network(model)(torch.randn(3, *shape))
    assert logits.shape == (3, 10)
    assert torch.isfinite(logits).all()


def test_the_stages_halve_the_map_and_taken_apart_it_is_the_same_network() -> None:
    module, x = network(MODEL), torch.randn(2, 3, 16, 16)
    y, sizes = parts(module).enter(x), []
    for stage in parts(module).stages:
        y = stage(y)
        sizes.append(tuple(y.shape[1:]))
    assert sizes == [(8, 16, 16), (16, 8, 8)]
    torch.testing.assert_close(parts(module).leave(y), module(x))


def test_the_layout_names_every_parameter_and_width_cuts_the_axes_that_it_names() -> None:
    full = {name: weight.shape for name, weight in network(MODEL).named_parameters()}
    half = {name: weight.shape for name, weight in network(MODEL, narrowed(MODEL, 0.5)).named_parameters()}
    axes = layout(MODEL)
    assert full.keys() == half.keys() == axes.keys()
    for name, along in axes.items():
        for axis, large, small in zip(along, full[name], half[name], strict=True):
            # A squeeze of 6 of 24 channels is rounded to whole groups, 8, and so is that of 12: 4.
            assert (small == large) if axis is None else (small * 2 == large or "squeeze" in axis.channels)


def test_only_later_stages_squeeze_and_only_equal_shapes_have_a_shortcut() -> None:
    names = [name for name, _ in network(MODEL).named_parameters()]
    assert not any("stages.0" in name and "squeeze" in name for name in names)
    assert any("stages.1" in name and "squeeze" in name for name in names)
    blocks = [block for stage in parts(network(MODEL)).stages for block in stage]
    assert [block.shortcut for block in blocks] == [True, True, False, True]


def test_macs_are_those_worked_out_by_hand() -> None:
    model = ModelConfig("mobilenet", (3, 8, 8), 4, (4,), (1,), group=2, kernel=5, expand=2.0)
    cost = width_cost(model, 1.0, TrainConfig(batch_size=8))
    stem, expand, depth, squeeze, project = 64 * 4 * 27, 64 * 8 * 4, 64 * 8 * 25, 2 * (2 * 8), 64 * 4 * 8
    assert cost.forward_macs == stem + expand + depth + squeeze + project + 4 * 4
    assert cost.training_macs == 2 * stem + 3 * (expand + depth + squeeze + project + 4 * 4)


# Elastic kernels


@pytest.mark.parametrize(("largest", "kernel"), [(7, 7), (7, 5), (7, 3), (5, 5), (5, 3), (3, 3)])
def test_with_identity_matrices_a_smaller_kernel_is_the_centre_of_the_largest(largest: int, kernel: int) -> None:
    layer, x = DepthWise(6, kernel, largest, 2), torch.randn(2, 6, 9, 9)
    whole = torch.randn(6, 1, largest, largest)
    layer.weight = nn.Parameter(centre(whole, layer.weight.shape[-1]).clone())
    edge = (largest - kernel) // 2
    for c in range(6):
        for i in range(kernel):
            for j in range(kernel):
                assert layer.taps()[c, 0, i, j] == whole[c, 0, edge + i, edge + j]
    expected = F.conv2d(x, whole[:, :, edge : largest - edge, edge : largest - edge], None, 2, kernel // 2, groups=6)
    torch.testing.assert_close(layer(x), expected)


def test_random_matrices_make_kernels_as_the_paper_says() -> None:
    whole, to5, to3 = torch.randn(4, 1, 7, 7), torch.randn(25, 25), torch.randn(9, 9)
    layer = DepthWise(4, 3, 7, 1)
    layer.weight = nn.Parameter(whole[:, :, 1:6, 1:6].clone())
    # Of the 5 x 5 kernel only the middle is used: rows 1 to 3 and columns 1 to 3.
    layer.to5 = nn.Parameter(to5.reshape(5, 5, 25)[1:4, 1:4].clone())
    layer.to3 = nn.Parameter(to3.reshape(3, 3, 9).clone())
    for c in range(4):
        five = (to5 @ whole[c, 0, 1:6, 1:6].flatten()).reshape(5, 5)
        three = (to3 @ five[1:4, 1:4].flatten()).reshape(3, 3)
        torch.testing.assert_close(layer.taps()[c, 0], three)


def test_every_parameter_of_an_elastic_kernel_is_trained() -> None:
    for kernel in (3, 5, 7):
        layer = DepthWise(4, kernel, 7, 1)
        with torch.no_grad():
            # The identity itself takes nothing from the rim.
            for parameter in layer.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape))
        layer(torch.randn(2, 4, 9, 9)).square().sum().backward()
        for parameter in layer.parameters():
            assert (parameter.grad != 0).all()


def test_many_networks_with_elastic_kernels_train_together_as_each_alone() -> None:
    module = build_architecture(MODEL, spec_of("ofa", Architecture(kernels=(3, 5, 7, 3))))
    states = [{name: torch.randn(weight.shape) for name, weight in module.named_parameters()} for _ in range(3)]
    x = torch.randn(3, 2, *MODEL.input_shape)

    def loss(state: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return functional_call(module, state, (x,)).logsumexp(1).sum()

    stacked = {name: torch.stack([state[name] for state in states]) for name in states[0]}
    together = vmap(grad(loss))(stacked, x)
    for k, state in enumerate(states):
        for name, gradient in grad(loss)(state, x[k]).items():
            torch.testing.assert_close(together[name][k], gradient, rtol=1e-3, atol=1e-3)


def test_matrices_start_as_the_identity() -> None:
    matrices = transforms(MODEL)
    assert len(matrices) == 4 * 2
    for name, matrix in matrices.items():
        size = 5 if name.endswith("to5") else 3
        assert torch.equal(matrix.reshape(size**2, size**2), torch.eye(size**2))
    assert not transforms(ModelConfig("mobilenet", (3, 8, 8), 5, (8,), (1,), kernel=3))


# What cannot be


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (ModelConfig("mobilenet", (3, 16), 5, (8,), (1,)), r"input_shape \[3, 16\]"),
        (ModelConfig("mobilenet", (3, 8, 8), 5, (6,), (1,)), r"widths \[6\].*group 4"),
        (ModelConfig("mobilenet", (3, 8, 8), 5, (8,), ()), r"blocks \[\].*1 widths"),
        (ModelConfig("mobilenet", (3, 8, 8), 5, (8,), (0,)), r"blocks \[0\]"),
    ],
)
def test_a_model_that_cannot_be_built_says_what_is_wrong(model: ModelConfig, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        network(model)


@pytest.mark.parametrize(("key", "value"), [("kernel", "4"), ("expand", "0.5")])
def test_sizes_that_cannot_be_are_named(key: str, value: str) -> None:
    text = '{"name":"mobilenet","input_shape":[3,8,8],"classes":2,"' + key + '":' + value + "}"
    with pytest.raises(ModelError, match=f"{key}: .*not {value}"):
        ModelConfig.from_json(text)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"kernels": (3, 5)}, r"kernels \[3, 5\]: one of \[3, 5, 7\].*4 blocks"),
        ({"kernels": (3, 5, 7, 9)}, r"kernels \[3, 5, 7, 9\]"),
        ({"expands": (1.0,)}, r"expands \[1.0\].*\(0, 3\].*4 blocks"),
        ({"expands": (1.0, 1.0, 1.0, 4.0)}, r"expands .*4.0"),
        ({"blocks": ((0,), (1,))}, r"blocks \[\[0\], \[1\]\].*first blocks.*\[2, 2\]"),
        ({"blocks": ((0,),)}, r"blocks \[\[0\]\]"),
        ({"blocks": ((0, 1, 2), (0,))}, r"blocks \[\[0, 1, 2\]"),
        ({"blocks": ((), (0,))}, r"blocks \[\[\]"),
    ],
)
def test_a_sub_network_that_cannot_be_says_what_is_wrong(fields: dict, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        build_architecture(MODEL, spec_of("ofa", Architecture(**fields)))


def test_other_families_have_shares_of_stages_and_no_kernels() -> None:
    model = ModelConfig("cnn", (3, 8, 8), 5, (8, 16))
    built = build_architecture(model, spec_of("ofa", Architecture(expands=(0.5, 0.25))))
    assert [tuple(weight.shape[:2]) for weight in built.parameters() if weight.dim() == 4] == [(4, 3), (4, 4)]
    for fields in ({"kernels": (3,)}, {"expands": (0.5,)}, {"expands": (0.5, 1.5)}):
        with pytest.raises(SpecError, match=next(iter(fields))):
            build_architecture(model, spec_of("ofa", Architecture(**fields)))


def test_a_part_of_the_stages_keeps_their_blocks_sizes() -> None:
    shape = Shape((8, 16), ((0, 1), (0,)), (3, 5, 7), (1.0, 2.0, 3.0))
    assert shape.first(1) == Shape((8,), ((0, 1),), (3, 5), (1.0, 2.0))
