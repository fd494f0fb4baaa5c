"""BatchNorm of many devices in one program: a device's batch is filled up, and what fills it up counts for nothing."""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from diastole.simulations.engines.masks import every

KINDS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class BatchNorm(nn.Module):
    """Normalises by the examples of a batch that count, of one device (under `vmap`) or of all `side_by_side`.

    Devices keep no running statistics (`models/recalibrate.py`), so nothing but the batch decides.

    Attributes:
        there: ones, and zeros for what fills a batch up: `[batch]` of one device, `[batch, devices]` of all.

    """

    there: Tensor
    weight: Tensor | None
    bias: Tensor | None

    def __init__(self, layer: _BatchNorm, *, side_by_side: bool = False) -> None:
        super().__init__()
        self.eps, self.side_by_side = layer.eps, side_by_side
        for name in ("weight", "bias"):
            self.register_parameter(name, getattr(layer, name))

    def forward(self, x: Tensor) -> Tensor:
        """Return `x`, `[batch, channels, ...]` or `[batch, devices * channels, ...]`, normalised."""
        devices, beyond = self.there.shape[1] if self.side_by_side else 1, [1] * (x.ndim - 2)
        each = x.reshape(len(x), devices, -1, *x.shape[2:])
        there = self.there.view(len(x), devices, 1, *beyond)
        axes, count = [0, *range(3, each.ndim)], there.sum(0, keepdim=True) * x[0, 0].numel()
        centred = each - (each * there).sum(axes, keepdim=True) / count
        spread = (centred.square() * there).sum(axes, keepdim=True) / count
        found = centred * torch.rsqrt(spread + self.eps)
        if self.weight is not None and self.bias is not None:
            weight, bias = (p.view(1, devices, -1, *beyond) for p in (self.weight, self.bias))
            found = found * weight + bias
        return found.reshape(x.shape)


def normed(module: nn.Module, *, side_by_side: bool = False) -> list[BatchNorm]:
    """Replace, in place, every BatchNorm without running statistics, and return what takes its place."""
    made = dict[int, BatchNorm]()
    for parent in every(module):
        for name, child in list(parent.named_children()):
            if isinstance(child, _BatchNorm) and type(child) in KINDS and not child.track_running_stats:
                setattr(parent, name, made.setdefault(id(child), BatchNorm(child, side_by_side=side_by_side)))
    return list(made.values())


def counting(weight: Tensor) -> Tensor:
    """Return what of a batch is there, by weights `[batch, ...]`: all of it where nothing has a weight."""
    there = weight > 0
    return torch.where(there.any(0), there, True).to(weight.dtype)
