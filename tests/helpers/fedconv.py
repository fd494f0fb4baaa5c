"""A world for FedConv: a global model that has learned a little, a proxy set, and a maker of examples."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch

from diastole.models.compressor import Proxy, Return
from diastole.models.methods.fedconv.conv import ConvCompressor, ConvConfig
from diastole.models.methods.registry import build
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.family import initial_state
from diastole.models.spec import SubModelSpec
from diastole.models.state import State, state_of
from diastole.models.training import Examples, TrainConfig, fit

MODEL = ModelConfig("cnn", (1, 8, 8), classes=4, widths=(8, 16), group=2)
TRAINING = TrainConfig(epochs=2, batch_size=16, learning_rate=0.05)
WIDTHS = (1.0, 0.5, 0.25)
STILL = ConvConfig(epochs=0, weight_epochs=0)


@dataclass(frozen=True)
class World:
    state: State
    proxy: Proxy
    examples: Callable[[int, int], Examples]
    prepared: dict[object, ConvCompressor] = field(default_factory=dict)


def make_world(separable: Callable[..., Examples]) -> World:
    def examples(count: int, seed: int) -> Examples:
        return separable(MODEL, count, seed, noise=2.0)

    module = build(MODEL)
    module.load_state_dict(initial_state(MODEL, 0))
    fit(module, examples(64, 1), replace(TRAINING, epochs=3, learning_rate=0.02), torch.Generator().manual_seed(0))
    return World(state_of(module), Proxy(examples(64, 2), examples(48, 3)), examples)


def trained(compressor: ConvCompressor, spec: SubModelSpec, examples: Examples) -> Return:
    module = build(MODEL, spec)
    module.load_state_dict(compressor.compress(spec))
    fit(module, examples, TRAINING, torch.Generator().manual_seed(0))
    return Return(spec, state_of(module), len(examples))


def same(left: State, right: State) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
