"""Methods when each has spent what an anchor spends: as many bytes, or multiply-accumulates, as the anchor's rounds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal

from diastole.experiments.comparison.runs import RunResult, run_dict

By = Literal["bytes", "macs"]
KINDS: tuple[By, ...] = ("bytes", "macs")
TOLERANCE = 0.02
"""The share of an allowance by which a run may be above it."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One run at the round at which a table reads it.

    Attributes:
        run: the whole run.
        count: rounds up to there.
        share: of the allowance that the run had spent by then.

    """

    run: RunResult
    count: int
    share: float

    def figures(self) -> dict[str, float | None]:
        """Return the run up to there in single numbers, by the names that `RunResult.figures` has, and its rounds."""
        rounds = self.run.rounds[: self.count]
        spent: dict[str, float | None] = {by: float(sum(getattr(closed, by) for closed in rounds)) for by in KINDS}
        return {"rounds": float(self.count), "share": self.share, **spent, **self.run.scored(rounds[-1])}


@dataclass(frozen=True, slots=True)
class Equal:
    """Every method after it has spent as much as the anchor has in the experiment's rounds.

    Attributes:
        by: what is equal: payload bytes both ways, or multiply-accumulates of training, of all devices.
        anchor: the method that says how much.
        allowances: what it has spent, for each seed.
        readings: by method, one a seed; None where a run has not used the allowance up.

    """

    by: By
    anchor: str
    allowances: Sequence[int]
    readings: Mapping[str, Sequence[Reading | None]]

    def figures(self) -> dict[str, list[dict[str, float | None]]]:
        """Return each method's figures, one a seed; none where a run is not read."""
        return {method: [it.figures() if it else {} for it in each] for method, each in self.readings.items()}

    def as_dict(self) -> dict[str, Any]:
        """Return all of it, for JSON."""
        return {
            "by": self.by,
            "anchor": self.anchor,
            "allowances": list(self.allowances),
            "readings": {
                method: [
                    it and {"rounds": it.count, "share": it.share, "figures": it.figures(), "run": run_dict(it.run)}
                    for it in each
                ]
                for method, each in self.readings.items()
            },
        }


def spent(run: RunResult, by: By) -> int:
    """Return what a run has spent in all."""
    return sum(getattr(closed, by) for closed in run.rounds)


def read(run: RunResult, by: By, allowance: int) -> Reading | None:
    """Return a run at its last evaluated round by which it had spent at most the allowance, and `TOLERANCE` more.

    None if another round, as costly as the run's mean, would have fitted: then the run has not used the allowance up.
    """
    totals = list(accumulate(getattr(closed, by) for closed in run.rounds))
    within = [
        number
        for number, (closed, total) in enumerate(zip(run.rounds, totals, strict=True), 1)
        if closed.scores and total <= (1 + TOLERANCE) * allowance
    ]
    if not within or not totals[-1]:
        return None
    count = within[-1]
    if totals[count - 1] + totals[-1] / len(totals) < (1 - TOLERANCE) * allowance:
        return None
    return Reading(run, count, totals[count - 1] / allowance)


def horizon(run: RunResult, by: By, allowance: int) -> int:
    """Return how many rounds like the mean of these fit an allowance; 0 for a run that spends nothing."""
    total = spent(run, by)
    return allowance * len(run.rounds) // total if total else 0
