"""What the tests of `diastole.models` share; fixtures, because test modules cannot import each other."""

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from diastole.models.coordinates import Contribution, Region, Scalars, Tiles
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.custom import own as custom
from diastole.models.networks.family import initial_state
from diastole.models.seeds import reference_plan
from diastole.models.state import State
from diastole.models.training import Examples

Separable = Callable[..., Examples]
Densify = Callable[[Contribution, State], dict[str, np.ndarray]]
Coordinates = Callable[[Region | Scalars | Tiles, torch.Size], list[tuple[int, ...]]]


for _name in (
    "Dense",
    "Mobile",
    "UNet",
    "Inception",
    "Perceptron",
    "OnInput",
    "Modern",
    "Joined",
    "Perceptrons",
    "Vectors",
    "TwoArguments",
):
    custom.allow(f"brought:{_name}")


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Run everything here on one thread: bits do not depend on the machine, and small tensors are faster."""
    with reference_plan():
        yield


@pytest.fixture(scope="session")
def separable() -> Separable:
    """Return a maker of examples that a linear model tells apart: one far centre a class, and some noise."""

    def make(model: ModelConfig, count: int, seed: int = 0, noise: float = 0.5) -> Examples:
        draws = torch.Generator().manual_seed(seed)
        centres = torch.randn(model.classes, *model.input_shape, generator=torch.Generator().manual_seed(99))
        labels = torch.randint(model.classes, (count,), generator=draws)
        blur = torch.randn(count, *model.input_shape, generator=draws)
        return Examples(2 * centres[labels] + noise * blur, labels)

    return make


@pytest.fixture(scope="session")
def random_state() -> Callable[..., State]:
    """Return a maker of global states in which no tensor is constant, as biases and scales are at first."""

    def make(model: ModelConfig, seed: int = 0) -> State:
        draws = torch.Generator().manual_seed(seed)
        return {
            name: tensor + 0.05 * torch.randn(tensor.shape, generator=draws)
            for name, tensor in initial_state(model, seed).items()
        }

    return make


def _coordinates(region: Region | Scalars | Tiles, shape: torch.Size) -> list[tuple[int, ...]]:
    if isinstance(region, Tiles):
        return [place for each in region.regions for place in _coordinates(each, shape)]
    if isinstance(region, Scalars):
        everywhere = list(itertools.product(*map(range, shape)))
        return [everywhere[place] for place in region.index.tolist()]
    axes = [
        axis.tolist() if isinstance(axis, Tensor) else list(range(*axis.indices(size)))
        for axis, size in zip(region.axes, shape, strict=True)
    ]
    return list(itertools.product(*axes))


@pytest.fixture(scope="session")
def coordinates() -> Coordinates:
    """Return a function that lists coordinates, in the order of a patch's flattened values, by plain loops."""
    return _coordinates


@pytest.fixture(scope="session")
def densify() -> Densify:
    """Return a function that writes a contribution out: float64 in global shapes, NaN where nothing is said."""

    def write_out(contribution: Contribution, state: State) -> dict[str, np.ndarray]:
        dense = {name: np.full(tuple(tensor.shape), np.nan) for name, tensor in state.items()}
        for name, patch in contribution.items():
            where = _coordinates(patch.region, state[name].shape)
            for index, value in zip(where, patch.values.flatten().tolist(), strict=True):
                dense[name][index] = value
        return dense

    return write_out
