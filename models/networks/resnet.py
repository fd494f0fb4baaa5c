"""Residual networks for small images, at any shape."""

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from diastole.models.channels import Axis, Layout
from diastole.models.networks.checks import check_blocks, check_first_blocks, check_images, check_widths
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.registry import NetworkRow
from diastole.models.networks.shape import Shape
from diastole.models.networks.staged import Network


def check(model: ModelConfig) -> None:
    """Raise `ModelError` if the configuration is not that of a residual network that can be built."""
    check_images(model)
    check_widths(model)
    check_blocks(model)


def make(model: ModelConfig, shape: Shape) -> nn.Module:
    """Return a residual network of the given shape. Raises `SpecError` if a stage lacks its first block."""
    check_first_blocks(shape)
    return ResNet(model.input_shape, model.classes, shape.widths, shape.blocks, model.group)


def layout(model: ModelConfig) -> Layout:
    """Return what the axes of the parameters run over.

    The blocks of a stage add to one stream, so they share its channels; the channels inside a block are its own.
    """
    stream = Axis("stage 0")
    axes: dict[str, tuple[Axis | None, ...]] = {"stem.weight": (stream, None, None, None)}
    axes["norm.weight"] = axes["norm.bias"] = (stream,)
    for stage, depth in enumerate(model.blocks):
        for block in range(depth):
            before, inside = stream, Axis(f"stage {stage} block {block}")
            stream = Axis(f"stage {stage}")
            path = f"stages.{stage}.{block}"
            axes[f"{path}.conv1.weight"] = (inside, before, None, None)
            axes[f"{path}.norm1.weight"] = axes[f"{path}.norm1.bias"] = (inside,)
            axes[f"{path}.conv2.weight"] = (stream, inside, None, None)
            axes[f"{path}.norm2.weight"] = axes[f"{path}.norm2.bias"] = (stream,)
            if stage and not block:
                axes[f"{path}.shortcut.0.weight"] = (stream, before, None, None)
                axes[f"{path}.shortcut.1.weight"] = axes[f"{path}.shortcut.1.bias"] = (stream,)
    axes["classifier.weight"] = (None, stream)
    axes["classifier.bias"] = (None,)
    return axes


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with GroupNorm and a shortcut, which is a strided 1x1 convolution where shapes change."""

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


class ResNet(Network):
    """CIFAR-style residual network (He et al. 2016, section 4.2) with GroupNorm.

    A 3x3 stem, stages of `ResidualBlock` that halve the map from the second on, global average pooling and a
    linear classifier. The usual ResNet-18 for CIFAR has widths 64, 128, 256, 512 and two blocks in
    each stage. `blocks` says which blocks of each stage are there.
    Takes `[n, channels, height, width]`, gives logits `[n, classes]`.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        classes: int,
        widths: Sequence[int],
        blocks: Sequence[Sequence[int]],
        group: int,
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(input_shape[0], widths[0], 3, padding=1, bias=False)
        self.norm = nn.GroupNorm(widths[0] // group, widths[0])
        stages, inside = [], widths[0]
        for stage, (outside, kept) in enumerate(zip(widths, blocks, strict=True)):
            # A block keeps the name that it has in the global model, whichever others are there.
            layers: OrderedDict[str, nn.Module] = OrderedDict()
            for block in kept:
                layers[str(block)] = ResidualBlock(inside, outside, 2 if stage and not block else 1, group)
                inside = outside
            stages.append(nn.Sequential(layers))
        self.stages = nn.ModuleList(stages)
        self.classifier = nn.Linear(inside, classes)

    def enter(self, x: Tensor) -> Tensor:
        """Return the stem's map `[n, widths[0], height, width]`."""
        return F.relu(self.norm(self.stem(x)))

    def leave(self, x: Tensor) -> Tensor:
        """Return logits `[n, classes]`."""
        logits: Tensor = self.classifier(x.mean((2, 3)))
        return logits


ROW = NetworkRow(check, make, layout, layered=True, skippable=r"^stages\.\d+\.\d+\.")
