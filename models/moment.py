"""Where a run stands."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Moment:
    """Where a run stands, as methods see it.

    Attributes:
        round: the round that is going on or about to begin, counted from 1.
        rounds: number of rounds of the run.
        seed: of every draw at this moment.

    """

    round: int = 1
    rounds: int = 1
    seed: int = 0

    @property
    def progress(self) -> float:
        """The share of the run's rounds that is over, in [0, 1]."""
        return min(1.0, (self.round - 1) / max(1, self.rounds))
