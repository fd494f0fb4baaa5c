"""Exact, order-free aggregation of contributions."""

import torch
from torch import Tensor

from diastole.models.compressor import Contribution
from diastole.models.errors import StateError
from diastole.models.state import State

# A term weight * delta is split into a coarse integer, in units of 2^-20, and a fine one, in units of 2^-60.
# Within the limits below neither sum can leave 63 bits, and up to 2^23 terms may be folded.
COARSE = 2.0**20
FINE = 2.0**60
WEIGHT = 2.0**20
MAX_DELTA = 2.0**16
MAX_TOTAL_WEIGHT = 2.0**26


class Accumulator:
    """Folds contributions one at a time, in place, and forgets them.

    Keeps, for each global coordinate, the sum of `weight * (value - reference)` over the contributions that
    cover it, and the sum of their weights. Sums are integers, so the result is the same bits for every order of
    arrival. Memory: 24 bytes a coordinate, however many contributions.
    """

    def __init__(self, reference: State) -> None:
        """Start empty, around the global state that contributions are compared with."""
        self._reference = reference
        self._coarse = {name: _zeros(tensor) for name, tensor in reference.items()}
        self._fine = {name: _zeros(tensor) for name, tensor in reference.items()}
        self._weight = {name: _zeros(tensor) for name, tensor in reference.items()}
        self._total = 0.0
        self.count = 0

    def fold(self, contribution: Contribution, weight: float) -> None:
        """Add one contribution; nothing is changed if it is refused.

        `weight` is rounded to a multiple of 2^-20. Raises `StateError` if it is not positive and finite, or if
        a value is further than 2^16 from the reference.
        """
        exact = round(weight * WEIGHT) / WEIGHT if 0 < weight <= MAX_TOTAL_WEIGHT else 0.0
        if exact <= 0 or self._total + exact > MAX_TOTAL_WEIGHT:
            raise StateError(f"weight {weight!r}: at least 2^-20, and {MAX_TOTAL_WEIGHT:.0f} for all together")
        deltas: dict[str, Tensor] = {}
        for name, patch in contribution.items():
            deltas[name] = _delta(name, patch.values, patch.region.take(self._reference[name]))
        for name, delta in deltas.items():
            region = contribution[name].region
            term = delta.mul_(exact)
            coarse = (term * COARSE).round_()
            fine = term.sub_(coarse / COARSE).mul_(FINE).round_()
            region.add_(self._coarse[name], coarse.long())
            region.add_(self._fine[name], fine.long())
            region.add_(self._weight[name], torch.tensor(round(exact * WEIGHT)))
        self._total += exact
        self.count += 1

    def mean(self) -> tuple[State, dict[str, Tensor]]:
        """Return the coverage-normalised mean delta and the mask of covered coordinates.

        For each coordinate: `sum(weight * delta) / sum(weight)` over the contributions that cover it, float64,
        and zero where none does.
        """
        deltas, masks = {}, {}
        for name, weight in self._weight.items():
            masks[name] = weight > 0
            total = self._coarse[name].double() / COARSE + self._fine[name].double() / FINE
            deltas[name] = total / (weight.double() / WEIGHT).masked_fill_(~masks[name], 1.0)
        return deltas, masks


def check_change(state: State, reference: State) -> None:
    """Check that no value of `state` is further from `reference` than may be folded. Raises `StateError`."""
    for name, tensor in state.items():
        _delta(name, tensor, reference[name])


def _delta(name: str, values: Tensor, reference: Tensor) -> Tensor:
    if values.shape != reference.shape:
        raise StateError(f"tensor {name!r} has the shape {list(values.shape)}; expected {list(reference.shape)}")
    delta = values.double() - reference.double()
    largest = delta.abs().max().item() if delta.numel() else 0.0
    # Written so that NaN is refused too.
    if not largest <= MAX_DELTA:
        raise StateError(f"tensor {name!r} is {largest:g} away from what was sent; at most {MAX_DELTA:g} is accepted")
    return delta


def _zeros(tensor: Tensor) -> Tensor:
    return torch.zeros(tensor.shape, dtype=torch.int64)
