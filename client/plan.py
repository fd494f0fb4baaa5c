"""Execution plans: how a device runs the arithmetic of its training.

`reference` is the plain one: its bits are the same on every machine of a kind. `fast` gives the same results within
float tolerance, sooner: convolutions on channels-last memory, and an allocator that keeps its pages.
"""

import ctypes
import sys
from functools import cache
from typing import Literal

import torch
from torch import Tensor, nn

Plan = Literal["reference", "fast"]

# From glibc's malloc.h. Activations of a few MiB would otherwise be mapped and unmapped at every step.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEEP_BYTES = 1 << 30
# oneDNN 3.12 overruns its workspace in the weight gradient of a strided 1x1 convolution of fewer channels than this.
SAFE_CHANNELS = 16


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


def memory_format(module: nn.Module, plan: Plan) -> torch.memory_format:
    """Return the memory format to train `module` in: channels-last under `fast`, where that is safe."""
    convolutions = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]
    unsafe = any(
        max(layer.stride) > 1 and max(layer.kernel_size) == 1 and layer.in_channels < SAFE_CHANNELS
        for layer in convolutions
    )
    if plan == "reference" or unsafe or not convolutions:
        return torch.contiguous_format
    return torch.channels_last


def arrange(tensor: Tensor, form: torch.memory_format) -> Tensor:
    """Return `tensor` in `form` if it has the four dimensions for it, else unchanged."""
    return tensor.contiguous(memory_format=form) if tensor.dim() == 4 else tensor
