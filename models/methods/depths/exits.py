"""Early exits: a classifier after each stage of a network."""

from collections.abc import Sequence
from itertools import zip_longest
from math import prod
from typing import Literal

import torch
from pydantic.dataclasses import dataclass as validated
from torch import Tensor, nn
from torch.nn import functional as F

from diastole.models.channels import Axis, Joined, Layout
from diastole.models.errors import ModelError, SpecError
from diastole.models.methods.bases.bounds import Count, Share
from diastole.models.methods.bases.sliced import Sliced
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.family import depth, layout, maps, narrowed, network, parts, whole
from diastole.models.networks.registry import Map
from diastole.models.networks.shape import Shape
from diastole.models.spec import STRICT

POSITIONS = 4
"""Positions along each axis that an exit pools a map to."""

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
POOLINGS = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)


@validated(frozen=True, slots=True, config=STRICT)
class Stages:
    """The first stages of the global model, each with an exit.

    Attributes:
        width: share of the channels of every layer.
        stages: how many; 0 for all.

    """

    width: Share = 1.0
    stages: Count = 0


class Exit(nn.Module):
    """Bottleneck and head: pooling to `POSITIONS`, 1-wide convolution, GroupNorm, ReLU, linear classifier.

    Takes a `Map` of any number of axes, gives outputs `[n, *gives]`. The papers use strided convolutions, which cost a
    shallow sub-model as much as its own stages. An exit that pools first costs next to nothing. It still has
    `POSITIONS` places along each axis, so it can use where in the map a feature is.

    If the model answers every place of a map, an exit does not pool: its head is a 1-wide convolution, whose answers
    are interpolated to the height and width of the outputs. If it answers every position of a sequence with the classes
    on the last axis, as language models do, the exit is applied to each position by itself, so that none of them sees a
    later one.
    """

    def __init__(self, given: Map, model: ModelConfig) -> None:
        super().__init__()
        if given.axes > len(POOLINGS):
            raise ModelError(f"an exit can pool at most {len(POOLINGS)} axes, and a stage gives {given.axes}")
        self.at, self.gives, self.answers = given.at, model.gives, answers(given, model)
        channels, axes = given.channels, 0 if self.answers == "positions" else given.axes
        # A custom model's map may have a few channels more than whole groups.
        inside = max(1, channels // model.group) * model.group
        self.pool: nn.Module = nn.Identity()
        self.bottleneck: nn.Module = nn.Linear(channels, inside, bias=False)
        self.head: nn.Module
        if axes:
            self.bottleneck = CONVOLUTIONS[axes - 1](channels, inside, 1, bias=False)
        self.norm = nn.GroupNorm(inside // model.group, inside)
        if self.answers == "places":
            self.head = CONVOLUTIONS[axes - 1](inside, 1 if len(self.gives) == axes else self.gives[0], 1)
        elif self.answers == "positions":
            self.head = nn.Linear(inside, self.gives[1])
        else:
            self.pool = POOLINGS[axes - 1](POSITIONS) if axes else self.pool
            self.head = nn.Linear(inside * POSITIONS**axes, prod(self.gives))

    def forward(self, x: Tensor) -> Tensor:
        """Return outputs `[n, *gives]`."""
        x = x if self.at == 1 else x.movedim(self.at, 1)
        if self.answers == "places":
            return _fitted(self._head(x), self.gives[-(x.ndim - 2) :]).reshape(x.shape[0], *self.gives)
        if self.answers == "positions":
            found = self._head(x.transpose(1, 2).flatten(0, 1)).view(x.shape[0], x.shape[2], -1)
            return _fitted(found.transpose(1, 2), self.gives[:1]).transpose(1, 2)
        outputs: Tensor = self.head(F.relu(self.norm(self.bottleneck(self.pool(x)))).flatten(1))
        return outputs if len(self.gives) == 1 else outputs.view(x.shape[0], *self.gives)

    def _head(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.head(F.relu(self.norm(self.bottleneck(x))))
        return outputs


Answers = Literal["example", "places", "positions"]


def answers(given: Map, model: ModelConfig) -> Answers:
    """Return what an exit answers: the example as a whole, every place of its map, or every position of a sequence."""
    gives = model.gives
    if given.axes == 1 and len(gives) == 2 and gives[1] == model.classes and (given.at < 0 or gives[0] != gives[1]):
        return "positions"
    return "places" if given.axes and len(gives) > 1 and len(gives) - given.axes in (0, 1) else "example"


def _fitted(x: Tensor, size: Sequence[int]) -> Tensor:
    """Return maps `[n, channels, *size]`, interpolated linearly if they are of another size."""
    if x.shape[2:] == torch.Size(size):
        return x
    return F.interpolate(x, tuple(size), mode=("linear", "bilinear", "trilinear")[x.ndim - 3])


class Exited(nn.Module):
    """The first stages of a network, each with an exit; the network's own classifier is the exit of its last stage.

    `shape` has the stages that are kept. The tensors of a shallower or narrower network are prefixes of those of a
    larger one.
    """

    def __init__(self, model: ModelConfig, shape: Shape) -> None:
        super().__init__()
        self.trunk, self.gives = network(model, shape), model.gives
        early = maps(model, shape)
        if len(early) == depth(model):
            early = early[:-1]
        else:
            names = [name for name, _ in self.trunk.named_children()]
            for name in names[names.index("stages") + 1 :]:
                setattr(self.trunk, name, nn.Identity())
        self.exits = nn.ModuleList(Exit(given, model) for given in early)

    def logits(self, x: Tensor) -> list[Tensor]:
        """Return the outputs `[n, *gives]` of every exit, the first stage's first."""
        trunk, found = parts(self.trunk), []
        x = trunk.enter(x)
        for stage, leave in zip_longest(trunk.stages, self.exits, fillvalue=trunk.leave):
            x = stage(x)
            found.append(leave(x).reshape(x.shape[0], *self.gives))
        return found

    def last(self, x: Tensor) -> Tensor:
        """Return the outputs `[n, *gives]` of the last exit, without the work of the others."""
        trunk = parts(self.trunk)
        x = trunk.enter(x)
        for stage in trunk.stages:
            x = stage(x)
        outputs: Tensor = self.exits[-1](x) if len(self.exits) == len(trunk.stages) else trunk.leave(x)
        return outputs.reshape(x.shape[0], *self.gives)


class Last(nn.Module):
    """What a network with exits is used by if the last of them answers: takes a batch, gives outputs `[n, *gives]`."""

    def __init__(self, exited: Exited) -> None:
        super().__init__()
        trunk = parts(exited.trunk)
        self.trunk, self.gives = exited.trunk, exited.gives
        self.exit = exited.exits[-1] if len(exited.exits) == len(trunk.stages) else None

    def forward(self, x: Tensor) -> Tensor:
        """Return the last exit's outputs."""
        trunk = parts(self.trunk)
        x = trunk.enter(x)
        for stage in trunk.stages:
            x = stage(x)
        outputs: Tensor = trunk.leave(x) if self.exit is None else self.exit(x)
        return outputs.reshape(-1, *self.gives)


def shape_of(model: ModelConfig, size: Stages) -> Shape:
    """Return the shape of a sub-model of the first stages at its width. Raises `SpecError`."""
    if size.stages > depth(model):
        raise SpecError(f"stages {size.stages}: model {model.name} has {depth(model)}")
    return narrowed(model, size.width).first(size.stages or depth(model))


def axes(model: ModelConfig) -> Layout:
    """Return which channels each axis of the parameters of a model with exits runs over."""
    found: dict[str, tuple[Axis | Joined | None, ...]]
    found = {f"trunk.{name}": along for name, along in layout(model).items()}
    for number, given in enumerate(maps(model, whole(model))):
        path, inside = f"exits.{number}", Axis(f"exit {number}")
        kind = answers(given, model)
        places = [None] * given.axes if kind != "positions" else []
        found[f"{path}.bottleneck.weight"] = (inside, given.runs, *places)
        found[f"{path}.norm.weight"] = found[f"{path}.norm.bias"] = (inside,)
        head = (None, inside, *places) if kind == "places" else (None, inside)
        if kind == "example":
            head = (None, Axis(f"exit {number}", POSITIONS**given.axes))
        found[f"{path}.head.weight"] = head
        found[f"{path}.head.bias"] = (None,)
    return found


class SlicedExits(Sliced):
    """A method whose sub-models are the first channels of `Exited` networks."""

    def plain(self, name: str) -> str:
        """Return the plain network's name of a tensor of the trunk; exits are the method's own."""
        return name.removeprefix("trunk.") if name.startswith("trunk.") else ""

    def axes(self, model: ModelConfig) -> Layout:
        """Return which channels each axis of each parameter runs over, those of the exits too."""
        # If every stage has channels of its own, an exit's tensors are sliced as prefixes, and their axes need no
        # entry.
        return axes(model) if whole(model).sets else super().axes(model)
