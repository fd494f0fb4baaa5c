"""Convolutional networks for images and for time series, at any shape.

Like every network here they normalise by GroupNorm with a fixed number of channels in a group, so that whole groups
are normalised exactly as they are inside the full network. Widths are therefore multiples of `group`.
"""

from collections.abc import Sequence
from itertools import pairwise
from math import prod

from torch import nn

from diastole.models.channels import Axis, Layout
from diastole.models.errors import ModelError
from diastole.models.networks.checks import check_widths
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.registry import NetworkRow
from diastole.models.networks.shape import Shape
from diastole.models.networks.staged import Network


def check(model: ModelConfig) -> None:
    """Raise `ModelError` if the configuration is not that of a CNN that can be built."""
    shape = model.input_shape
    if len(shape) not in (2, 3) or min(shape) < 1:
        raise ModelError(
            f"model cnn: input_shape {list(shape)}; expected [channels, height, width] or [channels, length]"
        )
    check_widths(model)
    if min(shape[1:]) >> len(model.widths) == 0:
        raise ModelError(
            f"model cnn: {len(model.widths)} blocks halve an input of {list(shape[1:])} away; use fewer widths"
        )


def make(model: ModelConfig, shape: Shape) -> nn.Module:
    """Return a CNN of the given shape."""
    return CNN(model.input_shape, model.classes, shape.widths, model.group)


def layout(model: ModelConfig) -> Layout:
    """Return what the axes of a CNN's parameters run over: one set of channels a stage."""
    kernel = (None,) * (len(model.input_shape) - 1)
    axes: dict[str, tuple[Axis | None, ...]] = {}
    before: Axis | None = None
    for stage in range(len(model.widths)):
        here = Axis(f"stage {stage}")
        axes[f"stages.{stage}.0.weight"] = (here, before, *kernel)
        axes[f"stages.{stage}.1.weight"] = axes[f"stages.{stage}.1.bias"] = (here,)
        before = here
    # A flattened map is channel-major, so the positions of a channel are consecutive inputs of the classifier.
    positions = prod(size >> len(model.widths) for size in model.input_shape[1:])
    axes["classifier.weight"] = (None, Axis(f"stage {len(model.widths) - 1}", positions))
    axes["classifier.bias"] = (None,)
    return axes


class CNN(Network):
    """Blocks of 3-wide convolution, GroupNorm, ReLU and 2-wide max-pooling, then a linear classifier.

    Takes `[n, channels, height, width]` or `[n, channels, length]`, gives logits `[n, classes]`.
    """

    def __init__(self, input_shape: Sequence[int], classes: int, widths: Sequence[int], group: int) -> None:
        super().__init__()
        two = len(input_shape) == 3
        conv = nn.Conv2d if two else nn.Conv1d
        pool = nn.MaxPool2d if two else nn.MaxPool1d
        channels = [input_shape[0], *widths]
        self.stages = nn.ModuleList(
            nn.Sequential(
                conv(inside, outside, 3, padding=1, bias=False),
                nn.GroupNorm(outside // group, outside),
                nn.ReLU(),
                pool(2),
            )
            for inside, outside in pairwise(channels)
        )
        positions = prod(size >> len(widths) for size in input_shape[1:])
        self.classifier = nn.Linear(channels[-1] * positions, classes)


ROW = NetworkRow(check, make, layout, layered=True)
