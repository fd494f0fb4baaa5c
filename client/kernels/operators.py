"""Our native convolutions as operators of torch: what the depthwise and the window kernel share.

An operator takes two tensors, the numbers of the kernel's C++ `Shape`, and the size of what it returns; it has a fake
implementation, so meta tensors, traces and torch's dispatch modes see it like any other. It has no gradient of its own:
a plan composes a forward and two gradients, each by another kernel if that is faster, in one autograd function.

`Library.define` costs 14 us a call over the bare function on an EPYC where `conv2d` takes 63, `custom_op` 49 and an
autograd function 34; so operators are defined, and the autograd function stands around them once.
"""

import ctypes
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from diastole.client.kernels.lying import kernel, there
from diastole.models.native.library import INT, POINTER, check

Operator = Callable[[Tensor, Tensor, Sequence[int], Sequence[int]], Tensor]

# The operators exist as long as this does.
_LIBRARY = torch.library.Library("diastole", "FRAGMENT")  # type: ignore[no-untyped-call]


@cache
def native(name: str, dtype: torch.dtype) -> Callable[..., int] | None:
    """Return the native kernel for tensors of a type; None where there is none. Its source is its name's first word."""
    source = name.partition("_")[0]
    return kernel(source, name, dtype, POINTER, POINTER, POINTER, POINTER, INT) if there(source, dtype) else None


def define(name: str) -> Operator:
    """Define and return `diastole::NAME`, which computes by the native kernel `diastole_NAME_TYPE`.

    Images are channels-last `[n, channels, height, width]`, and so is what is returned; but a gradient of weights
    (`..._grad_weight`) is float32 and contiguous. Where nobody watches operators, what is returned computes at once.
    """
    of_weight = name.endswith("grad_weight")

    def fake(first: Tensor, second: Tensor, shape: Sequence[int], size: Sequence[int]) -> Tensor:
        if of_weight:
            return torch.empty(size, device=first.device)
        return torch.empty(size, dtype=first.dtype, device=first.device, memory_format=torch.channels_last)

    def compute(first: Tensor, second: Tensor, shape: Sequence[int], size: Sequence[int]) -> Tensor:
        call = native(name, first.dtype)
        if call is None:
            raise RuntimeError(f"diastole::{name} is not there for {first.dtype}")
        first = first.contiguous(memory_format=torch.channels_last)
        second = second.contiguous(memory_format=torch.channels_last if of_weight else torch.contiguous_format)
        out = fake(first, second, shape, size)
        check(call(first.data_ptr(), second.data_ptr(), out.data_ptr(), _numbers(*shape), torch.get_num_threads()))
        return out

    _LIBRARY.define(f"{name}(Tensor first, Tensor second, int[] shape, int[] size) -> Tensor")  # type: ignore[no-untyped-call]
    _LIBRARY.impl(name, compute, "CPU")  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"diastole::{name}", fake, lib=_LIBRARY)
    operator: Operator = getattr(torch.ops.diastole, name).default

    def call(first: Tensor, second: Tensor, shape: Sequence[int], size: Sequence[int]) -> Tensor:
        plain = type(first) is Tensor and type(second) is Tensor and first.is_cpu and second.is_cpu
        if plain and not torch.is_grad_enabled() and not torch._C._len_torch_dispatch_stack():
            return compute(first, second, shape, size)
        return operator(first, second, shape, size)

    return call


@cache
def _numbers(*values: int) -> Any:
    return (ctypes.c_int64 * len(values))(*values)
