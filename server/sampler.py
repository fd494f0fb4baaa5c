"""Who takes part in a round: one of the three places where a round can be changed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from diastole.models.moment import Moment
from diastole.models.seeds import generator


class Sampler(Protocol):
    """A way of drawing a round's cohort."""

    def sample(self, able: Sequence[str], moment: Moment) -> Sequence[str]:
        """Return the devices of a round, in order, out of `able`, the names of those that could take part in it."""
        ...


@dataclass(frozen=True, slots=True)
class Uniform:
    """The same number of devices each round, drawn without replacement, each equally likely.

    Attributes:
        seed: of the run.
        cohort: devices a round; None for all of them.

    """

    seed: int
    cohort: int | None = None

    def sample(self, able: Sequence[str], moment: Moment) -> Sequence[str]:
        """Return the cohort, in the order of `able`."""
        if self.cohort is None or self.cohort >= len(able):
            return able
        drawn = torch.randperm(len(able), generator=generator(self.seed, moment.round, "cohort"))[: self.cohort]
        return [able[int(place)] for place in drawn.sort().values]
