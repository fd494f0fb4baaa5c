"""Multi-Krum (Blanchard et al., "Machine Learning with Adversaries", NeurIPS 2017) over sub-models of several sizes."""

import math

import torch
from torch import Tensor

from diastole.models.accumulator import Accumulator
from diastole.models.coordinates import Contribution
from diastole.models.crossing import device_of, fetch
from diastole.models.method import Weight
from diastole.models.state import State
from diastole.server.robust.blocks import blocks


class MultiKrum:
    """The weighted mean of the contributions that are closest to their neighbours.

    Of n contributions, f of which may be faulty, the score of each is the sum of its squared distances to the
    n - f - 2 nearest others; the n - f with the lowest scores are folded. The distance of two is over the coordinates
    that both speak for, as if they were all: its mean square there. Two that share none are not near. Contributions
    are kept until the end.
    """

    def __init__(self, reference: State, share: float) -> None:
        """Start empty; `share` of the devices may be faulty."""
        self._reference, self._share = reference, share
        self._kept: dict[str, tuple[Contribution, Weight]] = {}

    @property
    def count(self) -> int:
        """Contributions so far."""
        return len(self._kept)

    def add(self, device: str, contribution: Contribution, weight: Weight) -> None:
        """Keep a contribution; its weight counts once it is chosen."""
        self._kept[device] = contribution, weight

    def chosen(self) -> list[str]:
        """Return the devices whose contributions are folded, in the order of their names."""
        devices = sorted(self._kept)
        count, faulty = len(devices), math.floor(self._share * len(devices) + 1e-9)
        near = max(1, count - faulty - 2)
        distances = self._distances(devices).fill_diagonal_(math.inf)
        scores = distances.sort(1).values[:, :near].sum(1)
        ranks = fetch([scores])[0].tolist()
        best = sorted(range(count), key=lambda place: (ranks[place], devices[place]))[: count - faulty]
        return sorted(devices[place] for place in best)

    def mean(self) -> tuple[State, dict[str, Tensor]]:
        """Return the mean of what is chosen."""
        accumulator = Accumulator(self._reference)
        for device in self.chosen():
            accumulator.fold(*self._kept[device])
        return accumulator.mean()

    def _distances(self, devices: list[str]) -> Tensor:
        """Return the mean squares of what any two change differently, `[n, n]`."""
        squares = torch.zeros(len(devices), len(devices), dtype=torch.float64, device=device_of(self._reference))
        shared = squares.clone()
        for _, _, changes in blocks(self._reference, [self._kept[device][0] for device in devices]):
            flat = changes.flatten(1)
            there = (~flat.isnan()).double()
            values = flat.nan_to_num(nan=0.0)
            own = values.square() @ there.T
            squares += own + own.T - 2 * values @ values.T
            shared += there @ there.T
        return torch.where(shared > 0, squares.clamp(min=0) / shared.clamp(min=1), math.inf)
