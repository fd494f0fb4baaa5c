"""The small CNN that pfl-research's CIFAR-10 benchmark trains."""

from collections.abc import Sequence

from torch import nn

from diastole.models.channels import Axis, Layout
from diastole.models.dropout import Dropout
from diastole.models.errors import ModelError
from diastole.models.networks.checks import check_images, check_widths
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.registry import Map, NetworkRow
from diastole.models.networks.shape import Shape
from diastole.models.networks.staged import Network


def check(model: ModelConfig) -> None:
    """Raise `ModelError` if the configuration is not that of such a network."""
    check_images(model)
    check_widths(model)
    if len(model.widths) != 3 or min(model.input_shape[1:]) < 6:
        raise ModelError(
            f"model simple-cnn: widths {list(model.widths)} on inputs of {list(model.input_shape[1:])}; three widths "
            "(of two convolutions and a dense layer) and inputs of at least 6x6 are accepted"
        )


def make(model: ModelConfig, shape: Shape) -> nn.Module:
    """Return a network of the given shape. Raises `ModelError` unless it has all three layers."""
    if len(shape.widths) != 3:
        raise ModelError(f"model simple-cnn: {len(shape.widths)} stages; it can only be used with all 3")
    return SimpleCNN(model.input_shape, model.classes, shape.widths)


def layout(model: ModelConfig) -> Layout:
    """Return what the axes of the parameters run over."""
    first, second, hidden = (Axis(f"stage {stage}") for stage in range(3))
    positions = ((model.input_shape[1] - 4) // 2) * ((model.input_shape[2] - 4) // 2)
    return {
        "stages.0.0.weight": (first, None, None, None),
        "stages.0.0.bias": (first,),
        "stages.1.0.weight": (second, first, None, None),
        "stages.1.0.bias": (second,),
        "stages.2.1.weight": (hidden, Axis("stage 1", positions)),
        "stages.2.1.bias": (hidden,),
        "classifier.weight": (None, hidden),
        "classifier.bias": (None,),
    }


class SimpleCNN(Network):
    """Two 3x3 convolutions without padding, 2x2 max-pooling, a hidden dense layer; ReLU, dropout, no normalisation.

    The network of Granqvist et al., pfl-research (NeurIPS 2024), `benchmarks/model/pytorch/cnn.py`: with widths 32,
    64 and 128 and CIFAR-10 it has 1,626,442 parameters. Weights start from Glorot's uniform distribution.
    Takes `[n, channels, height, width]`, gives logits `[n, classes]`.
    """

    def __init__(self, input_shape: Sequence[int], classes: int, widths: Sequence[int]) -> None:
        super().__init__()
        channels, height, width = input_shape
        first, second, hidden = widths
        flat = second * ((height - 4) // 2) * ((width - 4) // 2)
        self.stages = nn.ModuleList(
            [
                nn.Sequential(nn.Conv2d(channels, first, 3), nn.ReLU()),
                nn.Sequential(nn.Conv2d(first, second, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), Dropout(0.25)),
                nn.Sequential(nn.Flatten(), nn.Linear(flat, hidden), nn.ReLU(), Dropout(0.5)),
            ]
        )
        self.classifier = nn.Linear(hidden, classes)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(layer.weight)


def no_exits(model: ModelConfig, shape: Shape) -> list[Map]:
    """Raise `ModelError`: the second stage flattens its map."""
    raise ModelError("model simple-cnn: its stages have no place for exits; use another model, such as cnn")


ROW = NetworkRow(check, make, layout, maps=no_exits, layered=True)
