"""Server optimisers against Reddi et al., ICLR 2021, algorithm 2, written out for one scalar at a time."""

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from diastole.server.optimisers import ServerOptimiser, ServerOptimiserConfig

NAMES = ["fedavg", "fedavgm", "fedadam", "fedyogi"]


@dataclass
class Scalar:
    """One coordinate: x, and the moments m and v, with v at tau^2 as the paper's lower bound allows."""

    config: ServerOptimiserConfig
    x: float
    m: float = 0.0
    v: float = 0.0

    def __post_init__(self) -> None:
        self.v = self.config.tau**2

    def step(self, delta: float) -> float:
        """Return the new x in float64; `x` itself is then stored as float32, as the global model is."""
        c = self.config
        if c.name == "fedavg":
            move = delta
        elif c.name == "fedavgm":
            self.m = c.beta1 * self.m + delta
            move = self.m
        else:
            self.m = c.beta1 * self.m + (1 - c.beta1) * delta
            if c.name == "fedadam":
                self.v = c.beta2 * self.v + (1 - c.beta2) * delta**2
            else:
                sign = (self.v > delta**2) - (self.v < delta**2)
                self.v = self.v - (1 - c.beta2) * delta**2 * sign
            move = self.m / (math.sqrt(self.v) + c.tau)
        return self.x + c.learning_rate * move


def unit(value: float) -> float:
    """Return the distance of float32 numbers around `value`."""
    return max(abs(value) * 2.0**-23, 2.0**-149)


@pytest.mark.parametrize("name", NAMES)
@given(
    seed=st.integers(0, 2**32),
    learning_rate=st.floats(0.01, 2),
    beta1=st.floats(0, 0.99),
    beta2=st.floats(0, 0.999),
    tau=st.sampled_from([1e-3, 1e-1, 1.0]),
    scale=st.sampled_from([1e-6, 1e-2, 10.0]),
)
@settings(deadline=None, max_examples=15)
def test_several_steps_are_the_papers(
    name: str, seed: int, learning_rate: float, beta1: float, beta2: float, tau: float, scale: float
) -> None:
    config = ServerOptimiserConfig(name, learning_rate, beta1, beta2, tau)
    optimiser, draws = ServerOptimiser(config), torch.Generator().manual_seed(seed)
    state = {"w": torch.randn(2, 3, generator=draws), "b": torch.randn((), generator=draws)}
    scalars = {name: [Scalar(config, x) for x in tensor.flatten().tolist()] for name, tensor in state.items()}
    for _ in range(5):
        delta = {n: scale * torch.randn(t.shape, generator=draws, dtype=torch.float64) for n, t in state.items()}
        covered = {n: torch.rand(t.shape, generator=draws) < 0.6 for n, t in state.items()}
        state = optimiser.step(state, delta, covered)
        for key, tensor in state.items():
            columns = (tensor.flatten().tolist(), delta[key].flatten().tolist(), covered[key].flatten().tolist())
            for got, change, on, scalar in zip(*columns, scalars[key], strict=True):
                if on:
                    # Computed in float64, then rounded once; the last bit may fall to either side.
                    exact = scalar.step(change)
                    assert abs(got - exact) <= unit(exact)
                    scalar.x = got
                else:
                    assert got == scalar.x


def moments_after(name: str, deltas: list[float], masks: list[bool]) -> list[float]:
    optimiser = ServerOptimiser(ServerOptimiserConfig(name))
    state, path = {"w": torch.tensor([0.5])}, []
    for delta, mask in zip(deltas, masks, strict=True):
        state = optimiser.step(state, {"w": torch.tensor([delta]).double()}, {"w": torch.tensor([mask])})
        path.append(state["w"].item())
    return path


@pytest.mark.parametrize("name", NAMES)
def test_a_round_without_coverage_is_as_if_it_had_not_been(name: str) -> None:
    rounds = moments_after(name, [0.1, 99.0, math.nan, -0.05], [True, False, False, True])
    assert rounds[0] == rounds[1] == rounds[2]
    assert [rounds[0], rounds[3]] == moments_after(name, [0.1, -0.05], [True, True])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_a_step_keeps_dtypes_and_leaves_what_it_is_given(name: str, dtype: torch.dtype) -> None:
    state = {"w": torch.ones(3, dtype=dtype)}
    delta = {"w": torch.tensor([0.5, -0.5, 0.25]).double()}
    covered = {"w": torch.tensor([True, True, False])}
    kept = [{"w": item["w"].clone()} for item in (state, delta, covered)]
    optimiser = ServerOptimiser(ServerOptimiserConfig(name))
    for _ in range(2):
        after = optimiser.step(state, delta, covered)
    assert after["w"].dtype == dtype
    assert after["w"][2] == 1
    assert (after["w"][:2] != 1).all()
    assert all(torch.equal(now["w"], then["w"]) for now, then in zip((state, delta, covered), kept, strict=True))


def test_fedavg_at_rate_one_is_the_mean_of_the_devices() -> None:
    state: dict[str, Tensor] = {"w": torch.tensor([1.0, 2.0])}
    mean = torch.tensor([1.25, -3.0])
    delta = {"w": mean.double() - state["w"].double()}
    after = ServerOptimiser(ServerOptimiserConfig()).step(state, delta, {"w": torch.tensor([True, True])})
    assert torch.equal(after["w"], mean)


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "fedsgd"},
        {"learning_rate": 0},
        {"learning_rate": math.nan},
        {"learning_rate": math.inf},
        {"beta1": 1},
        {"beta2": -0.1},
        {"tau": 0},
        {"gamma": 1},
    ],
)
def test_a_configuration_out_of_bounds_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ServerOptimiserConfig(**wrong)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NAMES)
def test_small_steps_of_a_state_in_16_bits_add_up_as_in_float32(name: str, dtype: torch.dtype) -> None:
    config = ServerOptimiserConfig(name=name, learning_rate=1e-3 if name in ("fedadam", "fedyogi") else 1.0)
    draws = torch.Generator().manual_seed(0)
    start = torch.randn(50, generator=draws).to(dtype)
    small, large = ServerOptimiser(config), ServerOptimiser(config)
    state, reference = {"w": start}, {"w": start.float()}
    for number in range(100):
        delta = {"w": 0.00195 + 1e-4 * torch.randn(50, generator=draws, dtype=torch.float64)}
        covered = {"w": torch.rand(50, generator=draws) < 0.9}
        covered["w"][:5] = False
        if number == 50:
            resumed = ServerOptimiser(config)
            resumed.resume(small.memory())
            small = resumed
        state, reference = small.step(state, delta, covered), large.step(reference, delta, covered)
    assert state["w"].dtype == dtype
    assert torch.equal(state["w"][:5], start[:5])
    # Half of the distance of two neighbours is all that storing takes away.
    torch.testing.assert_close(state["w"].float(), reference["w"].to(dtype).float(), rtol=2**-7, atol=1e-4)
    assert (state["w"].float() - start.float())[5:].abs().min() > 0.05


def test_a_step_of_float32_keeps_no_rest() -> None:
    optimiser = ServerOptimiser(ServerOptimiserConfig())
    optimiser.step({"w": torch.ones(2)}, {"w": torch.full((2,), 0.1).double()}, {"w": torch.ones(2, dtype=torch.bool)})
    assert not optimiser.memory()
