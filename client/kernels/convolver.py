"""What a way of computing a convolution is, so that a plan can choose one for each layer and direction."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class ConvShape:
    """A two-dimensional convolution at the shape in which a layer runs it; dilation is 1.

    Attributes:
        batch: images.
        channels: `(in, out)`.
        size: `(height, width)` of the input.
        kernel: `(height, width)`.
        stride: `(down, right)`.
        padding: zeros on each side, `(top and bottom, left and right)`.
        groups: of channels that see only each other.
        dtype: of inputs, weights and outputs.
        channels_last: whether inputs and outputs lie in memory as `[n, height, width, channels]`.

    """

    batch: int
    channels: tuple[int, int]
    size: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    groups: int = 1
    dtype: torch.dtype = torch.float32
    channels_last: bool = False

    @property
    def depthwise(self) -> bool:
        """Whether each channel is convolved alone."""
        return self.groups == self.channels[0] == self.channels[1] and self.groups > 1

    @property
    def out_size(self) -> tuple[int, int]:
        """`(height, width)` of the output."""
        height, width = (
            (size + 2 * padding - kernel) // stride + 1
            for size, padding, kernel, stride in zip(self.size, self.padding, self.kernel, self.stride, strict=True)
        )
        return height, width


@runtime_checkable
class Convolver(Protocol):
    """One way of computing a convolution and its two gradients, each of which may be chosen by itself.

    Tensors are logically `[n, channels, height, width]` and `[out, in / groups, kh, kw]`, whatever their memory format.
    """

    @property
    def name(self) -> str:
        """What plans call it."""
        ...

    def takes(self, shape: ConvShape) -> bool:
        """Return whether it can compute the shape at all, on this machine."""
        ...

    def forward(self, x: Tensor, weight: Tensor, shape: ConvShape) -> Tensor:
        """Return the convolution without a bias."""
        ...

    def grad_input(self, gradient: Tensor, weight: Tensor, shape: ConvShape) -> Tensor:
        """Return the gradient of the input, given that of the output."""
        ...

    def grad_weight(self, gradient: Tensor, x: Tensor, shape: ConvShape) -> Tensor:
        """Return the gradient of the weight, given that of the output."""
        ...
