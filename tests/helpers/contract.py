"""Every method on models that it can be used with, prepared for a round."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from updates import update

from diastole.models.accumulator import Accumulator
from diastole.models.method import Method, Size, Weight
from diastole.models.methods.bases.index import Indexed
from diastole.models.methods.registry import make_method
from diastole.models.moment import Moment
from diastole.models.networks.config import ModelConfig
from diastole.models.proxy import Proxy
from diastole.models.spec import SubModelSpec
from diastole.models.state import State
from diastole.models.task import Update
from diastole.models.training import Examples, TrainConfig

TRAINING = TrainConfig(epochs=4, batch_size=16, learning_rate=0.02)
WIDTHS = (1.0, 0.5, 0.25)
MOMENT = Moment(seed=5)


@dataclass(frozen=True)
class Row:
    """What is particular to one method.

    Attributes:
        options: of the method, for a test that has no time.
        models: it is run with, by name.
        slow: likewise, by `make test-all` alone; others take the same ways through the method.
        weighs: each update by its examples.
        widths: it offers a size for each width, and no other.
        indexed: its sub-models are selections of global coordinates.
        own: options on one model alone, by its name.

    """

    models: tuple[str, ...]
    slow: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    weighs: bool = True
    widths: bool = False
    indexed: bool = True
    own: dict[str, dict[str, Any]] = field(default_factory=dict)


CONVNEXTS = ("convnext", "convnext-partial", "convnext-inception")

ROWS = {
    "diastole": Row(
        ("custom",),
        ("cnn-2d", "cnn-1d", "resnet", "mobilenet", "simple-cnn", "transformer", "vit", "vit-fused", *CONVNEXTS),
        widths=True,
    ),
    "width": Row(
        ("transformer", "convnext-inception"),
        (
            "cnn-2d",
            "cnn-1d",
            "resnet",
            "mobilenet",
            "custom",
            "simple-cnn",
            "vit",
            "vit-fused",
            "convnext",
            "convnext-partial",
        ),
        widths=True,
    ),
    "conv": Row(
        ("cnn-2d",),
        ("cnn-1d", "resnet", "custom", *CONVNEXTS),
        {"epochs": 2, "weight_epochs": 2},
        weighs=False,
        widths=True,
        indexed=False,
    ),
    "fjord": Row(("cnn-2d",), ("cnn-1d", "resnet", "custom", *CONVNEXTS), widths=True),
    "fedrolex": Row(("resnet",), ("cnn-2d", "cnn-1d", "custom", "vit", "transformer", *CONVNEXTS), widths=True),
    "splitmix": Row(("cnn-2d",), ("cnn-1d", "resnet", "transformer", *CONVNEXTS)),
    "snnet": Row(
        ("cnn-1d",),
        ("resnet-deep", "vit", "transformer", "convnext-inception"),
        {"initialise": "proxy", "warmup": 0},
        own={"resnet-deep": {"depths": [[1, 1], [1, 2], [2, 2]]}},
    ),
    "snnetv2": Row(("vit",), ("resnet", "transformer", *CONVNEXTS), {"initialise": "none", "warmup": 0, "rank": 2}),
    "fiarse": Row(("resnet",), ("cnn-2d", "cnn-1d", "custom", "mobilenet", *CONVNEXTS)),
    "depthfl": Row(("cnn-2d",), ("cnn-1d", "resnet", "transformer", "custom-deep", *CONVNEXTS)),
    "inclusivefl": Row(("custom-deep",), ("cnn-2d", "cnn-1d", "resnet", "resnet-deep", *CONVNEXTS)),
    "scalefl": Row(("custom-deep",), ("cnn-2d", "cnn-1d", "resnet", "vit", "transformer", *CONVNEXTS)),
    "nefl": Row(("resnet-deep",), ("cnn-2d", "cnn-1d", "resnet", "mobilenet", "vit", "custom-deep", *CONVNEXTS)),
    "adaptivefl": Row(("cnn-2d",), ("cnn-1d", "resnet", *CONVNEXTS)),
    "ofa": Row(("mobilenet",), ("cnn-1d", "resnet"), {"pool": 4}),
    "superfednas": Row(("cnn-2d",), ("mobilenet",), {"pool": 4}, weighs=False),
    "deps": Row(("resnet",), ("mobilenet", "transformer", "convnext"), {"pool": 4}),
}

MODELS = {
    "cnn-2d": ModelConfig("cnn", (1, 8, 8), classes=4, widths=(8, 16), group=2),
    "cnn-1d": ModelConfig("cnn", (3, 16), classes=3, widths=(8, 12), group=2),
    "simple-cnn": ModelConfig("simple-cnn", (1, 8, 8), classes=4, widths=(8, 8, 16), group=2),
    "resnet": ModelConfig("resnet", (3, 8, 8), classes=4, widths=(8, 16), blocks=(1, 1), group=2),
    "vit": ModelConfig("vit", (1, 8, 8), classes=4, widths=(16,), blocks=(2,), group=4),
    "transformer": ModelConfig("transformer", (3, 8), classes=3, widths=(16, 16), blocks=(1, 1), group=4),
    "vit-fused": ModelConfig("vit", (1, 8, 8), 4, (16,), (2,), group=4, attention="fused"),
    "custom": ModelConfig("custom", (3, 8, 8), classes=4, group=2, factory="brought:Dense"),
    "custom-deep": ModelConfig(
        "custom",
        (3, 8, 8),
        classes=4,
        group=2,
        factory="brought:Joined",
        stages=(("blocks.join1", "blocks.refine1"), ("blocks.join2", "blocks.refine2")),
    ),
    "resnet-deep": ModelConfig("resnet", (3, 8, 8), classes=4, widths=(8, 16), blocks=(2, 2), group=2),
    "mobilenet": ModelConfig(
        "mobilenet", (3, 8, 8), classes=4, widths=(8, 16), blocks=(2, 1), group=2, kernel=7, expand=2.0
    ),
    **{
        name: ModelConfig("convnext", (3, 8, 8), 4, (32, 36), (1, 2), group=1, kernel=3, expand=2.0, mixer=mixer)
        for name, mixer in zip(CONVNEXTS, ("depthwise", "partial", "inception"), strict=True)
    },
}

CASES = [
    pytest.param((name, model), id=f"{name}-{model}", marks=[pytest.mark.slow] if model in row.slow else [])
    for name, row in ROWS.items()
    for model in (*row.models, *row.slow)
]


def make(name: str, model: str, widths: Sequence[float] = WIDTHS) -> Method:
    row = ROWS[name]
    return make_method(name, MODELS[model], widths, TRAINING, {**row.options, **row.own.get(model, {})})


@dataclass(frozen=True)
class Case:
    """One method on one model, as it is prepared for a round; nobody may change it.

    Attributes:
        before: the global state before the server prepared the round.
        state: the one that the round starts from.
        apart: what another process would make, of which nothing is asked but copies.

    """

    name: str
    network: str
    proxy: Proxy
    before: State
    method: Method
    state: State
    apart: Method
    _weights: dict[SubModelSpec, set[str]] = field(default_factory=dict)

    @property
    def row(self) -> Row:
        return ROWS[self.name]

    @property
    def model(self) -> ModelConfig:
        return MODELS[self.network]

    @property
    def sizes(self) -> list[Size]:
        """Up to three of the sizes, the smallest and the largest among them."""
        sizes = self.method.offers()
        return [sizes[k * (len(sizes) - 1) // (min(3, len(sizes)) - 1)] for k in range(min(3, len(sizes)))]

    def again(self) -> Method:
        """Return a copy, which may be changed."""
        return deepcopy(self.method)

    def new(self) -> Method:
        """Return one that has not seen a round, which may be changed."""
        return deepcopy(self.apart)

    def trained(self, spec: SubModelSpec, seed: int, scale: float = 0.1) -> State:
        """Return what a device might send back: the sub-model it got, and random changes of this size."""
        draws, weights = torch.Generator().manual_seed(seed), self.weights(spec)
        return {
            name: tensor + scale * torch.randn(tensor.shape, generator=draws) if name in weights else tensor
            for name, tensor in self.method.compress(spec).items()
        }

    def updates(self, scale: float = 0.1) -> list[Update]:
        """Return four devices' updates, in the order of their names."""
        specs = [self.sizes[number % len(self.sizes)].spec for number in (0, 1, 2, 1)]
        return [
            update(spec, self.trained(spec, k, scale), examples, f"device-{k}")
            for k, (spec, examples) in enumerate(zip(specs, (10, 20, 5, 40), strict=True))
        ]

    def weights(self, spec: SubModelSpec) -> set[str]:
        """Return the names of what a device trains or holds of the global model; a mask, say, is neither."""
        if spec not in self._weights:
            held = set(self.method.slots(spec)) if isinstance(self.method, Indexed) else set()
            named = self.method.module(spec).named_parameters()
            self._weights[spec] = {name for name, parameter in named if parameter.requires_grad or name in held}
        return self._weights[spec]


def case_of(name: str, network: str, separable: Callable[..., Examples]) -> Case:
    """Prepare a method on a model for a round."""
    proxy = Proxy(separable(MODELS[network], 32, 1), separable(MODELS[network], 16, 2))
    method, apart = make(name, network), make(name, network)
    before = perturbed(apart, 0)
    return Case(name, network, proxy, before, method, method.prepare(before, proxy, MOMENT), apart)


def perturbed(method: Method, seed: int) -> State:
    """Return a global state in which no tensor is constant, as biases and scales are at first."""
    draws, initial = torch.Generator().manual_seed(seed), deepcopy(method).initial(seed)
    return {name: tensor + 0.05 * torch.randn(tensor.shape, generator=draws) for name, tensor in initial.items()}


def clone(state: State) -> State:
    return {name: tensor.clone() for name, tensor in state.items()}


def same(left: State, right: State) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def mean(method: Method, state: State, weighed: Sequence[tuple[Update, Weight]]) -> State:
    """Return the mean changes of a round."""
    accumulator = Accumulator(state)
    for item, weight in weighed:
        accumulator.fold(method.dilate(item.state, item.spec), weight)
    return accumulator.mean()[0]
