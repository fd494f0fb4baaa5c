"""Convolution of channels-last images in window order by our own kernel (`native/window.cpp`).

How many times as fast as PyTorch (oneDNN 3.12) it is in channels-last memory, and as all of PyTorch's channels-first
layer; batch 32, float32, one thread of an EPYC with AVX2 that others used too, least of nine interleaved calls:

    layer                forward   input   weight   all three   channels first
    8->16 k3 8x8             1.0     1.3      1.4         1.2              1.2
    16->32 k3 16x16          0.8     1.0      1.1         1.0              1.1
    64->64 k3 32x32          1.0     1.0      1.3         1.1              1.1
    128->128 k3 4x4          0.8     0.9      0.9         0.9              0.9
    64->128 k3 32x32 s2      1.2     1.0      1.0         1.0              1.2
    16->32 k1 32x32 s2       0.6     1.1      0.8         0.9              2.4
    3->16 k3 32x32           1.1     1.1      1.4
    1->32 k3 28x28           0.6     1.0      1.9
    16->96 k1 32x32          0.9     1.1      1.0
    64->128 k1 16x16         0.8     0.9      0.7         0.8              1.2

It wins on few channels and in weight gradients, and loses on 1x1. The last three rows are of another day, since when
pixels of few channels are laid out four values at a time; before, weight gradients of first layers took twice the time
of PyTorch's. It is there for the strided 1x1 of few input channels, in which oneDNN writes past its workspace, and for
whatever else a plan finds to be wrong.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from diastole.client.kernels.convolver import ConvShape
from diastole.client.kernels.operators import define, native
from diastole.client.kernels.reference import REFERENCE

LARGEST_STRIDE = 8

_FORWARD = define("window_forward")
_GRAD_INPUT = define("window_grad_input")
_GRAD_WEIGHT = define("window_grad_weight")


@dataclass(frozen=True, slots=True)
class Window:
    """The kernel as a way of computing a convolution in float32."""

    name: str = "window"

    def takes(self, shape: ConvShape) -> bool:
        """Return whether the kernel knows the shape: one group, any kernel and padding, stride up to 8."""
        fits = min(*shape.out_size, *shape.size, *shape.stride) > 0 and min(shape.padding) >= 0
        known = shape.groups == 1 and max(shape.stride) <= LARGEST_STRIDE and shape.dtype == torch.float32
        return known and fits and shape.channels_last and _there()

    def forward(self, x: Tensor, weight: Tensor, shape: ConvShape) -> Tensor:
        """Return the convolution."""
        if not _there():
            return REFERENCE.forward(x, weight, shape)
        size = (x.shape[0], shape.channels[1], *shape.out_size)
        return _FORWARD(x, weight.detach().permute(3, 2, 1, 0).contiguous(), _numbers(x, shape), size)

    def grad_input(self, gradient: Tensor, weight: Tensor, shape: ConvShape) -> Tensor:
        """Return the gradient of the input."""
        if not _there():
            return REFERENCE.grad_input(gradient, weight, shape)
        size = (gradient.shape[0], shape.channels[0], *shape.size)
        return _GRAD_INPUT(gradient, weight.detach().permute(3, 2, 0, 1).contiguous(), _numbers(gradient, shape), size)

    def grad_weight(self, gradient: Tensor, x: Tensor, shape: ConvShape) -> Tensor:
        """Return the gradient of the weight."""
        if not _there():
            return REFERENCE.grad_weight(gradient, x, shape)
        (height, width), (ins, outs) = shape.kernel, shape.channels
        found = _GRAD_WEIGHT(gradient, x, _numbers(x, shape), (width, height, ins, outs))
        return found.permute(3, 2, 1, 0).contiguous()


CONVOLVER = Window()


def _there() -> bool:
    return native("window_forward", torch.float32) is not None


def _numbers(images: Tensor, shape: ConvShape) -> tuple[int, ...]:
    sizes = (*shape.size, *shape.out_size)
    return (images.shape[0], *shape.channels, *sizes, *shape.kernel, *shape.stride, *shape.padding)
