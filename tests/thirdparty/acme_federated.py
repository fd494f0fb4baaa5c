"""Somebody else's package: a method, a data set and a network for diastole."""

from collections.abc import Sequence
from math import prod
from pathlib import Path

import torch
from torch import nn

from diastole.experiments.data.dataset import Dataset
from diastole.experiments.data.reading import Reading
from diastole.experiments.data.sets import Source
from diastole.models.channels import Axis, Kept, Layout
from diastole.models.errors import ModelError
from diastole.models.methods.bases.selected import Selected
from diastole.models.methods.registry import MethodRow
from diastole.models.methods.widths.heterofl import Width, build
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.registry import NetworkRow
from diastole.models.networks.staged import Network
from diastole.models.seeds import generator
from diastole.models.spec import SubModelSpec, labelled
from diastole.models.training import Examples, TrainConfig


def spec_of(width: float) -> SubModelSpec:
    return labelled("last-channels", Width(width), width)


class LastChannels(Selected):
    """Sub-models are the last channels of every layer."""

    def __init__(self, model: ModelConfig, widths: Sequence[float], training: TrainConfig, options: None) -> None:
        super().__init__(model, [spec_of(width) for width in sorted(set(widths))], spec_of(1.0), training)

    def kept(self, spec: SubModelSpec) -> Kept:
        every = self._counts(self.whole)
        return {name: torch.arange(every[name] - size, every[name]) for name, size in self._counts(spec).items()}


def stripes(path: Path | None, reading: Reading) -> Dataset:
    """Return images of 8x8 with noisy stripes that run one way or the other."""

    def drawn(count: int, part: str) -> Examples:
        draws = generator(reading.seed, "stripes", part)
        labels = torch.arange(count) % 2
        lines = (torch.arange(8) % 2).float().expand(count, 1, 8, 8)
        images = torch.where(labels.view(-1, 1, 1, 1).bool(), lines, lines.transpose(2, 3))
        return Examples(images + 0.3 * torch.randn(count, 1, 8, 8, generator=draws), labels)

    return Dataset("stripes", drawn(400, "train"), drawn(100, "test"), classes=2)


class Perceptron(Network):
    """A perceptron with one hidden layer."""

    def __init__(self, model: ModelConfig, hidden: int) -> None:
        super().__init__()
        layers = [nn.Flatten(), nn.Linear(prod(model.input_shape), hidden), nn.ReLU()]
        self.stages = nn.ModuleList([nn.Sequential(*layers)])
        self.classifier = nn.Linear(hidden, model.classes)


def check(model: ModelConfig) -> None:
    if len(model.widths) != 1 or model.widths[0] % model.group:
        raise ModelError(f"model perceptron: widths {list(model.widths)}; expected one multiple of {model.group}")


def layout(model: ModelConfig) -> Layout:
    hidden = Axis("hidden")
    stage = {"stages.0.1.weight": (hidden, None), "stages.0.1.bias": (hidden,)}
    return {**stage, "classifier.weight": (None, hidden), "classifier.bias": (None,)}


LAST_CHANNELS = MethodRow(LastChannels, build, Width, "Acme", "the last channels of every layer")
STRIPES = Source(stripes)
PERCEPTRON = NetworkRow(check, lambda model, shape: Perceptron(model, shape.widths[0]), layout)
