"""The networks that ship with diastole, at any width.

Those that normalise do so by GroupNorm with a fixed number of channels in a group, so that a prefix of whole groups
is normalised exactly as it is inside the full network. Widths are therefore multiples of `group`.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as validated
from torch import Tensor, nn
from torch.nn import functional as F

from diastole.models.dropout import is_random
from diastole.models.errors import ModelError, SpecError
from diastole.models.simplecnn import SimpleCNN
from diastole.models.spec import SubModelSpec, one_line
from diastole.models.state import State, state_of


@validated(frozen=True, slots=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class ModelConfig:
    """The global model.

    Attributes:
        name: "cnn" (conv-norm-ReLU-pool blocks and a linear classifier), "simple-cnn" (pfl-research's, with dropout
            and without normalisation) or "resnet" (CIFAR style).
        input_shape: of one example: `[channels, height, width]`, or `[channels, length]` for "cnn".
        classes: rows of the classifier.
        widths: channels of each block ("cnn") or stage ("resnet"), or of two convolutions and a dense layer
            ("simple-cnn"); multiples of `group`.
        blocks: residual blocks of each stage; "resnet" only.
        group: channels in a normalisation group.

    """

    name: Literal["cnn", "simple-cnn", "resnet"]
    input_shape: tuple[int, ...]
    classes: int = Field(ge=2)
    widths: tuple[int, ...] = (16, 32)
    blocks: tuple[int, ...] = ()
    group: int = Field(default=4, ge=1)

    def to_json(self) -> str:
        """Return the configuration as compact JSON."""
        return _ADAPTER.dump_json(self).decode()

    @staticmethod
    def from_json(text: str) -> "ModelConfig":
        """Parse what `to_json` wrote. Raises `ModelError`."""
        try:
            return _ADAPTER.validate_json(text)
        except ValidationError as error:
            raise ModelError(f"model {text!r}: {one_line(error)}") from None


_ADAPTER = TypeAdapter(ModelConfig)


def scaled(width: int, ratio: float, group: int) -> int:
    """Return `ratio` of `width` channels, rounded to the nearest multiple of `group` and at least one group."""
    return max(1, round(width * ratio / group)) * group


def build(model: ModelConfig, spec: SubModelSpec | None = None) -> nn.Module:
    """Return a freshly initialised module: the global model, or the sub-model that `spec` names.

    Raises `ModelError` if the configuration cannot be built, `SpecError` if the sub-model cannot.
    """
    _check(model)
    ratio = 1.0 if spec is None else spec.width
    if min(model.widths) * ratio < model.group / 2:
        raise SpecError(
            f"width {ratio:g} leaves less than one group of {model.group} channels of the narrowest layer "
            f"({min(model.widths)}); it must be at least {model.group / 2 / min(model.widths):g}"
        )
    widths = [scaled(width, ratio, model.group) for width in model.widths]
    if model.name == "cnn":
        return CNN(model.input_shape, model.classes, widths, model.group)
    if model.name == "simple-cnn":
        return SimpleCNN(model.input_shape, model.classes, widths)
    return ResNet(model.input_shape, model.classes, widths, model.blocks, model.group)


def initial_state(model: ModelConfig, seed: int) -> State:
    """Return the parameters of a global model initialised from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return state_of(build(model))


def trains_at_random(model: ModelConfig) -> bool:
    """Return whether training draws more than the order of the examples, as dropout does."""
    with torch.device("meta"):
        return is_random(build(model))


