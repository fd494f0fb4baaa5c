from collections.abc import Iterator

import pytest
import torch
from pydantic import ValidationError

from diastole.models.methods.registry import build, make_method
from diastole.models.moment import Moment
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.family import initial_state
from diastole.models.proxy import Proxy
from diastole.models.scoring import evaluate
from diastole.models.seeds import reference_plan
from diastole.models.state import State
from diastole.models.training import Examples, TrainConfig
from diastole.server.proxy import ProxyConfig

MODEL = ModelConfig("cnn", (1, 8, 8), classes=3, widths=(8,))
CONFIG = ProxyConfig(epochs=3, batch_size=8, learning_rate=0.05)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with reference_plan():
        yield


@pytest.fixture(scope="module")
def examples() -> Examples:
    draws = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (40,), generator=draws)
    centres = torch.randn(3, 1, 8, 8, generator=draws)
    return Examples(2 * centres[labels] + 0.5 * torch.randn(40, 1, 8, 8, generator=draws), labels)


def learn(state: State, examples: Examples, config: ProxyConfig, seed: int) -> State:
    method = make_method("width", MODEL, [1.0, 0.5], TrainConfig())
    return method.learn(state, Proxy(examples, Examples.empty()), config.training(TrainConfig()), Moment(seed=seed))


def same(left: State, right: State) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def loss(state: State, examples: Examples) -> float:
    module = build(MODEL)
    module.load_state_dict(state)
    return evaluate(module, examples).loss


def test_training_lowers_the_loss_and_leaves_the_state_it_was_given(examples: Examples) -> None:
    state = initial_state(MODEL, 0)
    after = learn(state, examples, CONFIG, 1)
    assert loss(after, examples) < 0.5 * loss(state, examples)
    assert same(state, initial_state(MODEL, 0))
    assert not any(tensor.requires_grad for tensor in after.values())


def test_the_seed_and_nothing_else_decides(examples: Examples) -> None:
    state = initial_state(MODEL, 0)
    torch.manual_seed(1)
    one = learn(state, examples, CONFIG, 1)
    torch.manual_seed(2)
    with torch.no_grad():
        again = learn(state, examples, CONFIG, 1)
    assert same(one, again)
    assert not same(one, learn(state, examples, CONFIG, 2))


def test_one_epoch_is_sgd_with_momentum_over_the_batches(examples: Examples) -> None:
    # One batch an epoch, so that the order of the examples does not matter.
    config = ProxyConfig(epochs=3, batch_size=40, learning_rate=0.1, momentum=0.5)
    state = initial_state(MODEL, 0)
    after = learn(state, examples, config, 1)
    module = build(MODEL)
    module.load_state_dict(state)
    speed = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    for _ in range(3):
        module.zero_grad()
        torch.nn.functional.cross_entropy(module(examples.x), examples.y).backward()
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                speed[name] = 0.5 * speed[name] + parameter.grad
                parameter -= 0.1 * speed[name]
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(after[name], parameter.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "wrong",
    [{"epochs": -1}, {"batch_size": 0}, {"learning_rate": 0}, {"learning_rate": float("inf")}, {"momentum": 1}],
)
def test_a_configuration_out_of_bounds_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        ProxyConfig(**wrong)
