"""Depthwise convolution tap by tap: slow and obvious, but in float64 not as slow as PyTorch's own."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from diastole.client.kernels.convolver import ConvShape


@dataclass(frozen=True, slots=True)
class Taps:
    """Depthwise convolution as a sum over the taps of the kernel."""

    name: str = "taps"

    def takes(self, shape: ConvShape) -> bool:
        """Return whether each channel is convolved alone."""
        return shape.depthwise

    def forward(self, x: Tensor, weight: Tensor, shape: ConvShape) -> Tensor:
        """Return the convolution."""
        padded = _padded(x, shape)
        return sum((weight[None, :, :, i, j, None] * view for i, j, view in _views(padded, shape)), x.new_zeros(()))

    def grad_input(self, gradient: Tensor, weight: Tensor, shape: ConvShape) -> Tensor:
        """Return the gradient of the input."""
        (height, width), (below, right) = shape.size, shape.padding
        padded = _padded(gradient.new_zeros(gradient.shape[0], shape.channels[0], height, width), shape)
        for i, j, view in _views(padded, shape):
            view += weight[None, :, :, i, j, None] * gradient
        return padded[:, :, below : below + height, right : right + width]

    def grad_weight(self, gradient: Tensor, x: Tensor, shape: ConvShape) -> Tensor:
        """Return the gradient of the weight."""
        found = x.new_empty(shape.channels[1], 1, *shape.kernel)
        for i, j, view in _views(_padded(x, shape), shape):
            found[:, 0, i, j] = (view * gradient).sum((0, 2, 3))
        return found


def _padded(x: Tensor, shape: ConvShape) -> Tensor:
    (below, right) = shape.padding
    return F.pad(x, (right, right, below, below))


def _views(padded: Tensor, shape: ConvShape) -> Iterator[tuple[int, int, Tensor]]:
    """Yield each tap of the kernel, and the inputs that it is multiplied with."""
    (height, width), (down, right) = shape.out_size, shape.stride
    for i in range(shape.kernel[0]):
        for j in range(shape.kernel[1]):
            rows, columns = slice(i, i + down * (height - 1) + 1, down), slice(j, j + right * (width - 1) + 1, right)
            yield i, j, padded[:, :, rows, columns]
