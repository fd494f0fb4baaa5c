"""Networks by name; other packages add networks by entry points."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from diastole.models.channels import Axis, Joined, Layout
from diastole.models.errors import ModelError
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.shape import Shape, first_blocks
from diastole.models.state import State
from diastole.proto.registry import Registry


@dataclass(frozen=True, slots=True)
class Map:
    """A stage's output for one example.

    Attributes:
        channels: number of channels.
        axes: number of other axes, not counting that of the examples.
        at: the axis of the channels, counting that of the examples.
        runs: the set of channels that this axis runs over, for a network whose sets may go through several stages.

    """

    channels: int
    axes: int
    at: int = 1
    runs: Axis | Joined | None = None


@dataclass(frozen=True, slots=True)
class Elastic:
    """Blocks that come with smaller kernels and fewer channels inside (Once-for-All, Cai et al., ICLR 2020).

    Attributes:
        kernels: the sizes that a block's kernel may have, ascending; the last one is the global model's.
        expand: the largest ratio of the channels inside a block to those that enter it.
        transforms: the matrices that make smaller kernels of larger ones, by the names of their tensors, as they start.

    """

    kernels: Callable[[ModelConfig], tuple[int, ...]]
    expand: Callable[[ModelConfig], float]
    transforms: Callable[[ModelConfig], State]


def whole(model: ModelConfig) -> Shape:
    """Return the shape of a global model that has `widths` and `blocks`."""
    return Shape(tuple(model.widths), first_blocks(model.blocks))


def maps(model: ModelConfig, shape: Shape) -> list[Map]:
    """Return the outputs of stages that keep the axes of the examples and have channels first."""
    return [Map(width, len(model.input_shape) - 1) for width in shape.widths]


@dataclass(frozen=True, slots=True)
class NetworkRow:
    """One kind of network, as the registry knows it. Most networks leave out the fields with a default.

    Attributes:
        check: raises `ModelError` if a configuration cannot be built.
        make: builds the module at a shape. Raises `SpecError` if there is no such module.
        layout: which channels each axis of each parameter runs over.
        whole: the shape of the global model.
        depth: the number of its stages. Raises `ModelError` if it cannot be cut in depth.
        channels: the axis of the channels in inputs and outputs of stages, counting that of the examples.
        maps: each stage's output in a network of a given shape. Raises `ModelError` if no exit can be put there.
        classifier: the path of the linear layer, or convolution, that gives the outputs; empty if something else does.
        layered: whether channels meet only in its layers, and the classifier is its last operation, so that one pass
            through a triangular network gives the logits of all widths. False if that is not known; it is then tried
            out.
        skippable: a regular expression for the beginning of the names of tensors in blocks that can be skipped; empty
            if there is no such block.
        dense: whether it may give anything else than `[classes]` for an example.
        elastic: of its blocks; None if their kernels and inner channels have one size.

    """

    check: Callable[[ModelConfig], None]
    make: Callable[[ModelConfig, Shape], nn.Module]
    layout: Callable[[ModelConfig], Layout]
    whole: Callable[[ModelConfig], Shape] = whole
    depth: Callable[[ModelConfig], int] = lambda model: len(model.widths)
    channels: Callable[[ModelConfig], int] = lambda model: 1
    maps: Callable[[ModelConfig, Shape], list[Map]] = maps
    classifier: Callable[[ModelConfig], str] = lambda model: "classifier"
    layered: bool = False
    skippable: str = ""
    dense: bool = False
    elastic: Elastic | None = None


_HERE = "diastole.models.networks"
NETWORKS: Registry[NetworkRow] = Registry(
    "network",
    {
        "cnn": f"{_HERE}.cnn:ROW",
        "simple-cnn": f"{_HERE}.simplecnn:ROW",
        "resnet": f"{_HERE}.resnet:ROW",
        "mobilenet": f"{_HERE}.mobilenet:ROW",
        "convnext": f"{_HERE}.convnext:ROW",
        "vit": f"{_HERE}.vit:ROW",
        "transformer": f"{_HERE}.transformer:ROW",
        "custom": f"{_HERE}.custom.own:ROW",
    },
    NetworkRow,
    ModelError,
)
