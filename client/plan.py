"""Execution plans: how a device runs the arithmetic of its training.

`reference` is the plain one: its bits are the same on every machine of a kind. `fast` gives the same results within
float tolerance, sooner on a CPU: a max-pooling that vectorises, and an allocator that keeps its pages. Channels-last
memory is not part of it: what convolutions gain, GroupNorm loses there (docs/benchmarks.md).
"""

import ctypes
import sys
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn

ExecutionPlan = Literal["reference", "fast"]
"""How a device runs the arithmetic of its training."""

# From glibc's malloc.h. Activations of a few MiB would otherwise be mapped and unmapped at every step.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEEP_BYTES = 1 << 30


@cache
def keep_pages() -> bool:
    """Tell glibc's allocator to keep freed memory; False where there is no glibc. For the whole process."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, KEEP_BYTES) and mallopt(M_TRIM_THRESHOLD, KEEP_BYTES))


def accelerate(module: nn.Module) -> None:
    """Replace, in place, layers that have a faster equivalent on a CPU: 2x2 max-pooling of stride 2."""
    for name, child in module.named_children():
        if isinstance(child, nn.MaxPool2d) and _is_two_by_two(child):
            setattr(module, name, _Pool())
        else:
            accelerate(child)


def _is_two_by_two(pool: nn.MaxPool2d) -> bool:
    pairs = (pool.kernel_size, pool.stride, pool.padding, pool.dilation)
    return [p if isinstance(p, tuple) else (p, p) for p in pairs] == [(2, 2), (2, 2), (0, 0), (1, 1)] and not (
        pool.return_indices or pool.ceil_mode
    )


class _Pool(nn.Module):
    """Max-pooling of `[n, channels, height, width]` over 2x2 squares; an odd last row or column is dropped."""

    def forward(self, x: Tensor) -> Tensor:
        """Return `[n, channels, height // 2, width // 2]`."""
        pooled: Tensor = _MaxOfFour.apply(x)  # type: ignore[no-untyped-call]
        return pooled


class _MaxOfFour(torch.autograd.Function):
    """Maximum over rows, then over columns: whole rows vectorise, which torch's kernel does not.

    Of equal values the left one, then the upper one, gets the gradient; torch takes the upper one first.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        height, width = x.shape[2] // 2 * 2, x.shape[3] // 2 * 2
        upper, lower = x[:, :, 0:height:2, :width], x[:, :, 1:height:2, :width]
        rows = torch.maximum(upper, lower)
        left, right = rows[..., ::2], rows[..., 1::2]
        ctx.save_for_backward(lower > upper, right > left)
        ctx.shape = x.shape
        return torch.maximum(left, right)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        from_lower, from_right = ctx.saved_tensors
        (gradient,) = gradients
        n, channels, height, width = ctx.shape
        rows = gradient.new_empty(n, channels, height // 2, width // 2, 2)
        torch.mul(gradient, from_right, out=rows[..., 1])
        torch.sub(gradient, rows[..., 1], out=rows[..., 0])
        flat = rows.view(n, channels, height // 2, width // 2 * 2)
        squares = gradient.new_empty(n, channels, height // 2, 2, width // 2 * 2)
        torch.mul(flat, from_lower, out=squares[:, :, :, 1])
        torch.sub(flat, squares[:, :, :, 1], out=squares[:, :, :, 0])
        pooled = squares.view(n, channels, height // 2 * 2, width // 2 * 2)
        return nn.functional.pad(pooled, (0, width % 2, 0, height % 2)) if width % 2 or height % 2 else pooled
