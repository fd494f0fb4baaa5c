"""Dropout whose draws come from a named seed."""

from math import prod

import torch
from torch import Tensor, nn

from diastole.models.crossing import send
from diastole.models.errors import ModelError

LARGEST = 255 / 256
MAPS = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


class Dropout(nn.Module):
    """Sets a share of the activations to zero while training and scales the others up to the same mean.

    Draws come from the generator that `draw_from` gives, never from torch's global one. Without a generator, and in
    evaluation, nothing is dropped. The share is a multiple of 1/256, because one random byte decides about each
    activation; this takes a third of the time of torch's own dropout. `p` and `inplace` mean what they mean in torch's.
    """

    def __init__(self, p: float, maps: bool = False, inplace: bool = False) -> None:
        """Drop a share `p`, at most 255/256, of values, or with `maps` of the whole maps of `[n, channels, ...]`.

        With `inplace`, the input is overwritten.
        """
        super().__init__()
        self.p, self.maps, self.inplace = p, maps, inplace
        self.draws: torch.Generator | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` with a share of its values dropped; any shape."""
        if not self.p or not self.training or self.draws is None:
            return x
        limit = round(self.p * 256)
        shape = (*x.shape[:2], *[1] * (x.ndim - 2)) if self.maps else x.shape
        count = prod(shape)
        words = torch.empty(-(-count // 8), dtype=torch.int64)
        # All 64 bits: the default range leaves the sign out.
        words.random_(torch.iinfo(torch.int64).min, None, generator=self.draws)
        kept = words.view(torch.uint8)[:count].view(shape) >= limit
        scale = send(kept, x.device).to(x.dtype).mul_(256 / (256 - limit))
        return x.mul_(scale) if self.inplace else x * scale


def draw_from(module: nn.Module, draws: torch.Generator) -> None:
    """Let every `Dropout` in `module` draw from a CPU generator, in the order of the forward pass."""
    for layer in module.modules():
        if isinstance(layer, Dropout):
            layer.draws = draws


def replace_dropout(module: nn.Module) -> None:
    """Replace, in place, torch's dropout layers, which draw from torch's global generator, by `Dropout`.

    Raises `ModelError` naming a layer that drops everything.
    """
    for name, layer in module.named_modules():
        for own, child in list(layer.named_children()):
            if type(child) not in (nn.Dropout, *MAPS):
                continue
            share = float(child.p)
            if round(share * 256) > 255:
                path = f"{name}.{own}" if name else own
                raise ModelError(f"layer {path!r} ({type(child).__name__}) drops {share:g}; expected at most {LARGEST}")
            setattr(layer, own, Dropout(share, isinstance(child, MAPS), child.inplace))


def lend_draws(source: nn.Module, target: nn.Module) -> None:
    """Replace, in place, each `Dropout` of `target` by that of `source`, of the same structure: both draw as one."""
    for path, layer in source.named_modules():
        if isinstance(layer, Dropout):
            owner, _, name = path.rpartition(".")
            setattr(target.get_submodule(owner), name, layer)


def is_random(module: nn.Module) -> bool:
    """Return whether training `module` draws at random, so that no two devices may share one forward pass."""
    return any(isinstance(layer, Dropout) and layer.p for layer in module.modules())
