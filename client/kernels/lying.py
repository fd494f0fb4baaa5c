"""Which tensors the kernels for channels-last memory may be given."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from diastole.models.errors import KernelError
from diastole.models.native.build import HALF
from diastole.models.native.library import absence, function, library

LAST = torch.channels_last
SUFFIXES = {torch.float32: "f32", torch.bfloat16: "bf16"}
"""Types of inputs and outputs, and the ends of the names of kernels for them."""
PARTS = {torch.float32: "", torch.bfloat16: HALF}
"""Likewise, of the parts of our native kernels."""


def lies_right(x: Tensor) -> bool:
    """Return whether a tensor is `[n, channels, height, width]` in channels-last memory of this processor.

    A subclass of tensors, and what is inside a transform of `torch.func`, has no memory to be read.
    """
    return (
        x.ndim == 4
        and type(x) in (Tensor, nn.Parameter)
        and x.dtype in SUFFIXES
        and x.device.type == "cpu"
        and x.numel() > 0
        and x.is_contiguous(memory_format=LAST)
        and not torch._C._are_functorch_transforms_active()
    )


def is_factor(parameter: Tensor | None) -> bool:
    """Return whether a weight or bias of channels is absent, or as kernels read it."""
    return parameter is None or (parameter.dtype == torch.float32 and parameter.is_contiguous())


def address(tensor: Tensor | None) -> int | None:
    """Return where a tensor's values are; a null pointer for None."""
    return None if tensor is None else tensor.data_ptr()


def there(source: str, dtype: torch.dtype = torch.float32) -> bool:
    """Return whether there are the native kernels of a source, for tensors of a type."""
    return dtype in PARTS and library(source + PARTS[dtype]) is not None


def kernel(source: str, name: str, dtype: torch.dtype, *arguments: type) -> Callable[..., int]:
    """Return a native kernel of a source, for tensors of a type. Raises `KernelError` where there is none."""
    part = source + PARTS[dtype]
    found = function(part, f"diastole_{name}_{SUFFIXES[dtype]}", *arguments)
    if found is None:
        raise KernelError(f"no kernel {name}: {absence(part)}")
    return found
