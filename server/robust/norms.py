"""How far an update is from what was sent, and how far it may be: norm clipping against the others' norms.

The norm is the root mean square of the change over the coordinates that an update speaks for, so that sub-models of
every size can be compared. What is much longer than the others' is shortened (as in Sun et al., "Can You Really
Backdoor Federated Learning?", 2019), and what is longer by far is refused. The bound is a multiple of the median of
the round, or of past rounds if that is more; nobody moves a median alone.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median_high

import torch
from torch import Tensor

from diastole.models.coordinates import Contribution, Patch
from diastole.models.crossing import numbers
from diastole.models.errors import StateError
from diastole.models.rows import RowPatches
from diastole.models.state import State
from diastole.models.task import Report

PAST = 5
"""Rounds whose medians are remembered."""

REFUSED = 10.0
"""Multiples of the bound that are not worth shortening."""

LEAST, LONG, HEAVY = 3, 3.0, 0.25
"""Of a round's updates, the fewest among which one can be too long; multiples of the highest median of the run that no
honest update was found to have (`docs/robustness.md`); and the share of all that is told of such a one."""


def change(contribution: Contribution, state: State) -> float:
    """Return the root mean square of what a contribution changes of the global state."""
    if isinstance(contribution, RowPatches):
        return contribution.moved[1]
    moved = (patch.values - patch.region.view(state[name]) for name, patch in contribution.items())
    return _root_mean_square(moved, sum(patch.values.numel() for patch in contribution.values()))


def magnitude(state: State) -> float:
    """Return the root mean square of a state's values."""
    return _root_mean_square(state.values(), sum(tensor.numel() for tensor in state.values()))


def _root_mean_square(tensors: Iterable[Tensor], count: int) -> float:
    """Return the root mean square over all `count` values of the tensors, in one transfer from a card."""
    squares = 0.0
    for norm in numbers([torch.linalg.vector_norm(tensor, dtype=torch.float64) for tensor in tensors]):
        squares += norm**2
    return math.sqrt(squares / max(1, count))


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
        highest: median of a round of this run.

    """

    most: float
    past: Sequence[float]
    start: float
    highest: float = 0.0
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

    def outweighing(self, reports: Mapping[str, Report]) -> str:
        """Return a line about a device whose long update moves a mean more than is good; empty if there is none.

        An update weighs its length, as far as it is not shortened, times its examples; `reports` are those of the
        updates that were folded. One that is no longer than honest ones are, and merely has the most examples, does
        not count. Honest ones are longest when a run begins; later, when most hardly change anything, one that still
        learns is long beside them, and not beside that. Of fewer than three updates nothing can be said.
        """
        bound, median = self.most * max(self.median(), *self.past, 0.0), self.median()
        lengths = {device: min(norm, bound) for device, norm in sorted(self._found.items()) if device in reports}
        weights = {device: length * reports[device].examples for device, length in lengths.items()}
        if len(weights) < LEAST or not median:
            return ""
        device = max(weights, key=weights.__getitem__)
        share, times = weights[device] / sum(weights.values()), lengths[device] / median
        if share <= HEAVY or self._found[device] <= LONG * max(median, self.highest):
            return ""
        return (
            f"{device}: its update is {times:.2g} times as long as the median, and weighs {share:.0%} of all; if that "
            'device is not trusted, admission.fold = "multi-krum" leaves such updates out'
        )

    def median(self) -> float:
        """Return the median of the norms so far; the upper one of two."""
        return median_high(self._found.values()) if self._found else 0.0
