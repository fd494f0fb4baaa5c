"""Which tensors the kernels for channels-last memory may be given."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from diastole.client.errors import KernelError
from diastole.client.kernels.library import absence, function

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


def kernel(name: str, *arguments: type) -> Callable[..., int]:
    """Return a function of the native library. Raises `KernelError` where there is no library."""
    found = function(name, *arguments)
    if found is None:
        raise KernelError(f"no kernel {name}: {absence()}")
    return found
