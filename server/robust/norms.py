"""How far an update is from what was sent, and how far it may be: norm clipping against the others' norms.

The norm is the root mean square of the change over the coordinates that an update speaks for, so that sub-models of
every size can be compared. What is much longer than the others' is shortened (as in Sun et al., "Can You Really
Backdoor Federated Learning?", 2019), and what is longer by far is refused. The bound is a multiple of the median of
the round, or of past rounds if that is more; nobody moves a median alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median_high

import torch

from diastole.models.coordinates import Contribution, Patch
from diastole.models.errors import StateError
from diastole.models.state import State

PAST = 5
"""Rounds whose medians are remembered."""

REFUSED = 10.0
"""Multiples of the bound that are not worth shortening."""


def change(contribution: Contribution, state: State) -> float:
    """Return the root mean square of what a contribution changes of the global state."""
    squares, count = 0.0, 0
    for name, patch in contribution.items():
        moved = patch.values - patch.region.view(state[name])
        squares += torch.linalg.vector_norm(moved, dtype=torch.float64).item() ** 2
        count += moved.numel()
    return math.sqrt(squares / max(1, count))


def magnitude(state: State) -> float:
    """Return the root mean square of a state's values."""
    squares = sum(torch.linalg.vector_norm(tensor, dtype=torch.float64).item() ** 2 for tensor in state.values())
    return math.sqrt(squares / max(1, sum(tensor.numel() for tensor in state.values())))


def shortened(contribution: Contribution, state: State, share: float) -> Contribution:
    """Return a contribution that changes the global state by a share of what this one would."""
    found = {}
    for name, patch in contribution.items():
        sent = patch.region.view(state[name])
        values = (sent.double() + share * (patch.values.double() - sent.double())).to(patch.values.dtype)
        found[name] = Patch(patch.region, values)
    return found


@dataclass(slots=True)
class Norms:
    """The norms of one round's updates, against those of past rounds.

    Attributes:
        most: the bound, in multiples of the median; 0: there is none.
        past: medians of past rounds, the latest last.
        start: what an update may change before there are any, without waiting for the others' norms.

    """

    most: float
    past: Sequence[float]
    start: float
    _found: dict[str, float] = field(default_factory=dict)

    def near(self, device: str, norm: float) -> bool:
        """Note an update's norm, and return whether it is within the bound whatever the others' are."""
        if not math.isfinite(norm):
            raise StateError("update changes values by more than can be counted")
        self._found[device] = norm
        return not self.most or norm <= (self.most * median_high(self.past) if self.past else self.start)

    def share(self, device: str) -> float:
        """Return what is left of an update that is not near, once all norms are known. Raises `StateError`."""
        bound, norm = self.most * max(self.median(), *self.past, 0.0), self._found[device]
        if not bound:
            return 1.0
        if norm > REFUSED * bound:
            times = norm / max(self.median(), 1e-30)
            raise StateError(
                f"update changes values by {norm:.3g} (root mean square), {times:.3g} times the median; up to "
                f"{REFUSED * self.most:g} times is shortened, and more is not accepted"
            )
        return min(1.0, bound / norm)

    def median(self) -> float:
        """Return the median of the norms so far; the upper one of two."""
        return median_high(self._found.values()) if self._found else 0.0
