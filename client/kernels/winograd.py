"""3x3 convolution of channels-last images at stride 1 with 2.25 times fewer multiplications (`winograd.cpp`).

How many times as fast as PyTorch (oneDNN 3.12) it is in channels-last memory; batch 32, float32, one thread of an EPYC
with AVX2 that others used a little too, least of eight interleaved calls:

    layer            forward   input   weight
    8->8 64x64           0.7     0.7      0.6
    8->16 16x16          1.0     1.3      1.0
    17->23 13x13         0.8     0.9      0.8
    16->16 32x32         1.1     1.1      1.3
    32->32 16x16         1.4     1.4      1.7
    32->64 14x14         1.5     1.4      1.8
    64->64 8x8           1.5     1.6      2.0
    64->64 16x16         1.6     1.7      2.0
    128->128 4x4         1.3     1.4      2.2
    256->256 4x4         1.1     1.2      2.3

From 32 channels on it does the work of 100 to 137 GFLOP/s on a quiet core, whose multiply-adds alone reach 92. It loses
with few channels, for which tiles cost as much as products, and with channels that are no multiple of a vector. Errors
are those of plain convolutions, below 1e-6 of the largest value. There is no version in bfloat16, in which differences
of inputs would lose too much.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from diastole.client.kernels.convolver import ConvShape
from diastole.client.kernels.operators import define, native
from diastole.client.kernels.reference import REFERENCE

FEWEST = 8
"""Channels: with fewer, laying out tiles costs more than multiplications that are saved."""

_FORWARD = define("winograd_forward")
_GRAD_INPUT = define("winograd_grad_input")
_GRAD_WEIGHT = define("winograd_grad_weight")


@dataclass(frozen=True, slots=True)
class Winograd:
    """The kernel as a way of computing a convolution in float32."""

    name: str = "winograd"

    def takes(self, shape: ConvShape) -> bool:
        """Return whether the kernel is meant for the shape: one group, 3x3, stride 1, padding up to 2, 8 channels."""
        return meant_for(shape) and shape.channels_last and _there()

    def forward(self, x: Tensor, weight: Tensor, shape: ConvShape) -> Tensor:
        """Return the convolution."""
        if not _there():
            return REFERENCE.forward(x, weight, shape)
        return _FORWARD(x, _rows(weight), _numbers(x, shape), (x.shape[0], shape.channels[1], *shape.out_size))

    def grad_input(self, gradient: Tensor, weight: Tensor, shape: ConvShape) -> Tensor:
        """Return the gradient of the input."""
        if not _there():
            return REFERENCE.grad_input(gradient, weight, shape)
        size = (gradient.shape[0], shape.channels[0], *shape.size)
        return _GRAD_INPUT(gradient, _rows(weight), _numbers(gradient, shape), size)

    def grad_weight(self, gradient: Tensor, x: Tensor, shape: ConvShape) -> Tensor:
        """Return the gradient of the weight, in channels-last memory."""
        if not _there():
            return REFERENCE.grad_weight(gradient, x, shape)
        ins, outs = shape.channels
        return _GRAD_WEIGHT(gradient, x, _numbers(x, shape), (outs, 3, 3, ins)).permute(0, 3, 1, 2)


CONVOLVER = Winograd()


def meant_for(shape: ConvShape) -> bool:
    """Return whether the kernel can compute a convolution in channels-last memory, and may be faster."""
    known = shape.groups == 1 and shape.kernel == (3, 3) and shape.stride == (1, 1) and shape.dtype == torch.float32
    fits = min(*shape.out_size, *shape.size) > 0 and min(shape.padding) >= 0 and max(shape.padding) <= 2
    return known and fits and min(shape.channels) >= FEWEST


def _there() -> bool:
    return native("winograd_forward", torch.float32) is not None


def _rows(weight: Tensor) -> Tensor:
    """Return the weight as `[out, 3, 3, in]`, which channels-last weights are already."""
    return weight.detach().permute(0, 2, 3, 1).contiguous()


def _numbers(images: Tensor, shape: ConvShape) -> tuple[int, ...]:
    sizes = (*shape.size, *shape.out_size)
    return (images.shape[0], *shape.channels, *sizes, *shape.kernel, *shape.stride, *shape.padding)
