"""Layers of many devices side by side in the channels, `[batch, devices * channels, ...]`."""

from collections.abc import Callable
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrize import is_parametrized

from diastole.simulations.engines.normed import KINDS as NORMS

Convolution = Literal["grouped", "unfolded"]
"""How a convolution with weights of each device is computed: as one with groups, or as one batched product."""


KINDS = (nn.Conv1d, nn.Conv2d, nn.GroupNorm, nn.Linear)


def group(module: nn.Module, convolution: Convolution = "grouped") -> nn.Module | None:
    """Replace, in place, every layer with parameters by its grouped form; None if one has no such form."""
    for name, child in module.named_children():
        if is_parametrized(child) or (isinstance(child, KINDS) and "weight" not in child._parameters):
            return None
        if isinstance(child, nn.Conv1d | nn.Conv2d) and child.padding_mode == "zeros":
            unfolds = convolution == "unfolded" and isinstance(child, nn.Conv2d) and not isinstance(child.padding, str)
            setattr(module, name, _Unfolded(cast(nn.Conv2d, child)) if unfolds else _Conv(child))
        elif isinstance(child, nn.GroupNorm):
            setattr(module, name, _Norm(child))
        elif isinstance(child, nn.Linear):
            setattr(module, name, _Linear(child))
        elif type(child) in NORMS and not child.track_running_stats:
            # Channels are normalised one by one; `normed` leaves out what fills a batch up.
            continue
        elif next(child.parameters(recurse=False), None) is not None or group(child, convolution) is None:
            return None
    return module


class _Layer(nn.Module):
    """A layer whose parameters are `[devices, *shape]`, for `[batch, devices * channels, ...]`."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        for name in ("weight", "bias"):
            self.register_parameter(name, getattr(layer, name))


class _Conv(_Layer):
    def __init__(self, layer: nn.Conv1d | nn.Conv2d) -> None:
        super().__init__(layer)
        self.run: Callable[..., Tensor] = F.conv1d if isinstance(layer, nn.Conv1d) else F.conv2d
        self.settings = (layer.stride, layer.padding, layer.dilation)
        self.groups = layer.groups

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.flatten()
        return self.run(x, self.weight.flatten(0, 1), bias, *self.settings, len(self.weight) * self.groups)


class _Unfolded(_Layer):
    """Windows as columns, and one product for each device and group: libraries are slow at many small groups."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__(layer)
        self.kernel, self.stride = layer.kernel_size, layer.stride
        self.padding, self.dilation = cast(tuple[int, int], layer.padding), layer.dilation
        self.groups = layer.groups

    def forward(self, x: Tensor) -> Tensor:
        devices, outputs = self.weight.shape[:2]
        every = devices * self.groups
        columns = F.unfold(x, self.kernel, self.dilation, self.padding, self.stride)
        columns = columns.view(len(x), every, -1, columns.shape[2]).permute(1, 2, 0, 3).flatten(2)
        found = torch.bmm(self.weight.reshape(every, outputs // self.groups, -1), columns)
        if self.bias is not None:
            found = found + self.bias.view(every, -1, 1)
        sides = [
            (x.shape[2 + k] + 2 * self.padding[k] - self.dilation[k] * (self.kernel[k] - 1) - 1) // self.stride[k] + 1
            for k in range(2)
        ]
        return found.view(devices * outputs, len(x), *sides).transpose(0, 1).contiguous()


class _Norm(_Layer):
    def __init__(self, layer: nn.GroupNorm) -> None:
        super().__init__(layer)
        self.groups, self.eps = layer.num_groups, layer.eps
        self.channels = layer.num_channels

    def forward(self, x: Tensor) -> Tensor:
        devices = x.shape[1] // self.channels
        weight, bias = (None if p is None else p.flatten() for p in (self.weight, self.bias))
        return F.group_norm(x, devices * self.groups, weight, bias, self.eps)


class _Linear(_Layer):
    def forward(self, x: Tensor) -> Tensor:
        rows = x.view(len(x), len(self.weight), -1).transpose(0, 1)
        product = torch.bmm(rows, self.weight.transpose(1, 2))
        if self.bias is not None:
            product = product + self.bias.unsqueeze(1)
        return product.transpose(0, 1).flatten(1)
