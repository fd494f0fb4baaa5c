"""Layers that compute what PyTorch's do, in the way that a plan says.

A layer is changed in place, by its class: its name, its parameters, its hooks and what it is an instance of stay.
Only layers whose exact type is known are changed.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diastole.client.kernels import dense, groupnorm
from diastole.client.kernels.convolver import Convolver, ConvShape
from diastole.client.plans.convolvers import SAFE, STOCK, broken, convolver, gradients
from diastole.client.plans.plan import Layer
from diastole.models.networks.mobilenet import DepthWise


class Convolution(torch.autograd.Function):
    """A convolution; forward, input gradient and weight gradient by a convolver each."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, shape: ConvShape, ways: tuple[Convolver, ...]
    ) -> Tensor:
        """Return `[n, out, height, width]`."""
        ctx.save_for_backward(x, weight)
        ctx.shape, ctx.ways = shape, ways
        if ways[0].name == STOCK:
            return torch.conv2d(x, weight, bias, shape.stride, shape.padding, 1, shape.groups)
        result = ways[0].forward(x, weight, shape)
        return result if bias is None else result.add_(bias.view(-1, 1, 1))

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the input, of the weight and of the bias."""
        x, weight = ctx.saved_tensors
        needed, shape, (_, by_input, by_weight) = ctx.needs_input_grad[:3], ctx.shape, ctx.ways
        (gradient,) = outer
        if torch.is_grad_enabled():
            # Somebody will differentiate the gradients, which only PyTorch's own allow.
            first = [tensor.contiguous() for tensor in (gradient, x, weight)]
            return *gradients(first[0], first[1], first[2], shape, needed), None, None
        if shape.channels_last:
            gradient = gradient.contiguous(memory_format=torch.channels_last)
        if by_input.name == by_weight.name == STOCK:
            return *gradients(gradient, x, weight, shape, needed), None, None
        return (
            by_input.grad_input(gradient, weight, shape) if needed[0] else None,
            by_weight.grad_weight(gradient, x, shape) if needed[1] else None,
            gradient.sum((0, 2, 3)) if needed[2] else None,
            None,
            None,
        )


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    groups: int,
    layer: Layer | None,
) -> Tensor:
    """Return a convolution in channels-last memory, computed as a plan says; without a layer, as PyTorch does."""
    if mapped():
        return F.conv2d(x, weight, bias, stride, padding, 1, groups)
    if torch.is_autocast_enabled("cpu") and x.device.type == "cpu":
        dtype = torch.get_autocast_dtype("cpu")
        x, weight, bias = x.to(dtype), weight.to(dtype), bias if bias is None else bias.to(dtype)
    x = last(x)
    weight = weight.contiguous(memory_format=torch.channels_last)
    n, channels, height, width = x.shape
    out, _, *kernel = weight.shape
    shape = ConvShape(
        n,
        (channels, out),
        (height, width),
        (kernel[0], kernel[1]),
        stride,
        padding,
        groups,
        x.dtype,
        channels_last=True,
    )
    unsafe = broken(shape)
    if layer is None and not unsafe:
        return F.conv2d(x, weight, bias, stride, padding, 1, groups)
    names = (layer.forward, layer.grad_input, layer.grad_weight) if layer else (STOCK,) * 3
    ways = tuple(convolver(SAFE if unsafe and name == STOCK else name) for name in names)
    result: Tensor = Convolution.apply(x, weight, bias, shape, ways)  # type: ignore[no-untyped-call]
    return result


def last(x: Tensor) -> Tensor:
    """Return `[n, channels, height, width]` in channels-last memory, which PyTorch sees with one channel too."""
    _, channels, height, width = x.shape
    x = x.contiguous(memory_format=torch.channels_last)
    return x if channels > 1 else x.as_strided(x.shape, (height * width, 1, width, 1))


class PlannedConv2d(nn.Conv2d):
    """`nn.Conv2d` in channels-last memory."""

    planned: Layer | None

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: A002
        if input.ndim != 4:
            plain: Tensor = super()._conv_forward(input, weight, bias)
            return plain
        return convolve(input, weight, bias, _pair(self.stride), _pair(self.padding), self.groups, self.planned)


class PlannedDepthWise(DepthWise):
    """The elastic depth-wise convolution of our own networks in channels-last memory."""

    planned: Layer | None

    def forward(self, x: Tensor) -> Tensor:
        """Return `[n, channels, height / stride, width / stride]`."""
        side = self.kernel // 2
        return convolve(x, self.taps(), None, (self.stride,) * 2, (side,) * 2, x.shape[1], self.planned)


class PlannedGroupNorm(nn.GroupNorm):
    """`nn.GroupNorm` by our own kernel for channels-last memory."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Return the input, normalised; the same shape."""
        return groupnorm.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)


class PlannedLinear(nn.Linear):
    """`nn.Linear` by our own kernel, where it is large and examples are few."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Return `[..., out]`."""
        if torch.is_autocast_enabled("cpu"):
            return super().forward(input)
        return dense.dense(input, self.weight, self.bias)


def mapped() -> bool:
    """Return whether this is inside a transform of `torch.func`, which cannot see into our kernels."""
    return bool(torch._C._are_functorch_transforms_active())


def _pair(value: Any) -> tuple[int, int]:
    first, second = value
    return int(first), int(second)
