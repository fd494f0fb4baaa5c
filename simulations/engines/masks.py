"""Dropout of many devices in one program: a device's masks are a function of its task's seed, the step and the layer.

`models.dropout.Dropout` draws from a generator on the CPU, one device after another: for fifty devices at once that
takes longer than a card's step. Here a mask is a hash of a counter (SplitMix64, Steele et al., OOPSLA 2014; counters as
in Salmon et al., SC 2011), computed where the activations are. So the masks are others than those of the loop, drawn
from the same seed, and the same on every device, for every chunk and for any number of cards.
"""

from math import prod

import torch
from torch import Tensor, nn

from diastole.models.dropout import Dropout

GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
FIRST = 0xBF58476D1CE4E5B9 - (1 << 64)
SECOND = 0x94D049BB133111EB - (1 << 64)


def hashed(z: Tensor) -> Tensor:
    """Return SplitMix64's hash of int64 numbers, any shape."""
    # An arithmetic shift would bring in the sign.
    z = (z ^ ((z >> 30) & ((1 << 34) - 1))) * FIRST
    z = (z ^ ((z >> 27) & ((1 << 37) - 1))) * SECOND
    return z ^ ((z >> 31) & ((1 << 33) - 1))


def keys(seeds: Tensor, step: Tensor) -> Tensor:
    """Return what the masks of a step are made of, int64 `[devices]`; `seeds` are the tasks', `step` counts from 1."""
    return hashed(seeds + step * GOLDEN)


class Mask(nn.Module):
    """A layer of dropout, for one device of many (under `vmap`) or, `side_by_side`, for all in the channels.

    `key` has no axes for one device, and is `[devices]` for all.
    """

    key: Tensor

    def __init__(self, layer: Dropout, number: int, *, side_by_side: bool = False) -> None:
        super().__init__()
        self.limit, self.maps = round(layer.p * 256), layer.maps
        self.number, self.side_by_side = number, side_by_side

    def forward(self, x: Tensor) -> Tensor:
        """Return `x`, `[batch, *shape]` or `[batch, devices * channels, ...]`, with a share of the values dropped."""
        devices = len(self.key) if self.side_by_side else 1
        shape = [len(x), x.shape[1] // devices, *([1] * (x.ndim - 2) if self.maps else x.shape[2:])]
        key = hashed(self.key + self.number)[..., None]
        words = torch.arange(1, -(-prod(shape) // 8) + 1, device=x.device) * GOLDEN
        shifts = torch.arange(0, 64, 8, device=x.device)
        drawn = ((hashed(key + words)[..., None] >> shifts) & 255).flatten(-2)[..., : prod(shape)]
        if self.side_by_side:
            kept = drawn.view(devices, *shape).transpose(0, 1).flatten(1, 2) >= self.limit
        else:
            kept = drawn.view(shape) >= self.limit
        return x * kept.to(x.dtype) * (256 / (256 - self.limit))


def every(module: nn.Module) -> list[nn.Module]:
    """Return all modules of a module, those of networks that an objective trains beside it among them."""
    return [part for each in module.modules() for net in (each, *getattr(each, "lent", ())) for part in net.modules()]


def mask(module: nn.Module, *, side_by_side: bool = False) -> list[Mask]:
    """Replace, in place, every layer of dropout of a module that drops anything, and return what takes its place."""
    made = dict[int, Mask]()
    for parent in every(module):
        for name, child in list(parent.named_children()):
            if type(child) is Dropout and round(child.p * 256):
                setattr(parent, name, made.setdefault(id(child), Mask(child, len(made), side_by_side=side_by_side)))
    return list(made.values())
