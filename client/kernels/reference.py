"""Convolution in plain PyTorch, tap by tap: what the native kernels are checked against, and what runs without them."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from diastole.client.kernels.convolver import ConvShape


def convolve(x: Tensor, weight: Tensor, shape: ConvShape) -> Tensor:
    """Return the convolution of `[n, in, height, width]` by `[out, in / groups, kh, kw]`, of any floating type."""
    (down, right), (top, left), (height, width) = shape.stride, shape.padding, shape.out_size
    groups, out = shape.groups, shape.channels[1]
    padded = F.pad(x, (left, left, top, top))
    padded = padded.reshape(x.shape[0], groups, -1, *padded.shape[2:])
    weights = weight.reshape(groups, out // groups, -1, *shape.kernel)
    total: Tensor = padded.new_zeros(x.shape[0], groups, out // groups, height, width)
    for u in range(shape.kernel[0]):
        for v in range(shape.kernel[1]):
            seen = padded[..., u : u + (height - 1) * down + 1 : down, v : v + (width - 1) * right + 1 : right]
            total = total + torch.einsum("ngihw,goi->ngohw", seen, weights[..., u, v])
    return total.flatten(1, 2)


@dataclass(frozen=True, slots=True)
class Reference:
    """Plain PyTorch as a way of computing any convolution; its gradients are autograd's."""

    name: str = "reference"

    def takes(self, shape: ConvShape) -> bool:
        """Return True."""
        return True

    def forward(self, x: Tensor, weight: Tensor, shape: ConvShape) -> Tensor:
        """Return the convolution."""
        return _laid(convolve(x.detach(), weight.detach(), shape), shape)

    def grad_input(self, gradient: Tensor, weight: Tensor, shape: ConvShape) -> Tensor:
        """Return the gradient of the input."""
        x = gradient.new_zeros(gradient.shape[0], shape.channels[0], *shape.size)
        return _laid(_gradient(lambda x: convolve(x, weight.detach(), shape), x, gradient), shape)

    def grad_weight(self, gradient: Tensor, x: Tensor, shape: ConvShape) -> Tensor:
        """Return the gradient of the weight."""
        weight = x.new_zeros(shape.channels[1], shape.channels[0] // shape.groups, *shape.kernel)
        return _gradient(lambda weight: convolve(x.detach(), weight, shape), weight, gradient)


REFERENCE = Reference()


def _gradient(forward: Callable[[Tensor], Tensor], at: Tensor, outer: Tensor) -> Tensor:
    with torch.enable_grad():
        found = torch.autograd.grad(forward(at.requires_grad_()), at, outer.detach())
    return found[0]


def _laid(image: Tensor, shape: ConvShape) -> Tensor:
    return image.contiguous(memory_format=torch.channels_last if shape.channels_last else torch.contiguous_format)