def _check(model: ModelConfig) -> None:
    shape, dims = model.input_shape, len(model.input_shape) - 1
    if dims not in ((1, 2) if model.name == "cnn" else (2,)) or min(shape, default=0) < 1:
        wanted = "[channels, height, width]" + (" or [channels, length]" if model.name == "cnn" else "")
        raise ModelError(f"model {model.name}: input_shape {list(shape)}; expected {wanted}")
    wrong = [width for width in model.widths if width < 1 or width % model.group]
    if wrong or not model.widths:
        raise ModelError(f"model {model.name}: widths {list(model.widths)} must be multiples of group {model.group}")
    if model.name == "cnn" and min(shape[1:]) >> len(model.widths) == 0:
        raise ModelError(
            f"model cnn: {len(model.widths)} blocks halve an input of {list(shape[1:])} away; use fewer widths"
        )
    if model.name == "simple-cnn" and (len(model.widths) != 3 or min(shape[1:]) < 6):
        raise ModelError(
            f"model simple-cnn: widths {list(model.widths)} on inputs of {list(shape[1:])}; three widths (of two "
            "convolutions and a dense layer) and inputs of at least 6x6 are accepted"
        )
    if model.name == "resnet" and (len(model.blocks) != len(model.widths) or min(model.blocks) < 1):
        raise ModelError(
            f"model resnet: blocks {list(model.blocks)} must give a number of blocks >= 1 "
            f"for each of the {len(model.widths)} widths"
        )


class CNN(nn.Module):
    """Blocks of 3-wide convolution, GroupNorm, ReLU and 2-wide max-pooling, then a linear classifier.

    Takes `[n, channels, height, width]` or `[n, channels, length]`, gives logits `[n, classes]`.
    """

    def __init__(self, input_shape: Sequence[int], classes: int, widths: Sequence[int], group: int) -> None:
        super().__init__()
        two = len(input_shape) == 3
        conv = nn.Conv2d if two else nn.Conv1d
        pool = nn.MaxPool2d if two else nn.MaxPool1d
        channels = [input_shape[0], *widths]
        self.blocks = nn.ModuleList(
            nn.Sequential(
                conv(inside, outside, 3, padding=1, bias=False),
                nn.GroupNorm(outside // group, outside),
                nn.ReLU(),
                pool(2),
            )
            for inside, outside in pairwise(channels)
        )
        positions = 1
        for size in input_shape[1:]:
            positions *= size >> len(widths)
        self.classifier = nn.Linear(channels[-1] * positions, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits `[n, classes]`."""
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.classifier(x.flatten(1))
        return logits


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with GroupNorm and a shortcut, which is a strided 1x1 where shapes change."""

    def __init__(self, inside: int, outside: int, stride: int, group: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.norm1 = nn.GroupNorm(outside // group, outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.norm2 = nn.GroupNorm(outside // group, outside)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inside != outside:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inside, outside, 1, stride, bias=False), nn.GroupNorm(outside // group, outside)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return `[n, outside, height / stride, width / stride]`."""
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """CIFAR-style residual network (He et al. 2016, section 4.2) with GroupNorm.

    A 3x3 stem, stages of `ResidualBlock` that halve the map from the second on, global average pooling and a
    linear classifier. `widths=(64, 128, 256, 512), blocks=(2, 2, 2, 2)` is the usual ResNet-18 for CIFAR.
    Takes `[n, channels, height, width]`, gives logits `[n, classes]`.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        classes: int,
        widths: Sequence[int],
        blocks: Sequence[int],
        group: int,
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(input_shape[0], widths[0], 3, padding=1, bias=False)
        self.norm = nn.GroupNorm(widths[0] // group, widths[0])
        stages, inside = [], widths[0]
        for stage, (outside, depth) in enumerate(zip(widths, blocks, strict=True)):
            layers = []
            for block in range(depth):
                layers.append(ResidualBlock(inside, outside, 2 if stage and not block else 1, group))
                inside = outside
            stages.append(nn.Sequential(*layers))
        self.stages = nn.ModuleList(stages)
        self.classifier = nn.Linear(inside, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits `[n, classes]`."""
        x = F.relu(self.norm(self.stem(x)))
        for stage in self.stages:
            x = stage(x)
        logits: Tensor = self.classifier(x.mean((2, 3)))
        return logits
