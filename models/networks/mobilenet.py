"""MobileNetV3-style networks for small images, at any shape and with elastic kernels (Howard et al. 2019)."""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diastole.models.channels import Axis, Layout
from diastole.models.errors import SpecError
from diastole.models.networks.checks import check_blocks, check_first_blocks, check_images, check_widths
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.registry import Elastic, NetworkRow
from diastole.models.networks.shape import Shape, scaled
from diastole.models.networks.staged import Network
from diastole.models.state import State

KERNELS = (3, 5, 7)
SQUEEZE = 0.25


def check(model: ModelConfig) -> None:
    """Raise `ModelError` if the configuration is not that of a network that can be built."""
    check_images(model)
    check_widths(model)
    check_blocks(model)


def make(model: ModelConfig, shape: Shape) -> nn.Module:
    """Return a network of the given shape. Raises `SpecError` if the global model cannot have it."""
    check_first_blocks(shape)
    count = sum(len(kept) for kept in shape.blocks)
    kernels, expands = shape.kernels or (model.kernel,) * count, shape.expands or (model.expand,) * count
    allowed = list(kernel_sizes(model))
    if len(kernels) != count or any(size not in allowed for size in kernels):
        raise SpecError(f"kernels {list(kernels)}: one of {allowed} is needed for each of the {count} blocks")
    if len(expands) != count or any(not 0 < ratio <= model.expand for ratio in expands):
        raise SpecError(
            f"expands {list(expands)}: a ratio in (0, {model.expand:g}] is needed for each of {count} blocks"
        )
    return MobileNet(model, Shape(shape.widths, shape.blocks, tuple(kernels), tuple(expands)))


def layout(model: ModelConfig) -> Layout:
    """Return what the axes of the parameters run over.

    The blocks of a stage add to one stream, so they share its channels; the channels inside a block, and those
    inside its squeeze, are its own.
    """
    stream = Axis("stage 0")
    axes: dict[str, tuple[Axis | None, ...]] = {"stem.weight": (stream, None, None, None)}
    axes["norm.weight"] = axes["norm.bias"] = (stream,)
    for stage, depth in enumerate(model.blocks):
        for block in range(depth):
            before, inside = stream, Axis(f"stage {stage} block {block}")
            stream = Axis(f"stage {stage}")
            path = f"stages.{stage}.{block}"
            axes[f"{path}.expand.weight"] = (inside, before, None, None)
            axes[f"{path}.norm1.weight"] = axes[f"{path}.norm1.bias"] = (inside,)
            axes[f"{path}.depthwise.weight"] = (inside, None, None, None)
            axes[f"{path}.norm2.weight"] = axes[f"{path}.norm2.bias"] = (inside,)
            if _squeezes(model, stage):
                hidden = Axis(f"stage {stage} block {block} squeeze")
                axes[f"{path}.squeeze.reduce.weight"] = (hidden, inside, None, None)
                axes[f"{path}.squeeze.reduce.bias"] = (hidden,)
                axes[f"{path}.squeeze.restore.weight"] = (inside, hidden, None, None)
                axes[f"{path}.squeeze.restore.bias"] = (inside,)
            axes[f"{path}.project.weight"] = (stream, inside, None, None)
            axes[f"{path}.norm3.weight"] = axes[f"{path}.norm3.bias"] = (stream,)
    axes["classifier.weight"] = (None, stream)
    axes["classifier.bias"] = (None,)
    return axes


def kernel_sizes(model: ModelConfig) -> tuple[int, ...]:
    """Return the sizes that a block's kernel may have, ascending."""
    return tuple(size for size in KERNELS if size <= model.kernel)


def transforms(model: ModelConfig) -> State:
    """Return the matrices that make smaller kernels of larger ones, for every block, as they are at first.

    `to5` is `[5, 5, 25]`: row `[i, j]` gives entry `[i, j]` of the 5x5 kernel from the 25 values of the 7x7 kernel's
    centre; `to3`, `[3, 3, 9]`, likewise gives the 3x3 kernel from the 5x5 kernel's centre. All start as the identity.
    """
    return {
        f"stages.{stage}.{block}.depthwise.to{size}": _identity(size)
        for stage, depth in enumerate(model.blocks)
        for block in range(depth)
        for size in _path(min(KERNELS), model.kernel)
    }


def _squeezes(model: ModelConfig, stage: int) -> bool:
    return stage >= len(model.widths) // 2


def _path(kernel: int, largest: int) -> list[int]:
    """Return the sizes on the way from the largest kernel, which is left out, to `kernel`."""
    return [size for size in reversed(KERNELS) if kernel <= size < largest]


def _identity(size: int) -> Tensor:
    return torch.eye(size * size).reshape(size, size, size * size)


def centre(tensor: Tensor, size: int) -> Tensor:
    """Return the middle `size` entries of each of the last two axes, which have one odd length."""
    edge = (tensor.shape[-1] - size) // 2
    return tensor[..., edge : edge + size, edge : edge + size]


