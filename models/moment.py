"""Where a run stands."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Moment:
    """Where a run stands, as methods see it.

    Attributes:
        round: that is about to begin or is going on, counted from 1.
        rounds: of the whole run.
        seed: of every draw that is made now.

    """

    round: int = 1
    rounds: int = 1
    seed: int = 0

    @property
    def progress(self) -> float:
        """The share of the run that lies behind, in [0, 1]."""
        return min(1.0, (self.round - 1) / max(1, self.rounds))
