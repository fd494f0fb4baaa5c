"""Large tensors that need not stay in memory: they lie in files without a name."""

import mmap
import os
import tempfile

import torch
from torch import Tensor

LEAST_BYTES = 32 << 20
"""Smaller ones lie in memory."""


def spilled(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Return a tensor of zeros with the type and on the device of another.

    A large one on the CPU lies in a file where temporary files go, whose pages the system writes out and reads again as
    it needs memory. The file goes with the tensor. If there is no room on the disk, the tensor lies in memory.
    """
    size = torch.Size(shape).numel() * like.dtype.itemsize
    if like.device.type != "cpu" or size < LEAST_BYTES:
        return torch.zeros(shape, dtype=like.dtype, device=like.device)
    with tempfile.TemporaryFile() as file:
        try:
            # Else a full disk would end the process, at the first value that finds no room.
            os.posix_fallocate(file.fileno(), 0, size)
            held = mmap.mmap(file.fileno(), size)
        except OSError:
            return torch.zeros(shape, dtype=like.dtype)
    return torch.frombuffer(held, dtype=like.dtype).reshape(shape)
