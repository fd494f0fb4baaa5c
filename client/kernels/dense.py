"""A dense layer of few examples and many weights by our own kernel (`native/dense.cpp`).

Weights are read, and their gradients written, from end to end once. Where plain SGD takes the step, the gradient of the
weight is added to it at once (`models/late.py`).

Milliseconds of 12,544 x 128 weights (6.4 MB) and so many examples, PyTorch / this; one thread with AVX2 at a load of 16
on two cores:

| examples | forward | gradient of the input | of the weight |
| --- | --- | --- | --- |
| 10 | 1.50 / 1.32 | 1.42 / 1.01 | 1.03 / 0.49 |
| 16 | 1.57 / 1.27 | 1.99 / 1.87 | 1.29 / 0.83 |
| 32 | 2.55 / 2.53 | 3.08 / 2.45 | 2.69 / 1.56 |

It wins with few examples, and gains nothing forward and back with 64. Matrices of some kB are PyTorch's: there a call
costs more than the product.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diastole.client.kernels.groupnorm import differentiable
from diastole.client.kernels.lying import address, is_factor, kernel, there
from diastole.models.late import collecting
from diastole.models.native.library import FLOAT, INT, INT64, POINTER, check

MOST = 32
"""Examples; of more, PyTorch's products are as fast."""

LEAST = 1 << 18
"""Weights; of fewer, calls cost more than products."""


def available() -> bool:
    """Return whether there is a kernel; without one, the function below is its reference."""
    return there("dense")


def dense(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return `[n, out]`, for inputs `[n, in]`, a weight `[out, in]` and a bias `[out]`."""
    lies = x.ndim == 2 and type(x) in (Tensor, nn.Parameter) and x.dtype == torch.float32 and x.is_cpu
    fits = lies and x.is_contiguous() and 0 < len(x) <= MOST and is_factor(weight) and is_factor(bias)
    if not fits or torch._C._are_functorch_transforms_active() or not available():
        return reference(x, weight, bias)
    result: Tensor = _Dense.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return result


def reference(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return what the kernel gives, by PyTorch."""
    return F.linear(x, weight, bias)


class _Dense(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        out = x.new_zeros(len(x), len(weight)) if bias is None else bias.expand(len(x), -1).contiguous()
        check(_plain("dense_forward")(*map(address, (x, weight, out)), *_sizes(x, weight)))
        ctx.save_for_backward(x, weight, bias)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (x, weight, bias), (gradient,), needed = ctx.saved_tensors, gradients, ctx.needs_input_grad
        if torch.is_grad_enabled():
            return tuple(differentiable(reference(x, weight, bias), gradient, (x, weight, bias), needed))
        gradient = gradient.contiguous()
        to_x = to_weight = None
        if needed[0]:
            to_x = torch.zeros_like(x)
            check(_plain("dense_grad_input")(*map(address, (gradient, weight, to_x)), *_sizes(x, weight)))
        if needed[1]:
            late = collecting()
            if late is not None and weight.is_leaf and not weight._backward_hooks:
                late.append(partial(_add, gradient, x, weight, add=True))
            else:
                to_weight = torch.empty_like(weight)
                _add(gradient, x, to_weight, 1.0)
        return to_x, to_weight, gradient.sum(0) if needed[2] else None


def _add(gradient: Tensor, x: Tensor, to: Tensor, factor: float, add: bool = False) -> None:
    """Write `factor` times the gradient of the weight, or add it to what is there."""
    *sizes, threads = _sizes(x, to)
    check(_weight()(*map(address, (gradient, x, to)), *sizes, factor, add, threads))


def _sizes(x: Tensor, weight: Tensor) -> tuple[int, int, int, int]:
    return len(x), x.shape[1], len(weight), torch.get_num_threads()


@cache
def _plain(name: str) -> Callable[..., int]:
    return kernel("dense", name, torch.float32, *[POINTER] * 3, *[INT64] * 3, INT)


@cache
def _weight() -> Callable[..., int]:
    return kernel("dense", "dense_grad_weight", torch.float32, *[POINTER] * 3, *[INT64] * 3, FLOAT, INT, INT)
