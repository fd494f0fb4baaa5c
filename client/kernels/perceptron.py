"""Two 1x1 convolutions with GELU between them, and a sum behind them, by one kernel (`native/perceptron.cpp`).

It is the second half of a ConvNeXt's block. One by one, the layers write and read a map of several times as many
channels twelve times, forward and backward; the kernel works on some pixels at a time, which stay in the cache.
Milliseconds, forward / backward, batch 32, four times as many channels inside, one busy thread with AVX2 on which a
large matrix product runs at 53 GFLOP/s; layers one by one by PyTorch, and this:

| channels x map | PyTorch | this |
| --- | --- | --- |
| 32 x 32x32 | 26.3 / 57.7 | 18.7 / 28.3 |
| 64 x 16x16 | 18.7 / 38.5 | 14.7 / 23.2 |
| 128 x 8x8 | 16.1 / 34.0 | 12.4 / 25.5 |
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from diastole.client.kernels.groupnorm import differentiable
from diastole.client.kernels.lying import LAST, address, is_factor, kernel, lies_right, there
from diastole.models.native.library import INT, INT64, POINTER, check

SIZES = (INT64, INT64, INT64, INT)


def available() -> bool:
    """Return whether there is a kernel; without one, the function below is its reference."""
    return there("perceptron")


def perceptron(
    x: Tensor, widen: Tensor, bias: Tensor | None, narrow: Tensor, last: Tensor | None, added: Tensor
) -> Tensor:
    """Return `added` and what two 1x1 convolutions with GELU between them make of `x`.

    Args:
        x: `[n, channels, height, width]`.
        widen: weight of the first, `[inside, channels, 1, 1]`.
        bias: of the first, `[inside]`.
        narrow: weight of the second, `[channels, inside, 1, 1]`.
        last: bias of the second, `[channels]`.
        added: of the shape of `x`.

    """
    alike = added.shape == x.shape and lies_right(x) and lies_right(added)
    factors = (widen, bias, narrow, last)
    fits = alike and x.dtype == added.dtype == torch.float32 and all(map(is_factor, factors))
    if not fits or not available() or narrow.shape[:2] != (x.shape[1], len(widen)) or widen.shape[1] != x.shape[1]:
        return reference(x, widen, bias, narrow, last, added)
    result: Tensor = _Perceptron.apply(x, widen, bias, narrow, last, added)  # type: ignore[no-untyped-call]
    return result


def reference(
    x: Tensor, widen: Tensor, bias: Tensor | None, narrow: Tensor, last: Tensor | None, added: Tensor
) -> Tensor:
    """Return what the kernel gives, by PyTorch."""
    return added + F.conv2d(F.gelu(F.conv2d(x, widen, bias)), narrow, last)


class _Perceptron(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        widen: Tensor,
        bias: Tensor | None,
        narrow: Tensor,
        last: Tensor | None,
        added: Tensor,
    ) -> Tensor:
        n, channels, height, width = x.shape
        sizes = (n * height * width, channels, len(widen))
        room = _kernel("perceptron_kept", INT64, INT64)(sizes[0], sizes[2])
        kept, out = torch.empty(1024 * room), torch.empty_like(x)
        given = [address(each) for each in (x, added, widen, bias, narrow, last, kept, out)]
        check(_kernel("perceptron", *[POINTER] * 8, *SIZES)(*given, *sizes, torch.get_num_threads()))
        ctx.save_for_backward(x, widen, bias, narrow, last, kept)
        ctx.sizes = sizes
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, widen, bias, narrow, last, kept = ctx.saved_tensors
        (gradient,) = gradients
        wanted, inputs = ctx.needs_input_grad, (x, widen, bias, narrow, last)
        if torch.is_grad_enabled():
            y = reference(*inputs, torch.zeros_like(x))
            return *differentiable(y, gradient, inputs, wanted[:5]), gradient if wanted[5] else None
        gradient = gradient.contiguous(memory_format=LAST)
        found = [torch.empty_like(x), torch.empty_like(widen), torch.empty(len(widen))]
        found += [torch.empty_like(narrow), torch.empty(len(narrow))]
        given = [address(each) for each in (gradient, x, kept, widen, narrow, *found)]
        backward = _kernel("perceptron_backward", *[POINTER] * 10, *SIZES)
        check(backward(*given, *ctx.sizes, torch.get_num_threads()))
        found.append(gradient)
        return tuple(each if need else None for each, need in zip(found, wanted, strict=True))


@cache
def _kernel(name: str, *arguments: type) -> Callable[..., int]:
    return kernel("perceptron", name, torch.float32, *arguments)
