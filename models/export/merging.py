"""Consecutive convolutions as one, where nothing but an affine map of each channel lies between them."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Conv = nn.Conv1d | nn.Conv2d
LARGEST = 9
"""The largest kernel that merging makes."""


def can_merge(layer: nn.Module) -> bool:
    """Return whether a layer is a convolution that can be merged with another."""
    return (
        isinstance(layer, Conv)
        and layer.groups == 1
        and set(layer.dilation) == {1}
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
    )


def merge(first: Conv, scale: Tensor, shift: Tensor, second: Conv) -> Conv:
    """Return one convolution for `second(scale * first(x) + shift)`.

    `first` has kernels `[inside, in, *k1]`, `second` `[out, inside, *k2]`; the result has kernels of
    `k1 + (k2 - 1) * stride`. Where `second` pads, it pads with zeros, and one convolution cannot know: outputs there
    differ. Everywhere else they are the same.

    Args:
        first: runs first.
        scale: of its outputs, `[inside]`.
        shift: of them, likewise.
        second: runs behind.

    """
    flat = F.conv_transpose1d if isinstance(first, nn.Conv1d) else F.conv_transpose2d
    places = [1] * len(first.kernel_size)
    inner = first.weight * scale.view(-1, 1, *places)
    weight = flat(second.weight, inner, stride=first.stride)
    bias = shift if first.bias is None else shift + scale * first.bias
    total = second.weight.flatten(2).sum(2) @ bias + (0 if second.bias is None else second.bias)
    before, after = (tuple(int(each) for each in layer.padding) for layer in (first, second))
    strides = tuple(one * other for one, other in zip(first.stride, second.stride, strict=True))
    paddings = tuple(one + stride * other for one, stride, other in zip(before, first.stride, after, strict=True))
    kind = nn.Conv1d if isinstance(first, nn.Conv1d) else nn.Conv2d
    made = kind(first.in_channels, second.out_channels, tuple(weight.shape[2:]), strides, paddings)  # type: ignore[arg-type]
    made.weight, made.bias = (nn.Parameter(each.detach().contiguous(), False) for each in (weight, total))
    return made


def scaled(layer: Conv, scale: Tensor, shift: Tensor) -> Conv:
    """Return a convolution for `scale * layer(x) + shift`."""
    kind = nn.Conv1d if isinstance(layer, nn.Conv1d) else nn.Conv2d
    made = kind(layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding)  # type: ignore[arg-type]
    bias = shift if layer.bias is None else shift + scale * layer.bias
    weight = layer.weight * scale.view(-1, 1, *[1] * len(layer.kernel_size))
    made.weight, made.bias = (nn.Parameter(each.detach().contiguous(), False) for each in (weight, bias))
    return made


def affine(before: Tensor, after: Tensor, axis: int = 1) -> tuple[Tensor, Tensor]:
    """Return each channel's scale and shift, `[channels]`, that take `before` closest to `after` in the least squares.

    A channel that does not vary gets a scale of 0.
    """
    x, y = (each.detach().movedim(axis, 0).flatten(1).double() for each in (before, after))
    mean, goal = x.mean(1), y.mean(1)
    x, y = x - mean[:, None], y - goal[:, None]
    power = (x * x).sum(1)
    scale = torch.where(power > 1e-12, (x * y).sum(1) / power.clamp(min=1e-12), 0.0)
    return scale.float(), (goal - scale * mean).float()


class Affine(nn.Module):
    """Scales and shifts each channel: what is left of a block that was taken out."""

    def __init__(self, scale: Tensor, shift: Tensor, axis: int) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(scale, False), nn.Parameter(shift, False)
        self.axis = axis

    def forward(self, x: Tensor) -> Tensor:
        """Return activations of the same shape."""
        shape = [1] * x.ndim
        shape[self.axis] = -1
        return x * self.scale.view(shape) + self.shift.view(shape)
