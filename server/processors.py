"""What happens to an update before it is folded, and to the mean after it: clipping, noise, masks.

One of the three places where a round can be changed. Everything here is in global coordinates, so a processor works
with every method.
"""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from diastole.models.coordinates import Contribution
from diastole.models.method import Weight
from diastole.models.moment import Moment
from diastole.models.state import State


class Processor(Protocol):
    """One thing that is done to each contribution, and its counterpart that is done to their mean."""

    def contribution(self, contribution: Contribution, weight: Weight, state: State, moment: Moment) -> Contribution:
        """Return what is folded in place of a device's contribution.

        Args:
            contribution: values in global coordinates; what has changed is their difference from `state`.
            weight: of the contribution in the aggregate.
            state: the global state that the round began with.
            moment: the round; its seed is for this processor's draws.

        """
        ...

    def mean(self, delta: State, covered: dict[str, Tensor], moment: Moment) -> State:
        """Return what the global model moves along in place of the mean change.

        Args:
            delta: the coverage-normalised mean change, float64, zero where nothing is covered.
            covered: for each tensor, which coordinates any device spoke for.
            moment: the round; its seed is for this processor's draws.

        """
        ...


def process(
    processors: Sequence[Processor], contribution: Contribution, weight: Weight, state: State, moment: Moment
) -> Contribution:
    """Return a contribution after every processor, in their order."""
    for processor in processors:
        contribution = processor.contribution(contribution, weight, state, moment)
    return contribution


def finish(processors: Sequence[Processor], delta: State, covered: dict[str, Tensor], moment: Moment) -> State:
    """Return a mean change after every processor, in the reverse order: what was done last is undone first."""
    for processor in reversed(processors):
        delta = processor.mean(delta, covered, moment)
    return delta
