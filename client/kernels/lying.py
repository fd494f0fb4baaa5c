"""Which tensors the kernels for channels-last memory may be given."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from diastole.models.errors import KernelError
from diastole.models.native.library import absence, function

LAST = torch.channels_last
SUFFIXES = {torch.float32: "f32", torch.bfloat16: "bf16"}
"""Types of inputs and outputs, and the ends of the names of kernels for them."""


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


def kernel(name: str, *arguments: type) -> Callable[..., int]:
    """Return a function of the native library. Raises `KernelError` where there is no library."""
    found = function(name, *arguments)
    if found is None:
        raise KernelError(f"no kernel {name}: {absence()}")
    return found
