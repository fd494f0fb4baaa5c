"""The kernels of our own that are there on this machine."""

from functools import cache
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor

TYPES = (torch.float32,)


@cache
def kernel(name: str) -> ModuleType | None:
    """Return a module of `client/kernels` that has `available()`, or None where it is not."""
    try:
        module = import_module(f"diastole.client.kernels.{name}")
    except ImportError:
        return None
    return module if module.available() else None


def suits(x: Tensor) -> bool:
    """Return whether kernels for `[n, channels, height, width]` in channels-last memory may have a tensor."""
    return (
        not mapped()
        and x.ndim == 4
        and x.dtype in TYPES
        and x.device.type == "cpu"
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def mapped() -> bool:
    """Return whether this is inside a transform of `torch.func`, which cannot see into our kernels."""
    return bool(torch._C._are_functorch_transforms_active())
