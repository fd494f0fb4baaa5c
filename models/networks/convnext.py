"""Networks that mix places by cheap convolutions, for devices whose processors are slow at dense ones.

Blocks as in ConvNeXt (Liu et al., CVPR 2022): mix places, normalise, widen by 1x1, GELU, narrow by 1x1, add. What mixes
places is the `mixer` of the configuration:

* "depthwise": each channel by a kernel of its own, 7x7 by default (ConvNeXt);
* "partial": a dense 3x3 convolution of the first quarter of the channels, the others stay (FasterNet, Chen et al., CVPR
  2023, section 3.2);
* "inception": about an eighth of the channels each by a 3x3, a 1x11 and an 11x1 kernel of their own, the others stay
  (InceptionNeXt, Yu et al., CVPR 2024, section 3.2).

Docs: what each costs, docs/plans.md.
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diastole.models.channels import Axis, Joined, Layout
from diastole.models.errors import ModelError, SpecError
from diastole.models.networks.checks import check_blocks, check_first_blocks, check_images, check_widths
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.registry import NetworkRow
from diastole.models.networks.shape import Shape, scaled
from diastole.models.networks.staged import Network

BRANCHES = ("square", "row", "column")
"""Of "inception", by the shape of their kernels."""

BAND = 11
"""The length of a kernel that is a row or a column."""


def check(model: ModelConfig) -> None:
    """Raise `ModelError` if the configuration is not that of a network that can be built."""
    check_images(model)
    check_widths(model)
    check_blocks(model)
    smallest = min(model.input_shape[1:])
    if smallest >> (len(model.widths) - 1) < 1:
        raise ModelError(
            f"model convnext: {len(model.widths)} stages halve a map of {list(model.input_shape[1:])} to nothing; at "
            f"most {smallest.bit_length()} are accepted"
        )


def make(model: ModelConfig, shape: Shape) -> nn.Module:
    """Return a network of the given shape. Raises `SpecError` if there is none."""
    check_first_blocks(shape)
    return ConvNeXt(model, shape)


def layout(model: ModelConfig) -> Layout:
    """Return what the axes of the parameters run over.

    The blocks of a stage add to one stream, so they share its channels; the channels inside a block are its own. A
    stream that is mixed in parts is several sets of channels, one after another, so that a narrower network has some of
    each.
    """
    stream = _stream(model, 0)
    axes: dict[str, tuple[Axis | Joined | None, ...]] = {"stem.weight": (stream, None, None, None)}
    axes["norm.weight"] = axes["norm.bias"] = (stream,)
    for stage, depth in enumerate(model.blocks):
        for block in range(depth):
            path, before, inside = f"stages.{stage}.{block}", stream, Axis(f"stage {stage} block {block}")
            stream = _stream(model, stage)
            if stage and not block:
                axes[f"{path}.shrink.weight"] = (stream, before, None, None)
                axes[f"{path}.shrink.bias"] = (stream,)
            for branch in _kernels(model):
                mixed = _set(stage, branch)
                dense = model.mixer == "partial"
                axes[f"{path}.mix.{branch}.weight"] = (mixed, mixed if dense else None, None, None)
            axes[f"{path}.norm.weight"] = axes[f"{path}.norm.bias"] = (stream,)
            axes[f"{path}.widen.weight"] = (inside, stream, None, None)
            axes[f"{path}.widen.bias"] = (inside,)
            axes[f"{path}.narrow.weight"] = (stream, inside, None, None)
            axes[f"{path}.narrow.bias"] = (stream,)
    axes["last.weight"] = axes["last.bias"] = (stream,)
    axes["classifier.weight"], axes["classifier.bias"] = (None, stream), (None,)
    return axes


def split(mixer: str, width: int, group: int) -> tuple[int, ...]:
    """Return how many of `width` channels each branch of a mixer has, and last those that stay as they are.

    All are multiples of `group`, and of two widths the larger has no fewer in any place, so that a narrower network is
    a part of a wider one. Raises `SpecError` if "inception" has fewer than 4 groups.
    """
    if mixer == "depthwise":
        return (width,)
    if mixer == "partial":
        mixed = scaled(width, 1 / 4, group)
        return mixed, width - mixed
    groups = width // group
    if groups < len(BRANCHES) + 1:
        raise SpecError(
            f"model convnext: mixer inception needs at least {4 * group} channels in every stage, 4 groups of {group}, "
            f"not {width}"
        )
    mixed = 3 + 3 * (groups - 4) // 8
    branches = tuple((mixed + 2 - k) // 3 * group for k in range(3))
    return *branches, width - sum(branches)


def _kernels(model: ModelConfig) -> dict[str, tuple[int, int]]:
    """Return the branches of the mixer, and the kernel of each."""
    if model.mixer == "inception":
        return dict(zip(BRANCHES, [(3, 3), (1, BAND), (BAND, 1)], strict=True))
    return {"all": (model.kernel,) * 2} if model.mixer == "depthwise" else {"first": (3, 3)}


def _stream(model: ModelConfig, stage: int) -> Axis | Joined:
    if model.mixer == "depthwise":
        return _set(stage, "all")
    names, sizes = (*_kernels(model), "rest"), split(model.mixer, model.widths[stage], model.group)
    return Joined(tuple((_set(stage, name), size) for name, size in zip(names, sizes, strict=True)))


def _set(stage: int, branch: str) -> Axis:
    return Axis(f"stage {stage} {branch}")


class Mix(nn.Module):
    """Convolutions of consecutive channels, each of its own; the channels that are left stay as they are."""

    def __init__(self, kernels: dict[str, tuple[int, int]], sizes: Sequence[int], dense: bool) -> None:
        super().__init__()
        self.sizes = list(sizes)
        for (name, kernel), size in zip(kernels.items(), sizes, strict=False):
            padding = (kernel[0] // 2, kernel[1] // 2)
            self.add_module(name, nn.Conv2d(size, size, kernel, 1, padding, groups=1 if dense else size, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """Return `[n, channels, height, width]`."""
        convolutions = list(self.children())
        if len(self.sizes) == 1:
            mixed: Tensor = convolutions[0](x)
            return mixed
        parts = torch.split(x, self.sizes, 1)
        mixed_parts = [convolution(part) for convolution, part in zip(convolutions, parts, strict=False)]
        return torch.cat([*mixed_parts, *parts[len(convolutions) :]], 1)


class Block(nn.Module):
    """Mix places, normalise, widen, narrow, add; the first block of a later stage halves the map before all that."""

    def __init__(self, model: ModelConfig, inside: int, width: int, shrinks: bool) -> None:
        super().__init__()
        self.shrink: nn.Module = nn.Conv2d(inside, width, 2, 2) if shrinks else nn.Identity()
        self.mix = Mix(_kernels(model), split(model.mixer, width, model.group), model.mixer == "partial")
        middle = scaled(width, model.expand, model.group)
        self.norm = nn.GroupNorm(width // model.group, width)
        self.widen = nn.Conv2d(width, middle, 1)
        self.narrow = nn.Conv2d(middle, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return `[n, width, height, width]`, or half of that if the block halves the map."""
        x = self.shrink(x)
        y: Tensor = self.narrow(F.gelu(self.widen(self.norm(self.mix(x)))))
        return x + y


