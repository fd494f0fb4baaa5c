"""How exact a card's products and convolutions are."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

Precision = Literal["float32", "tf32", "bf16"]
"""Bits of the mantissa that factors keep: 23, 10 or 7. Sums, weights and optimisers are float32 in each."""


@contextmanager
def exactness(precision: Precision, device: torch.device) -> Iterator[None]:
    """Let all that this process computes on CUDA cards have a precision, and the same bits at every run.

    Nothing else has TF32, so on other devices nothing changes. PyTorch's own default is TF32 in convolutions.
    """
    if device.type != "cuda":
        yield
        return
    matmul, coarse = torch.backends.cuda.matmul, precision != "float32"
    before, matmul.allow_tf32 = matmul.allow_tf32, coarse
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=coarse):
            yield
    finally:
        matmul.allow_tf32 = before


def mixed(precision: Precision, device: torch.device) -> torch.autocast:
    """Return the context in which a thread trains: with bf16, products and convolutions are in bfloat16."""
    # A cache would keep the weights of a graph's first step.
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False)
