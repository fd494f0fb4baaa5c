"""The ways of computing a convolution that a plan chooses from, and those that are known to be broken."""

from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module

import torch
from torch import Tensor

from diastole.client.kernels.convolver import Convolver, ConvShape

STOCK = "stock"
"""PyTorch's own, in the memory format of the plan."""

SAFE = "channels-first"
"""What is right at every shape."""

OURS = ("depthwise", "winograd", "window")
"""Modules of `client/kernels` that export a `CONVOLVER`."""

SIMD_BLOCK = 16
"""Channels of the widest vector there is; processors with narrower ones are only more careful than they need to be."""

_ATEN = torch.ops.aten


def broken(shape: ConvShape) -> bool:
    """Return whether PyTorch's own weight gradient writes past its workspace at a shape (upstream oneDNN #6035).

    1x1, stride > 1, channels last, fewer input channels than a SIMD block: the oneDNN that torch 2.13 bundles gives
    wrong gradients, hangs or crashes.
    """
    few = shape.channels[0] // shape.groups < SIMD_BLOCK
    return shape.channels_last and shape.kernel == (1, 1) and max(shape.stride) > 1 and few


def macs(shape: ConvShape) -> int:
    """Return the multiply-accumulates of one image."""
    height, width = shape.out_size
    return height * width * shape.channels[1] * shape.channels[0] // shape.groups * shape.kernel[0] * shape.kernel[1]


@dataclass(frozen=True, slots=True)
class Stock:
    """PyTorch's own."""

    name: str = STOCK

    def takes(self, shape: ConvShape) -> bool:
        """Return whether it is not known to be broken."""
        return not broken(shape)

    def forward(self, x: Tensor, weight: Tensor, shape: ConvShape) -> Tensor:
        """Return the convolution."""
        return torch.conv2d(x, weight, None, shape.stride, shape.padding, 1, shape.groups)

    def grad_input(self, gradient: Tensor, weight: Tensor, shape: ConvShape) -> Tensor:
        """Return the gradient of the input."""
        return gradients(gradient, _like_input(gradient, shape), weight, shape, (True, False, False))[0]

    def grad_weight(self, gradient: Tensor, x: Tensor, shape: ConvShape) -> Tensor:
        """Return the gradient of the weight."""
        return gradients(gradient, x, _like_weight(x, shape), shape, (False, True, False))[1]


@dataclass(frozen=True, slots=True)
class ChannelsFirst:
    """PyTorch's own on channels-first copies: what always works, and wins where there is one input channel."""

    name: str = SAFE

    def takes(self, shape: ConvShape) -> bool:
        """Return whether it is worth a trial: of many channels the copies cost more than is won."""
        return shape.channels_last and (broken(shape) or shape.channels[0] == 1)

    def forward(self, x: Tensor, weight: Tensor, shape: ConvShape) -> Tensor:
        """Return the convolution."""
        return _last(Stock().forward(x.contiguous(), weight.contiguous(), _first(shape)))

    def grad_input(self, gradient: Tensor, weight: Tensor, shape: ConvShape) -> Tensor:
        """Return the gradient of the input."""
        return _last(Stock().grad_input(gradient.contiguous(), weight.contiguous(), _first(shape)))

    def grad_weight(self, gradient: Tensor, x: Tensor, shape: ConvShape) -> Tensor:
        """Return the gradient of the weight."""
        return Stock().grad_weight(gradient.contiguous(), x.contiguous(), _first(shape))


@dataclass(frozen=True, slots=True)
class Slice:
    """A strided 1x1 convolution as one of stride 1 on every s-th pixel: PyTorch alone, and never broken."""

    name: str = "slice"

    def takes(self, shape: ConvShape) -> bool:
        """Return whether it is a strided 1x1 convolution without padding."""
        return shape.kernel == (1, 1) and max(shape.stride) > 1 and shape.padding == (0, 0)

    def forward(self, x: Tensor, weight: Tensor, shape: ConvShape) -> Tensor:
        """Return the convolution."""
        return Stock().forward(_sliced(x, shape), weight, _dense(shape))

    def grad_input(self, gradient: Tensor, weight: Tensor, shape: ConvShape) -> Tensor:
        """Return the gradient of the input."""
        whole = _like_input(gradient, shape).zero_()
        down, right = shape.stride
        whole[:, :, ::down, ::right] = Stock().grad_input(gradient, weight, _dense(shape))
        return whole

    def grad_weight(self, gradient: Tensor, x: Tensor, shape: ConvShape) -> Tensor:
        """Return the gradient of the weight."""
        return Stock().grad_weight(gradient, _sliced(x, shape), _dense(shape))


def gradients(
    gradient: Tensor, x: Tensor, weight: Tensor, shape: ConvShape, wanted: tuple[bool, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return PyTorch's gradients of the input, the weight and a bias, those that are wanted; the others are None."""
    outs = [shape.channels[1]] if wanted[2] else None
    sizes = (shape.stride, shape.padding, (1, 1), False, (0, 0), shape.groups)
    found: tuple[Tensor, Tensor, Tensor] = _ATEN.convolution_backward(gradient, x, weight, outs, *sizes, wanted)
    return found


@cache
def convolver(name: str) -> Convolver:
    """Return a convolver by its name; "package.module:ATTRIBUTE" names one of another package."""
    if name in _BUILT_IN:
        return _BUILT_IN[name]
    where, _, attribute = name.partition(":")
    if not attribute:
        where, attribute = f"diastole.client.kernels.{name}", "CONVOLVER"
    found: Convolver = getattr(import_module(where), attribute)
    return found


def candidates(shape: ConvShape) -> list[str]:
    """Return the names of those that may be tried at a shape in channels-last memory; stock, if it may, is first."""
    names = (STOCK, *OURS, *[name for name in _BUILT_IN if name != STOCK])
    found = [name for name in names if _takes(name, shape)]
    # A trial costs time, and where both can be had, windows were not once faster by more than noise.
    return [name for name in found if name != "window" or "winograd" not in found]


def _takes(name: str, shape: ConvShape) -> bool:
    try:
        return convolver(name).takes(shape)
    except ImportError:
        return False


_BUILT_IN: dict[str, Convolver] = {each.name: each for each in (Stock(), ChannelsFirst(), Slice())}


def _format(shape: ConvShape) -> torch.memory_format:
    return torch.channels_last if shape.channels_last else torch.contiguous_format


def _like_input(gradient: Tensor, shape: ConvShape) -> Tensor:
    size = (gradient.shape[0], shape.channels[0], *shape.size)
    return torch.empty(size, dtype=gradient.dtype, device=gradient.device, memory_format=_format(shape))


def _like_weight(x: Tensor, shape: ConvShape) -> Tensor:
    size = (shape.channels[1], shape.channels[0] // shape.groups, *shape.kernel)
    return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=_format(shape))


def _last(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last)


def _first(shape: ConvShape) -> ConvShape:
    return replace(shape, channels_last=False)


def _sliced(x: Tensor, shape: ConvShape) -> Tensor:
    down, right = shape.stride
    return x[:, :, ::down, ::right].contiguous(memory_format=_format(shape))


def _dense(shape: ConvShape) -> ConvShape:
    return replace(shape, size=shape.out_size, stride=(1, 1))