class DepthWise(nn.Module):
    """Depth-wise convolution with an elastic kernel (Once-for-All, Cai et al., ICLR 2020, section 3.3).

    The 5x5 kernel is the centre of the 7x7 one times a learned matrix, the 3x3 kernel the centre of that 5x5 one times
    another; all channels share the matrices, which belong to the layer. A layer holds only what its kernel is made
    from: the centre of `weight` `[channels, 1, *, *]`, and the rows of each matrix that are used.
    """

    def __init__(self, channels: int, kernel: int, largest: int, stride: int) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self._path = _path(kernel, largest)
        drawn = nn.Conv2d(channels, channels, largest, groups=channels, bias=False).weight
        held = self._path[0] if self._path else largest
        self.weight = nn.Parameter(centre(drawn.detach(), held).clone())
        for size, following in zip(self._path, [*self._path[1:], *self._path[-1:]], strict=True):
            rows = centre(_identity(size).permute(2, 0, 1), following).permute(1, 2, 0)
            self.register_parameter(f"to{size}", nn.Parameter(rows.contiguous()))

    def taps(self) -> Tensor:
        """Return the kernel that is used, `[channels, 1, kernel, kernel]`."""
        weight = self.weight.flatten(1)
        for size in self._path:
            # Not `get_parameter`: when many sub-models are trained together, this is a plain tensor.
            matrix: Tensor = getattr(self, f"to{size}")
            weight = F.linear(weight, matrix.flatten(0, 1))
        return weight.reshape(-1, 1, self.kernel, self.kernel)

    def forward(self, x: Tensor) -> Tensor:
        """Return `[n, channels, height / stride, width / stride]`."""
        return F.conv2d(x, self.taps(), None, self.stride, self.kernel // 2, groups=x.shape[1])


class Squeeze(nn.Module):
    """Squeeze and excitation (Hu et al. 2018): a small network makes each channel's scale from the means."""

    def __init__(self, channels: int, group: int) -> None:
        super().__init__()
        hidden = scaled(channels, SQUEEZE, group)
        self.reduce = nn.Conv2d(channels, hidden, 1)
        self.restore = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return `x`, scaled."""
        return x * F.hardsigmoid(self.restore(F.relu(self.reduce(x.mean((2, 3), keepdim=True)))))


class InvertedBlock(nn.Module):
    """Expand by 1x1, convolve depth-wise, squeeze, project by 1x1; a shortcut where shapes agree."""

    def __init__(
        self, inside: int, middle: int, outside: int, kernel: int, largest: int, stride: int, group: int, late: bool
    ) -> None:
        super().__init__()
        self.shortcut = stride == 1 and inside == outside
        self.activation: nn.Module = nn.Hardswish() if late else nn.ReLU()
        self.expand = nn.Conv2d(inside, middle, 1, bias=False)
        self.norm1 = nn.GroupNorm(middle // group, middle)
        self.depthwise = DepthWise(middle, kernel, largest, stride)
        self.norm2 = nn.GroupNorm(middle // group, middle)
        self.squeeze: nn.Module = Squeeze(middle, group) if late else nn.Identity()
        self.project = nn.Conv2d(middle, outside, 1, bias=False)
        self.norm3 = nn.GroupNorm(outside // group, outside)

    def forward(self, x: Tensor) -> Tensor:
        """Return `[n, outside, height / stride, width / stride]`."""
        y = self.activation(self.norm1(self.expand(x)))
        y = self.squeeze(self.activation(self.norm2(self.depthwise(y))))
        y = self.norm3(self.project(y))
        return torch.add(x, y) if self.shortcut else y


class MobileNet(Network):
    """A 3x3 stem, stages of `InvertedBlock` that halve the map from the second on, mean over the map, a classifier.

    The later half of the stages has squeeze and excitation and hard swish, the others ReLU, about as in
    MobileNetV3-Large; its last 1x1 convolutions, made for 1000 classes, are left out. `shape.blocks` says which
    blocks of each stage are there. Takes `[n, channels, height, width]`, gives logits `[n, classes]`.
    """

    def __init__(self, model: ModelConfig, shape: Shape) -> None:
        super().__init__()
        group, inside = model.group, shape.widths[0]
        self.stem = nn.Conv2d(model.input_shape[0], inside, 3, padding=1, bias=False)
        self.norm = nn.GroupNorm(inside // group, inside)
        stages, sizes = [], iter(zip(shape.kernels, shape.expands, strict=True))
        for stage, (outside, kept) in enumerate(zip(shape.widths, shape.blocks, strict=True)):
            # A block keeps the name that it has in the global model, whichever others are there.
            layers: OrderedDict[str, nn.Module] = OrderedDict()
            for block in kept:
                kernel, ratio = next(sizes)
                stride = 2 if stage and not block else 1
                middle = scaled(inside, ratio, group)
                late = _squeezes(model, stage)
                layers[str(block)] = InvertedBlock(inside, middle, outside, kernel, model.kernel, stride, group, late)
                inside = outside
            stages.append(nn.Sequential(layers))
        self.stages = nn.ModuleList(stages)
        self.classifier = nn.Linear(inside, model.classes)

    def enter(self, x: Tensor) -> Tensor:
        """Return the stem's map `[n, widths[0], height, width]`."""
        return F.hardswish(self.norm(self.stem(x)))

    def leave(self, x: Tensor) -> Tensor:
        """Return logits `[n, classes]`."""
        logits: Tensor = self.classifier(x.mean((2, 3)))
        return logits


ROW = NetworkRow(
    check,
    make,
    layout,
    layered=True,
    elastic=Elastic(kernels=kernel_sizes, expand=lambda model: model.expand, transforms=transforms),
)
