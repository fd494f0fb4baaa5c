"""The coordinate-wise trimmed mean and median (Yin et al., "Byzantine-Robust Distributed Learning", ICML 2018)."""

from collections.abc import Callable

import torch
from torch import Tensor

from diastole.models.coordinates import Contribution
from diastole.models.method import Weight
from diastole.models.state import State
from diastole.server.robust.blocks import blocks

Trim = Callable[[Tensor], Tensor]
"""How many of the lowest, and of the highest, values are left out at coordinates of so many values, int64."""


def of_share(share: float) -> Trim:
    """Return a rule that leaves out a share of the values on each side, rounded down, and never all."""
    return lambda counts: torch.minimum((counts * share + 1e-9).long(), (counts - 1).clamp(min=0) // 2)


def of_median(counts: Tensor) -> Tensor:
    """Leave one value, or two of which the mean is taken."""
    return (counts - 1).clamp(min=0) // 2


class TrimmedMean:
    """At each coordinate the mean of what is neither among the lowest nor among the highest changes.

    Every device that speaks for a coordinate counts there the same, however many examples it has: a weight is what a
    device says of itself. Contributions are kept until the end; those of files need no memory before they are looked
    at.
    """

    def __init__(self, reference: State, trim: Trim) -> None:
        """Start empty, around the global state that contributions are compared with."""
        self._reference, self._trim = reference, trim
        self._kept: dict[str, Contribution] = {}

    @property
    def count(self) -> int:
        """Contributions so far."""
        return len(self._kept)

    def add(self, device: str, contribution: Contribution, weight: Weight) -> None:
        """Keep a contribution."""
        self._kept[device] = contribution

    def mean(self) -> tuple[State, dict[str, Tensor]]:
        """Return the trimmed mean."""
        deltas = {n: torch.zeros_like(t, dtype=torch.float64) for n, t in self._reference.items()}
        masks = {n: torch.zeros_like(t, dtype=torch.bool) for n, t in self._reference.items()}
        for name, rows, changes in blocks(self._reference, [self._kept[device] for device in sorted(self._kept)]):
            # What is not covered is sorted behind every number.
            ordered, counts = changes.sort(0).values, (~changes.isnan()).sum(0)
            low = self._trim(counts)
            places = torch.arange(len(ordered), device=ordered.device).view(-1, *[1] * (ordered.ndim - 1))
            left = (places >= low) & (places < counts - low)
            total = ordered.masked_fill(~left, 0.0).sum(0)
            _rows(deltas[name], rows).copy_(total / left.sum(0).clamp(min=1))
            _rows(masks[name], rows).copy_(counts > 0)
        return deltas, masks


def _rows(tensor: Tensor, rows: slice) -> Tensor:
    return (tensor if tensor.ndim else tensor.unsqueeze(0))[rows]
