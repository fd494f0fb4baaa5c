"""The ways of folding a round's contributions into one change."""

from collections.abc import Callable, Mapping
from typing import Protocol

from torch import Tensor

from diastole.models.accumulator import Accumulator
from diastole.models.coordinates import Contribution
from diastole.models.method import Weight
from diastole.models.state import State
from diastole.server.robust.krum import MultiKrum
from diastole.server.robust.trimmed import TrimmedMean, of_median, of_share


class Fold(Protocol):
    """One way of folding; it comes to the same bits in every order of arrival."""

    @property
    def count(self) -> int:
        """Contributions so far."""
        ...

    def add(self, device: str, contribution: Contribution, weight: Weight) -> None:
        """Take in a device's contribution. Raises `StateError` if it cannot be folded; nothing is then changed."""
        ...

    def mean(self) -> tuple[State, dict[str, Tensor]]:
        """Return the change of the global state, float64, and the mask of the coordinates that it speaks for."""
        ...


class Mean:
    """The coverage-normalised weighted mean, exact; every contribution is folded and forgotten."""

    def __init__(self, reference: State) -> None:
        self._accumulator = Accumulator(reference)

    @property
    def count(self) -> int:
        """Contributions so far."""
        return self._accumulator.count

    def add(self, device: str, contribution: Contribution, weight: Weight) -> None:
        """Fold a contribution."""
        self._accumulator.fold(contribution, weight)

    def mean(self) -> tuple[State, dict[str, Tensor]]:
        """Return the mean."""
        return self._accumulator.mean()


FOLDS: Mapping[str, Callable[[State, float], Fold]] = {
    "mean": lambda reference, trim: Mean(reference),
    "trimmed-mean": lambda reference, trim: TrimmedMean(reference, of_share(trim)),
    "median": lambda reference, trim: TrimmedMean(reference, of_median),
    "multi-krum": MultiKrum,
}


def folding(name: str, reference: State, trim: float) -> Fold:
    """Return a way of folding by its name; `trim` is the share of the devices that may be faulty."""
    return FOLDS[name](reference, trim)