class ConvNeXt(Network):
    """A 3x3 stem, stages of `Block` that halve the map from the second on, a norm, the mean over the map, a classifier.

    `shape.blocks` says which blocks of each stage are there. Norms are by groups of channels, as in all networks here,
    and not of each place by all of its channels. Takes `[n, channels, height, width]`, gives logits `[n, classes]`.
    """

    def __init__(self, model: ModelConfig, shape: Shape) -> None:
        super().__init__()
        group, inside = model.group, shape.widths[0]
        self.stem = nn.Conv2d(model.input_shape[0], inside, 3, padding=1, bias=False)
        self.norm = nn.GroupNorm(inside // group, inside)
        stages = []
        for stage, (width, kept) in enumerate(zip(shape.widths, shape.blocks, strict=True)):
            # A block keeps the name that it has in the global model, whichever others are there.
            layers: OrderedDict[str, nn.Module] = OrderedDict()
            for block in kept:
                layers[str(block)] = Block(model, inside, width, bool(stage and not block))
                inside = width
            stages.append(nn.Sequential(layers))
        self.stages = nn.ModuleList(stages)
        self.last = nn.GroupNorm(inside // group, inside)
        self.classifier = nn.Linear(inside, model.classes)

    def enter(self, x: Tensor) -> Tensor:
        """Return the stem's map `[n, widths[0], height, width]`."""
        stem: Tensor = self.norm(self.stem(x))
        return stem

    def leave(self, x: Tensor) -> Tensor:
        """Return logits `[n, classes]`."""
        logits: Tensor = self.classifier(self.last(x).mean((2, 3)))
        return logits


ROW = NetworkRow(check, make, layout, skippable=r"^stages\.\d+\.[1-9]\d*\.")
