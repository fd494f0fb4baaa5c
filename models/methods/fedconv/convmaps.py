"""The two maps of FedConv: a stride-1 unpadded convolution over weight matrices, and its transpose.

A weight `[O, I, *kernel]` is seen as `P = prod(kernel)` single-channel images `[P, O, I]`, one for each kernel
position, and a vector `[O]` as one image `[1, 1, O]`. Each image has a kernel of its own, `[P, h, w]`.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

SLOPES = {"none": (1.0, 1.0), "signed": (0.85, 0.85), "paper": (0.85, 0.001)}
"""Slopes of the activations for positive and for negative values, by name; "paper" is FedConv's MLR."""

DIRECT_TAPS = 64
"""Kernels with more taps than this are applied by FFT, whose work does not grow with the taps (docs/benchmarks.md)."""


def images(weight: Tensor) -> Tensor:
    """View a weight as images: `[O, I, *kernel]` as `[P, O, I]`, `[O]` as `[1, 1, O]`."""
    if weight.dim() == 1:
        return weight.reshape(1, 1, -1)
    return weight.flatten(2).movedim(2, 0) if weight.dim() > 2 else weight.unsqueeze(0)


def weights(image: Tensor, shape: torch.Size) -> Tensor:
    """Undo `images` for a weight of `shape`."""
    return image.movedim(0, -1).reshape(shape) if len(shape) > 2 else image.reshape(shape)


def slice_kernel(large: torch.Size, small: torch.Size) -> Tensor:
    """Return kernels that take the first rows and columns: one at the origin, zeros elsewhere."""
    positions, rows, columns = images(torch.empty(large, device="meta")).shape
    _, fewer_rows, fewer_columns = images(torch.empty(small, device="meta")).shape
    kernel = torch.zeros(positions, rows - fewer_rows + 1, columns - fewer_columns + 1)
    kernel[:, 0, 0] = 1.0
    return kernel


def activate(image: Tensor, slopes: tuple[float, float], times: int) -> Tensor:
    """Multiply positive values by the first slope and negative ones by the second, `times` times over."""
    above, below = (slope**times for slope in slopes)
    return image if above == below == 1 else torch.where(image > 0, above * image, below * image)


def compress(image: Tensor, kernel: Tensor) -> Tensor:
    """Correlate `[P, O, I]` with kernels `[P, h, w]`; gives `[P, O-h+1, I-w+1]`."""
    rows, columns = image.shape[1] - kernel.shape[1] + 1, image.shape[2] - kernel.shape[2] + 1
    if kernel.shape[1] * kernel.shape[2] <= DIRECT_TAPS:
        return F.conv2d(image.unsqueeze(0), kernel.unsqueeze(1), groups=len(image)).squeeze(0)
    # A circular correlation of the image's own size does not wrap within the rows and columns that are kept.
    size = image.shape[1:]
    product = torch.fft.rfft2(image) * torch.fft.rfft2(kernel, s=size).conj()
    mapped: Tensor = torch.fft.irfft2(product, s=size)
    return mapped[:, :rows, :columns]


def dilate(image: Tensor, kernel: Tensor) -> Tensor:
    """Apply the transpose of `compress`: `[P, O', I']` with kernels `[P, h, w]` gives `[P, O'+h-1, I'+w-1]`."""
    if kernel.shape[1] * kernel.shape[2] <= DIRECT_TAPS:
        return F.conv_transpose2d(image.unsqueeze(0), kernel.unsqueeze(1), groups=len(image)).squeeze(0)
    size = (image.shape[1] + kernel.shape[1] - 1, image.shape[2] + kernel.shape[2] - 1)
    product = torch.fft.rfft2(image, s=size) * torch.fft.rfft2(kernel, s=size)
    grown: Tensor = torch.fft.irfft2(product, s=size)
    return grown
