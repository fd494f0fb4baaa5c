"""Max-pooling over 2x2 squares in channels-last memory, with or without ReLU before it.

Autograd keeps one byte for each output and nothing else; PyTorch's pooling keeps its input and eight bytes an output,
and its ReLU an output of its own.

Milliseconds of ReLU and pooling, forward and backward, batch 32, one thread with AVX2, PyTorch channels-first /
channels-last / this: 32 x 28x28 6.96 / 2.34 / 1.28; 64 x 14x14 3.71 / 0.96 / 0.66; 8 x 32x32 2.24 / 0.89 / 0.57;
64 x 32x32 19.1 / 7.45 / 2.59; 64 x 8x8 1.27 / 0.35 / 0.31; 128 x 4x4 0.69 / 0.23 / 0.26. It loses on 4x4 maps alone,
where a call costs more than the work. Called from an `autograd.Function` without `torch.library.custom_op`, which
would add 25 microseconds to each call; tensors that only PyTorch can read go to the reference.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from diastole.client.kernels.lying import LAST, kernel, lies_right, there
from diastole.models.native.library import INT, INT64, POINTER, check

NONE = 4
"""The byte of an output that ReLU made 0; others say which of the four inputs it came from, in row-major order."""


def available(dtype: torch.dtype = torch.float32) -> bool:
    """Return whether there are kernels for tensors of a type; without them, those below are references."""
    return there("pooling", dtype)


def relu_pool(x: Tensor) -> Tensor:
    """Return `pool` of what ReLU gives."""
    return _run(x, relu=True)


def pool(x: Tensor) -> Tensor:
    """Return the maxima of 2x2 squares of `[n, channels, height, width]`: `[n, channels, height // 2, width // 2]`."""
    return _run(x, relu=False)


def reference(x: Tensor, relu: bool) -> Tensor:
    """Return what the kernel gives, by PyTorch."""
    return F.max_pool2d(F.relu(x) if relu else x, 2)


def reference_spread(gradient: Tensor, source: Tensor, height: int, width: int) -> Tensor:
    """Return the gradient of the input by PyTorch, given that of the output and the bytes of the forward pass.

    It can be differentiated again.
    """
    n, channels, down, right = gradient.shape
    parts = [torch.where(source == k, gradient, 0.0) for k in range(4)]
    squares = torch.stack(parts, -1).view(n, channels, down, right, 2, 2)
    whole = squares.transpose(3, 4).reshape(n, channels, 2 * down, 2 * right)
    return F.pad(whole, (0, width % 2, 0, height % 2))


def _run(x: Tensor, relu: bool) -> Tensor:
    if not lies_right(x) or min(x.shape[2:]) < 2 or not available(x.dtype):
        return reference(x, relu)
    result: Tensor = _Pool.apply(x, relu)  # type: ignore[no-untyped-call]
    return result


class _Pool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, relu: bool) -> Tensor:
        n, channels, height, width = ctx.shape = x.shape
        size = (n, channels, height // 2, width // 2)
        out = torch.empty(size, dtype=x.dtype, memory_format=LAST)
        source = torch.empty(size, dtype=torch.uint8, memory_format=LAST)
        given = [each.data_ptr() for each in (x, out, source)]
        check(_forward(x.dtype)(*given, n, height, width, channels, relu, torch.get_num_threads()))
        ctx.save_for_backward(source)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (source,) = ctx.saved_tensors
        (gradient,) = gradients
        n, channels, height, width = ctx.shape
        if torch.is_grad_enabled():
            return reference_spread(gradient, source, height, width), None
        gradient = gradient.contiguous(memory_format=LAST)
        out = torch.empty(ctx.shape, dtype=gradient.dtype, memory_format=LAST)
        given = [each.data_ptr() for each in (gradient, source, out)]
        check(_backward(gradient.dtype)(*given, n, height, width, channels, torch.get_num_threads()))
        return out, None


@cache
def _forward(dtype: torch.dtype) -> Callable[..., int]:
    return kernel("pooling", "pool", dtype, *[POINTER] * 3, *[INT64] * 4, INT, INT)


@cache
def _backward(dtype: torch.dtype) -> Callable[..., int]:
    return kernel("pooling", "spread", dtype, *[POINTER] * 3, *[INT64] * 4, INT)
