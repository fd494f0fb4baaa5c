"""Modules whose layers are computed several at a time, or by a kernel of our own that is no layer.

GroupNorm and ReLU or hard swish are one, with a max-pooling behind them or a sum between them; so are two 1x1
convolutions with GELU between them and a sum behind them.

Each looks, whenever it runs, at what its layers are then. Those that a plan did not change, and those that somebody
watches by hooks, run one by one as ever.
"""

from typing import Any, Literal, TypeGuard, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diastole.client.kernels import gelu, groupnorm, normpool, perceptron
from diastole.client.kernels.lying import lies_right
from diastole.client.plans.layers import PlannedConv2d, PlannedGroupNorm
from diastole.client.plans.pools import PlannedPool, pooled
from diastole.models.networks.convnext import Block
from diastole.models.networks.mobilenet import InvertedBlock, MobileNet
from diastole.models.networks.resnet import ResidualBlock, ResNet


class FusedSequential(nn.Sequential):
    """`nn.Sequential` that takes GroupNorm, ReLU and a 2x2 max-pooling, or two neighbours of these, at once."""

    def forward(self, x: Tensor) -> Tensor:
        """Return what the last layer gives."""
        layers = list(self)
        kinds = [None if _watched(layer) else type(layer) for layer in layers]
        at = 0
        while at < len(layers):
            layer: Any = layers[at]
            if kinds[at : at + 3] == [PlannedGroupNorm, nn.ReLU, PlannedPool] and lies_right(x):
                x = normpool.group_norm_relu_pool(x, layer.num_groups, layer.weight, layer.bias, layer.eps)
                at += 3
            elif kinds[at : at + 2] == [PlannedGroupNorm, nn.ReLU]:
                x = norm_then(layer, x, "relu")
                at += 2
            elif kinds[at : at + 2] == [nn.ReLU, PlannedPool]:
                x = pooled(x, after_relu=True)
                at += 2
            else:
                x = layer(x)
                at += 1
        return x


class FusedResidualBlock(ResidualBlock):
    """A block of a residual network."""

    def forward(self, x: Tensor) -> Tensor:
        """Return `[n, outside, height / stride, width / stride]`."""
        y = norm_then(self.norm1, self.conv1(x), "relu")
        y, norm, shortcut = self.conv2(y), self.norm2, self.shortcut(x)
        if not _ours(norm):
            return F.relu(norm(y) + shortcut)
        return groupnorm.group_norm_add(y, shortcut, "relu", norm.num_groups, norm.weight, norm.bias, norm.eps)


class FusedResNet(ResNet):
    """A residual network."""

    def enter(self, x: Tensor) -> Tensor:
        """Return the stem's map `[n, widths[0], height, width]`."""
        return norm_then(self.norm, self.stem(x), "relu")


class FusedInvertedBlock(InvertedBlock):
    """A block of a mobilenet."""

    def forward(self, x: Tensor) -> Tensor:
        """Return `[n, outside, height / stride, width / stride]`."""
        y = self._active(self.norm1, self.expand(x))
        y = self.project(self.squeeze(self._active(self.norm2, self.depthwise(y))))
        norm = self.norm3
        if not self.shortcut:
            return cast("Tensor", norm(y))
        if not _ours(norm):
            return cast("Tensor", x + norm(y))
        return groupnorm.group_norm_add(y, x, "nothing", norm.num_groups, norm.weight, norm.bias, norm.eps)

    def _active(self, norm: nn.Module, y: Tensor) -> Tensor:
        kind = None if _watched(self.activation) else type(self.activation)
        if kind is nn.Hardswish or kind is nn.ReLU:
            return norm_then(norm, y, "relu" if kind is nn.ReLU else "hardswish")
        return cast("Tensor", self.activation(norm(y)))


class FusedMobileNet(MobileNet):
    """A mobilenet."""

    def enter(self, x: Tensor) -> Tensor:
        """Return the stem's map `[n, widths[0], height, width]`."""
        return norm_then(self.norm, self.stem(x), "hardswish")


class FusedBlock(Block):
    """A block of a ConvNeXt."""

    def forward(self, x: Tensor) -> Tensor:
        """Return `[n, width, height, width]`, or half of that if the block halves the map."""
        x = self.shrink(x)
        y, widen, narrow = self.norm(self.mix(x)), self.widen, self.narrow
        half = torch.is_autocast_enabled("cpu")
        if half or any(type(layer) is not PlannedConv2d or _watched(layer) for layer in (widen, narrow)):
            z: Tensor = narrow(gelu.gelu(widen(y)))
            return x + z
        return perceptron.perceptron(y, widen.weight, widen.bias, narrow.weight, narrow.bias, x)


FUSED: dict[type[nn.Module], type[nn.Module]] = {
    nn.Sequential: FusedSequential,
    ResidualBlock: FusedResidualBlock,
    ResNet: FusedResNet,
    InvertedBlock: FusedInvertedBlock,
    MobileNet: FusedMobileNet,
    Block: FusedBlock,
}
"""By the exact type of what a plan may change."""


def norm_then(norm: nn.Module, x: Tensor, after: Literal["relu", "hardswish"]) -> Tensor:
    """Return the ReLU or hard swish of what a norm gives."""
    if not _ours(norm):
        return F.relu(norm(x)) if after == "relu" else F.hardswish(norm(x))
    return groupnorm.group_norm_then(x, after, norm.num_groups, norm.weight, norm.bias, norm.eps)


def _ours(norm: nn.Module) -> TypeGuard[PlannedGroupNorm]:
    """Return whether a norm is computed by our kernel, and nobody watches it alone."""
    return type(norm) is PlannedGroupNorm and not _watched(norm)


def _watched(layer: nn.Module) -> bool:
    """Return whether somebody looks at what goes into or comes out of a layer."""
    return bool(layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks)
