"""Running a module at less than its width: against plain networks that are given copies."""

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diastole.models.dropout import draw_from
from diastole.models.errors import SpecError
from diastole.models.methods.bases.nested import MOST_WIDTHS, Nested, inside
from diastole.models.methods.registry import build
from diastole.models.methods.widths.width import spec_of
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.family import initial_state
from diastole.models.state import State

MODELS = {
    "cnn-2d": ModelConfig("cnn", (1, 9, 8), classes=4, widths=(8, 16), group=2),
    "cnn-1d": ModelConfig("cnn", (3, 16), classes=3, widths=(8, 12), group=2),
    "resnet": ModelConfig("resnet", (3, 8, 8), classes=4, widths=(8, 16), blocks=(2, 1), group=2),
}
WIDTHS = (0.25, 0.5, 0.75)


@pytest.fixture(params=MODELS, scope="module")
def model(request: pytest.FixtureRequest) -> ModelConfig:
    return MODELS[request.param]


def examples(model: ModelConfig) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(3)
    return torch.randn(6, *model.input_shape, generator=draws), torch.randint(model.classes, (6,), generator=draws)


def plain(model: ModelConfig, state: State, width: float) -> nn.Module:
    """Return the plain network of a width with copies of the first entries of the tensors of `state`."""
    module = build(model, spec_of(width))
    module.load_state_dict(
        {n: state[n][tuple(slice(0, size) for size in p.shape)].clone() for n, p in module.named_parameters()}
    )
    return module


def nested(model: ModelConfig, state: State, width: float = 1.0) -> Nested:
    module = Nested(model, width, [w for w in WIDTHS if w <= width])
    module.load_state_dict({n: state[n][tuple(map(slice, p.shape))] for n, p in module.named_parameters()})
    return module


@pytest.mark.parametrize("width", [1.0, 0.75])
def test_every_width_is_the_plain_network_of_the_first_channels(model: ModelConfig, random_state, width: float) -> None:
    state, (x, _) = random_state(model), examples(model)
    module = nested(model, state, width)
    for inner in (*(w for w in WIDTHS if w <= width), width):
        torch.testing.assert_close(module.at(x, inner), plain(model, state, inner)(x), rtol=1e-5, atol=1e-6)
    assert torch.equal(module(x), module.at(x, width))


def test_gradients_go_to_the_first_channels_and_add_up(model: ModelConfig, random_state) -> None:
    state, (x, y) = random_state(model), examples(model)
    module = nested(model, state)
    expected = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    total = torch.zeros(())
    for width in (0.25, 0.5):
        total = total + F.cross_entropy(module.at(x, width), y)
        small = plain(model, state, width)
        F.cross_entropy(small(x), y).backward()
        for name, parameter in small.named_parameters():
            expected[name][tuple(map(slice, parameter.shape))] += parameter.grad
    total.backward()
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-6)


def test_it_has_the_parameters_of_the_plain_network_and_no_more(model: ModelConfig) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        module = Nested(model, 1.0, WIDTHS)
    state = initial_state(model, 5)
    assert [name for name, _ in module.named_parameters()] == list(state)
    assert all(torch.equal(parameter, state[name]) for name, parameter in module.named_parameters())


def test_nothing_is_copied(model: ModelConfig, random_state, monkeypatch: pytest.MonkeyPatch) -> None:
    module = nested(model, random_state(model))
    mine = {name: parameter.untyped_storage().data_ptr() for name, parameter in module.named_parameters()}
    seen: list[dict[str, int]] = []

    def spy(net: nn.Module, views: dict[str, Tensor], inputs: tuple[Tensor]) -> Tensor:
        seen.append({name: view.untyped_storage().data_ptr() for name, view in views.items()})
        return torch.func.functional_call(net, views, inputs)

    monkeypatch.setattr("diastole.models.methods.bases.nested.functional_call", spy)
    module.at(examples(model)[0], 0.5)
    assert seen == [mine]


def test_tensors_that_are_assigned_or_copied_later_are_followed(model: ModelConfig, random_state) -> None:
    state, (x, _) = random_state(model, 1), examples(model)
    with torch.device("meta"):
        module = Nested(model, 1.0, WIDTHS)
    module.load_state_dict({name: tensor.clone() for name, tensor in state.items()}, assign=True)
    other = deepcopy(module)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.5)
    for width in (0.5, 1.0):
        torch.testing.assert_close(module.at(x, width), plain(model, state, width)(x), rtol=1e-5, atol=1e-6)
        halved = plain(model, {name: 0.5 * tensor for name, tensor in state.items()}, width)
        torch.testing.assert_close(other.at(x, width), halved(x), rtol=1e-5, atol=1e-6)


def test_a_width_that_is_not_inside_is_named(model: ModelConfig) -> None:
    with pytest.raises(SpecError, match=r"nested widths \[0.75\] .*width 0.5"):
        Nested(model, 0.5, (0.25, 0.75))


def test_narrower_widths_drop_activations_too() -> None:
    model = ModelConfig("simple-cnn", (1, 8, 8), classes=4, widths=(8, 8, 16), group=2)
    module, x = Nested(model, 1.0, (0.5,)), torch.randn(3, 1, 8, 8)
    draw_from(module, torch.Generator().manual_seed(1))
    assert torch.equal(module.eval().at(x, 0.5), module.at(x, 0.5))
    module.train()
    assert not torch.equal(module.at(x, 0.5), module.at(x, 0.5))


def test_the_widths_inside_a_width_are_those_on_offer_up_to_it() -> None:
    assert inside(0.5, WIDTHS) == (0.25, 0.5)
    assert inside(0.6, WIDTHS) == (0.25, 0.5, 0.6)
    assert inside(1.0, WIDTHS) == (*WIDTHS, 1.0)
    with pytest.raises(SpecError, match=f"{MOST_WIDTHS + 1} widths inside width 1"):
        inside(1.0, [k / (MOST_WIDTHS + 1) for k in range(1, MOST_WIDTHS + 2)])
