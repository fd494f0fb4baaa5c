"""Early exits: a classifier behind each stage of a network."""

from collections.abc import Sequence
from itertools import zip_longest
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from diastole.models.errors import SpecError
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.family import network, parts
from diastole.models.networks.shape import Shape, narrowed
from diastole.models.spec import SubModelSpec, one_line

T = TypeVar("T")

POSITIONS = 4
"""Positions along each axis that an exit pools a map to."""


class Exit(nn.Module):
    """Bottleneck and head: pooling to `POSITIONS`, 1-wide convolution, GroupNorm, ReLU, linear classifier.

    Takes `[n, channels, height, width]` or `[n, channels, length]`, gives logits `[n, classes]`. The papers put
    strided convolutions there, which cost a shallow sub-model as much as its own stages. Pooled first, an exit costs
    next to nothing, and unlike one that pools everything away it can tell where in the map it saw something.
    """

    def __init__(self, channels: int, classes: int, group: int, axes: int) -> None:
        super().__init__()
        conv = nn.Conv2d if axes == 2 else nn.Conv1d
        self.pool = nn.AdaptiveAvgPool2d(POSITIONS) if axes == 2 else nn.AdaptiveAvgPool1d(POSITIONS)
        self.bottleneck = conv(channels, channels, 1, bias=False)
        self.norm = nn.GroupNorm(channels // group, channels)
        self.head = nn.Linear(channels * POSITIONS**axes, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits `[n, classes]`."""
        logits: Tensor = self.head(F.relu(self.norm(self.bottleneck(self.pool(x)))).flatten(1))
        return logits


class Exited(nn.Module):
    """The first stages of a network, each with an exit; the network's own classifier is the exit of its last stage.

    `shape` has the stages that are kept. Shallower and narrower ones have prefixes of the tensors of larger ones.
    """

    def __init__(self, model: ModelConfig, shape: Shape) -> None:
        super().__init__()
        self.trunk = network(model, shape)
        early = shape.widths
        if len(shape.widths) == len(model.widths):
            early = early[:-1]
        else:
            self.trunk.classifier = nn.Identity()
        axes = len(model.input_shape) - 1
        self.exits = nn.ModuleList(Exit(width, model.classes, model.group, axes) for width in early)

    def logits(self, x: Tensor) -> list[Tensor]:
        """Return the logits `[n, classes]` of every exit, the first stage's first."""
        trunk, found = parts(self.trunk), []
        x = trunk.enter(x)
        for stage, leave in zip_longest(trunk.stages, self.exits, fillvalue=trunk.leave):
            x = stage(x)
            found.append(leave(x))
        return found

    def last(self, x: Tensor) -> Tensor:
        """Return the logits `[n, classes]` of the last exit, without the work of the others."""
        trunk = parts(self.trunk)
        x = trunk.enter(x)
        for stage in trunk.stages:
            x = stage(x)
        logits: Tensor = self.exits[-1](x) if len(self.exits) == len(trunk.stages) else trunk.leave(x)
        return logits


def stages(model: ModelConfig, spec: SubModelSpec) -> Shape:
    """Return the shape of a sub-model of the first stages at its width. Raises `SpecError`."""
    if spec.stages > len(model.widths):
        raise SpecError(f"stages {spec.stages}: model {model.name} has {len(model.widths)}")
    return narrowed(model, spec.width).first(spec.stages or len(model.widths))


def divergence(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Return KL(teacher || student) of two batches of logits, mean over the batch; only the student learns from it."""
    soft = F.log_softmax(teacher.detach() / temperature, 1)
    return F.kl_div(F.log_softmax(student / temperature, 1), soft, reduction="batchmean", log_target=True)


def settings(kind: type[T], values: Sequence[float]) -> T:
    """Return a method's options from a spec's `objective`; those that are missing at their defaults.

    Raises `SpecError`.
    """
    names = list(TypeAdapter(kind).json_schema()["properties"])
    if len(values) > len(names):
        raise SpecError(f"objective {list(values)}: at most {', '.join(names)}")
    try:
        return TypeAdapter(kind).validate_python(dict(zip(names, values, strict=False)))
    except ValidationError as error:
        raise SpecError(f"objective {list(values)}: {one_line(error)}") from None
