"""The fast plan computes what the reference does."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from diastole.client.choices import ExecutionPlan
from diastole.client.plans.pools import accelerate
from diastole.client.training import train
from diastole.models.methods.widths.width import spec_of
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.family import initial_state
from diastole.models.state import State
from diastole.models.task import Task, Update
from diastole.models.training import Examples, TrainConfig


def trained(
    model: ModelConfig,
    state: State,
    examples: Examples,
    training: TrainConfig,
    seed: int = 1,
    plan: ExecutionPlan = "reference",
) -> Update:
    return train(model, Task("task", 1, "device", spec_of(1.0), training, seed), state, examples, plan)


def fast_pool() -> nn.Module:
    holder = nn.Sequential(nn.MaxPool2d(2))
    accelerate(holder)
    assert not isinstance(holder[0], nn.MaxPool2d)
    return holder


@given(st.integers(1, 3), st.integers(1, 4), st.integers(2, 9), st.integers(2, 9), st.integers(0, 2**31))
def test_pooling_and_its_gradient_are_those_of_torch(n: int, channels: int, height: int, width: int, seed: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    x = torch.randn(n, channels, height, width, generator=draws, dtype=torch.float64)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    mine, expected = fast_pool()(ours), F.max_pool2d(theirs, 2)
    assert torch.equal(mine, expected)
    gradient = torch.randn(expected.shape, generator=draws, dtype=torch.float64)
    mine.backward(gradient)
    expected.backward(gradient)
    assert ours.grad is not None
    assert theirs.grad is not None
    assert torch.equal(ours.grad, theirs.grad)


def test_equal_values_share_no_gradient() -> None:
    x = torch.zeros(1, 1, 4, 4, requires_grad=True)
    fast_pool()(x).backward(torch.full((1, 1, 2, 2), 3.0))
    assert x.grad is not None
    assert sorted(x.grad.flatten().tolist()) == [0.0] * 12 + [3.0] * 4


@pytest.mark.parametrize("pool", [nn.MaxPool2d(3), nn.MaxPool2d(2, 1), nn.MaxPool2d(2, padding=1), nn.MaxPool1d(2)])
def test_other_pools_are_left_alone(pool: nn.Module) -> None:
    holder = nn.Sequential(pool)
    accelerate(holder)
    assert holder[0] is pool


@pytest.mark.parametrize(
    "model",
    [
        ModelConfig(name="cnn", input_shape=(1, 14, 14), classes=4, widths=(8, 16)),
        ModelConfig(name="cnn", input_shape=(3, 40), classes=4, widths=(8, 16)),
        ModelConfig(name="resnet", input_shape=(3, 8, 8), classes=4, widths=(8, 16), blocks=(1, 1)),
    ],
)
def test_training_agrees_within_float_tolerance(model: ModelConfig) -> None:
    draws = torch.Generator().manual_seed(0)
    examples = Examples(torch.randn(40, *model.input_shape, generator=draws), torch.arange(40) % 4)
    state, training = initial_state(model, 0), TrainConfig(epochs=2, batch_size=16)
    reference = trained(model, state, examples, training)
    fast = trained(model, state, examples, training, plan="fast")
    for name, tensor in reference.state.items():
        torch.testing.assert_close(fast.state[name], tensor, rtol=1e-4, atol=1e-5)


def test_one_training_leaves_the_last_ones_result_alone() -> None:
    model = ModelConfig(name="cnn", input_shape=(1, 8, 8), classes=4, widths=(4,))
    examples = Examples(torch.randn(8, 1, 8, 8), torch.arange(8) % 4)
    first = trained(model, initial_state(model, 0), examples, TrainConfig(), 1)
    kept = {name: tensor.clone() for name, tensor in first.state.items()}
    trained(model, initial_state(model, 1), examples, TrainConfig(), 2)
    assert all(torch.equal(first.state[name], kept[name]) for name in kept)
