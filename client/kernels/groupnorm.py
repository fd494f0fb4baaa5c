"""GroupNorm in channels-last memory, with or without ReLU or hard swish behind it, or something that is added.

PyTorch's GroupNorm is several times slower in channels-last memory than in channels-first, which loses what
convolutions gain there. How many times the faster of the two takes, forward and backward, batch 32, groups of 4
channels, one thread with AVX2 at a load of 10 (`diastole bench kernels`):

| channels x map | norm | and ReLU | and hard swish | plus a map, and ReLU |
| --- | --- | --- | --- | --- |
| 32 x 28x28 | 1.4 | 0.8 | 0.9 | 0.9 |
| 64 x 14x14 | 1.6 | 1.1 | 1.2 | 1.3 |
| 8 x 32x32 | 1.6 | 0.8 | 1.0 | 0.9 |
| 64 x 32x32 | 1.7 | 1.1 | 1.0 | 0.9 |
| 64 x 8x8 | 2.1 | 1.9 | 1.8 | 1.1 |
| 512 x 4x4 | 1.8 | 1.1 | 1.4 | 1.5 |

It wins everywhere against channels-last memory. Against channels-first, where nobody has to change the order in
memory and a group is one piece that stays in the nearest cache, it loses alone and on small maps, and wins with what
follows on larger ones. With maps and gradients in the cache it takes a third less time than when factors were read
again for each vector (64 x 14x14: 0.15 ms forward instead of 0.23, 0.34 backward instead of 0.47); fetching blocks
ahead gained nothing that could be measured. It is more precise: sums of blocks are joined in double precision, and
differences from a mean come before products.
"""

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from diastole.client.kernels.lying import LAST, address, is_factor, kernel, lies_right, there
from diastole.models.native.library import INT, INT64, POINTER, check

After = Literal["nothing", "relu", "hardswish"]
"""What follows the norm, by the number that the kernel knows it by."""
_CODES: dict[After, int] = {"nothing": 0, "relu": 1, "hardswish": 2}


def available(dtype: torch.dtype = torch.float32) -> bool:
    """Return whether there are kernels for tensors of a type; without them, those below are references."""
    return there("groupnorm", dtype)


def group_norm(
    x: Tensor, groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """Return `[n, channels, height, width]`, each group of channels of an image with mean 0 and variance 1.

    `weight` and `bias` `[channels]` follow, if they are there.
    """
    return _run(x, groups, weight, bias, eps, "nothing")


def group_norm_then(
    x: Tensor,
    after: After,
    groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Return what follows `group_norm`. Autograd keeps the input alone."""
    return _run(x, groups, weight, bias, eps, after)


def group_norm_add(
    x: Tensor,
    added: Tensor,
    after: Literal["nothing", "relu"],
    groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Return what follows `group_norm` plus `added`, of the shape of `x`: nothing or ReLU.

    Autograd keeps the input, and with ReLU the output.
    """
    fits = lies_right(added) and added.shape == x.shape and added.dtype == x.dtype
    if not fits:
        return _then(_run(x, groups, weight, bias, eps, "nothing") + added, after)
    return _run(x, groups, weight, bias, eps, after, added)


def reference(
    x: Tensor,
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    after: After,
    added: Tensor | None = None,
) -> Tensor:
    """Return what the kernel gives, by PyTorch."""
    y = F.group_norm(x, groups, weight, bias, eps)
    return _then(y if added is None else y + added, after)


def _then(y: Tensor, after: After) -> Tensor:
    return F.relu(y) if after == "relu" else F.hardswish(y) if after == "hardswish" else y


def _run(
    x: Tensor,
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    after: After,
    added: Tensor | None = None,
) -> Tensor:
    fits = lies_right(x) and x.shape[1] % groups == 0 and is_factor(weight) and is_factor(bias)
    if not fits or not available(x.dtype):
        return reference(x, groups, weight, bias, eps, after, added)
    result: Tensor = _GroupNorm.apply(x, weight, bias, added, groups, eps, after)  # type: ignore[no-untyped-call]
    return result


class _GroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        added: Tensor | None,
        groups: int,
        eps: float,
        after: After,
    ) -> Tensor:
        n, channels, height, width = x.shape
        out = torch.empty_like(x)
        means, rstds = torch.empty(n, groups, dtype=torch.float64), torch.empty(n, groups)
        given = [address(each) for each in (x, added, weight, bias, out, means, rstds)]
        shape = (n, height * width, channels, groups)
        check(_forward(x.dtype)(*given, *shape, eps, _CODES[after], torch.get_num_threads()))
        kept = out if added is not None and after == "relu" else None
        ctx.save_for_backward(x, weight, bias, kept, means, rstds)
        ctx.groups, ctx.eps, ctx.after = groups, eps, after
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, kept, means, rstds = ctx.saved_tensors
        (gradient,) = gradients
        wanted = ctx.needs_input_grad[:4]
        if torch.is_grad_enabled():
            if kept is not None:
                gradient = gradient * (kept > 0)
            y = reference(x, ctx.groups, weight, bias, ctx.eps, ctx.after if kept is None else "nothing")
            found = differentiable(y, gradient, (x, weight, bias), wanted[:3])
            return *found, gradient if wanted[3] else None, None, None, None
        n, channels, height, width = x.shape
        gradient = gradient.contiguous(memory_format=LAST)
        out = torch.empty_like(x)
        to_added = kept if kept is None else torch.empty_like(x)
        parameters = torch.empty(n, 2, channels)
        tensors = (gradient, x, kept, weight, bias, means, rstds, out, to_added, parameters)
        shape = (n, height * width, channels, ctx.groups)
        check(_backward(x.dtype)(*map(address, tensors), *shape, _CODES[ctx.after], torch.get_num_threads()))
        to_weight, to_bias = parameters.sum(0)
        found = [out, to_weight, to_bias, gradient if to_added is None else to_added]
        return *[each if need else None for each, need in zip(found, wanted, strict=True)], None, None, None


def differentiable(
    y: Tensor, gradient: Tensor, inputs: tuple[Tensor | None, ...], needed: tuple[bool, ...]
) -> list[Tensor | None]:
    """Return gradients of the inputs that can be differentiated again, which only PyTorch's own can."""
    wanted = [each for each, need in zip(inputs, needed, strict=True) if need and each is not None]
    found = iter(torch.autograd.grad(y, wanted, gradient, create_graph=True))
    return [next(found) if need else None for need in needed]


@cache
def _forward(dtype: torch.dtype) -> Callable[..., int]:
    return kernel("groupnorm", "normalise", dtype, *[POINTER] * 7, *[INT64] * 4, ctypes.c_double, INT, INT)


@cache
def _backward(dtype: torch.dtype) -> Callable[..., int]:
    return kernel("groupnorm", "differentiate", dtype, *[POINTER] * 10, *[INT64] * 4, INT, INT)
