"""Clipping: a step's gradient is shortened to a largest length (Pascanu, Mikolov & Bengio, ICML 2013)."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

TINY = 1e-6
"""Added to a length, as in `torch.nn.utils.clip_grad_norm_`, so that none is divided by zero."""


def clipped(gradients: Sequence[Tensor], most: float, *, stacked: bool = False) -> list[Tensor]:
    """Return gradients whose L2 norm, of all of them together, is at most `most`, with the bits of torch's own.

    They are copies: two weights may have one gradient between them. If the gradients of many devices are `stacked`,
    `[devices, *shape]`, each device's are clipped by their own norm, up to float tolerance.
    """
    gradients = list(gradients)
    if not gradients:
        return []
    if not stacked:
        scale = (most / (get_total_norm(gradients) + TINY)).clamp(max=1.0)
        return list(torch._foreach_mul(gradients, scale))
    squares = [each.reshape(len(each), -1).square().sum(1) for each in gradients]
    scale = (most / (torch.stack(squares).sum(0).sqrt() + TINY)).clamp(max=1.0)
    return list(torch._foreach_mul(gradients, [scale.view(-1, *[1] * (each.ndim - 1)) for each in gradients]))
