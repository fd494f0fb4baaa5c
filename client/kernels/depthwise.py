"""Depthwise convolution of channels-last images by our own kernel (`native/depthwise.cpp`).

How many times as fast as PyTorch (oneDNN 3.12) it is in channels-last memory, and as all of PyTorch's channels-first
layer; batch 32, float32, one thread of an EPYC with AVX2 that others used too, least of nine interleaved calls:

    layer           forward   input   weight   all three   channels first
    k7 C32 32x32        1.3     1.2      3.9         2.3              7.1
    k7 C64 16x16        1.3     1.2      4.2         2.3              9.7
    k7 C256 4x4         0.5     0.8     17.0         5.9              6.5
    k5 C32 32x32        0.9     1.3      4.5         2.3              6.0
    k5 C64 32x32 s2     1.0     0.9      1.7         1.3              3.9
    k3 C64 16x16        0.8     1.1      1.3         1.1              1.6
    k3 C128 8x8         0.6     0.9      0.7         0.7              1.7
    k3 C64 32x32 s2     0.7     1.0      0.7         0.8              1.4

It wins for k = 5 and 7, above all in the weight gradient, and in bfloat16 where the processor has none (100 times); it
loses for k = 3 at stride 2 and on small maps, where a plan measures that and keeps PyTorch's.
"""

from dataclasses import dataclass

from torch import Tensor

from diastole.client.kernels.convolver import ConvShape
from diastole.client.kernels.operators import define, native
from diastole.client.kernels.reference import REFERENCE

KERNELS, STRIDES = (3, 5, 7), (1, 2)

_FORWARD = define("depthwise_forward")
_GRAD_INPUT = define("depthwise_grad_input")
_GRAD_WEIGHT = define("depthwise_grad_weight")


@dataclass(frozen=True, slots=True)
class Depthwise:
    """The kernel as a way of computing a convolution, in float32 or in bfloat16 with float32 sums."""

    name: str = "depthwise"

    def takes(self, shape: ConvShape) -> bool:
        """Return whether the kernel knows the shape: square, k 3, 5 or 7, stride 1 or 2, padding below k."""
        (kernel, other), (down, right) = shape.kernel, shape.stride
        known = kernel == other and kernel in KERNELS and down == right and down in STRIDES
        fits = min(shape.padding) >= 0 and max(shape.padding) < kernel and min(*shape.out_size, *shape.size) > 0
        return known and fits and shape.depthwise and shape.channels_last and _there(shape)

    def forward(self, x: Tensor, weight: Tensor, shape: ConvShape) -> Tensor:
        """Return the convolution."""
        if not _there(shape):
            return REFERENCE.forward(x, weight, shape)
        return _FORWARD(x, _taps(weight), _numbers(x, shape), (x.shape[0], shape.channels[1], *shape.out_size))

    def grad_input(self, gradient: Tensor, weight: Tensor, shape: ConvShape) -> Tensor:
        """Return the gradient of the input."""
        if not _there(shape):
            return REFERENCE.grad_input(gradient, weight, shape)
        size = (gradient.shape[0], shape.channels[0], *shape.size)
        return _GRAD_INPUT(gradient, _taps(weight), _numbers(gradient, shape), size)

    def grad_weight(self, gradient: Tensor, x: Tensor, shape: ConvShape) -> Tensor:
        """Return the gradient of the weight."""
        if not _there(shape):
            return REFERENCE.grad_weight(gradient, x, shape)
        channels, (kernel, _) = shape.channels[0], shape.kernel
        found = _GRAD_WEIGHT(gradient, x, _numbers(x, shape), (kernel * kernel, channels))
        return found.t().reshape(channels, 1, kernel, kernel).to(x.dtype)


CONVOLVER = Depthwise()


def _there(shape: ConvShape) -> bool:
    return native("depthwise_forward", shape.dtype) is not None


def _taps(weight: Tensor) -> Tensor:
    """Return the weight as float32 `[kernel * kernel, channels]`."""
    return weight.detach().flatten(1).t().float().contiguous()


def _numbers(images: Tensor, shape: ConvShape) -> tuple[int, ...]:
    sizes = (*shape.size, *shape.out_size)
    return (images.shape[0], shape.channels[0], *sizes, shape.kernel[0], shape.stride[0], *shape.padding)
