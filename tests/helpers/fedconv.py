"""A world for FedConv: a global model that has learned a little, a proxy set, and a maker of examples."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from updates import update

from diastole.models.method import Weight
from diastole.models.methods.fedconv.conv import ConvConfig, ConvMethod
from diastole.models.methods.registry import build
from diastole.models.moment import Moment
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.family import initial_state
from diastole.models.proxy import Proxy
from diastole.models.spec import SubModelSpec
from diastole.models.state import State, state_of
from diastole.models.task import Update
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
    prepared: dict[object, ConvMethod] = field(default_factory=dict)


def make_world(separable: Callable[..., Examples]) -> World:
    def examples(count: int, seed: int) -> Examples:
        return separable(MODEL, count, seed, noise=2.0)

    module = build(MODEL)
    module.load_state_dict(initial_state(MODEL, 0))
    fit(module, examples(64, 1), replace(TRAINING, epochs=3, learning_rate=0.02), torch.Generator().manual_seed(0))
    return World(state_of(module), Proxy(examples(64, 2), examples(48, 3)), examples)


def trained(method: ConvMethod, spec: SubModelSpec, examples: Examples) -> Update:
    module = build(MODEL, spec)
    module.load_state_dict(method.compress(spec))
    fit(module, examples, TRAINING, torch.Generator().manual_seed(0))
    return update(spec, state_of(module), len(examples))


def weights_of(method: ConvMethod, updates: Sequence[Update], seed: int) -> list[Weight]:
    """Return the weights of a round's updates, which come back as they are and in their order."""
    weighed = list(method.weigh(updates, Moment(seed=seed)))
    assert all(item is other for (item, _), other in zip(weighed, updates, strict=True))
    return [weight for _, weight in weighed]


def same(left: State, right: State) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
