"""Early exits: a classifier after each stage of a network."""

from itertools import zip_longest

from pydantic.dataclasses import dataclass as validated
from torch import Tensor, nn
from torch.nn import functional as F

from diastole.models.channels import Axis, Joined, Layout
from diastole.models.errors import ModelError, SpecError
from diastole.models.losses import Criterion
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

    Takes a `Map` of any number of axes, gives logits `[n, classes]`. The papers use strided convolutions, which cost a
    shallow sub-model as much as its own stages. An exit that pools first costs next to nothing. It still has
    `POSITIONS` places along each axis, so it can use where in the map a feature is.
    """

    def __init__(self, given: Map, classes: int, group: int) -> None:
        super().__init__()
        if given.axes > len(POOLINGS):
            raise ModelError(f"an exit can pool at most {len(POOLINGS)} axes, and a stage gives {given.axes}")
        self.at, channels = given.at, given.channels
        # A custom model's map may have a few channels more than whole groups.
        inside = max(1, channels // group) * group
        self.pool: nn.Module = nn.Identity()
        self.bottleneck: nn.Module = nn.Linear(channels, inside, bias=False)
        if given.axes:
            self.pool = POOLINGS[given.axes - 1](POSITIONS)
            self.bottleneck = CONVOLUTIONS[given.axes - 1](channels, inside, 1, bias=False)
        self.norm = nn.GroupNorm(inside // group, inside)
        self.head = nn.Linear(inside * POSITIONS**given.axes, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits `[n, classes]`."""
        x = x if self.at == 1 else x.movedim(self.at, 1)
        logits: Tensor = self.head(F.relu(self.norm(self.bottleneck(self.pool(x)))).flatten(1))
        return logits


class Exited(nn.Module):
    """The first stages of a network, each with an exit; the network's own classifier is the exit of its last stage.

    `shape` has the stages that are kept. The tensors of a shallower or narrower network are prefixes of those of a
    larger one.
    """

    def __init__(self, model: ModelConfig, shape: Shape) -> None:
        super().__init__()
        self.trunk = network(model, shape)
        early = maps(model, shape)
        if len(early) == depth(model):
            early = early[:-1]
        else:
            names = [name for name, _ in self.trunk.named_children()]
            for name in names[names.index("stages") + 1 :]:
                setattr(self.trunk, name, nn.Identity())
        self.exits = nn.ModuleList(Exit(given, model.classes, model.group) for given in early)

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
        found[f"{path}.bottleneck.weight"] = (inside, given.runs, *[None] * given.axes)
        found[f"{path}.norm.weight"] = found[f"{path}.norm.bias"] = (inside,)
        found[f"{path}.head.weight"] = (None, Axis(f"exit {number}", POSITIONS**given.axes))
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


def divergence(student: Tensor, teacher: Tensor, criterion: Criterion, temperature: float = 1.0) -> Tensor:
    """Return KL(teacher || student) of two batches of logits, mean over the batch; only the student learns from it.

    Of outputs that are no logits `[n, classes]` it is `Criterion.towards`.
    """
    if student.ndim > 2 or not criterion.classified:
        hard = temperature if criterion.classified else 1.0
        return criterion.towards(student / hard, criterion.predict(teacher / hard))
    soft = F.log_softmax(teacher.detach() / temperature, 1)
    return F.kl_div(F.log_softmax(student / temperature, 1), soft, reduction="batchmean", log_target=True)
