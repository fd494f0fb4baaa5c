"""Trials of a sweep that end before their last round, because those before them were better after as many rounds."""

import statistics
from collections.abc import Mapping, Sequence
from math import isfinite

from diastole.experiments.comparison.runs import RoundResult, RunResult, TierResult, metric_of
from diastole.models.metrics import LOSS, ahead
from diastole.server.coordinator import Coordinator
from diastole.server.events import Event, RoundClosed
from diastole.simulations.compared import ComparedRun
from diastole.simulations.devices import Federation

EARLIER = 4
"""Trials that must have gone to their end before one is ended by what they came to."""

Curve = Mapping[int, float]
"""A figure by round, where it was evaluated."""


def curve_of(run: RunResult, figure: str) -> Curve:
    """Return a figure of a run by round."""
    found = {closed.round: run.scored(closed).get(figure) for closed in run.rounds if closed.scores}
    return {number: value for number, value in found.items() if value is not None and isfinite(value)}


def bars_of(curves: Sequence[Curve], first: int) -> list[tuple[int, float]]:
    """Return the median of some curves for each round from `first` on; none for fewer than `EARLIER` curves.

    That is the rule of Optuna's `MedianPruner`, but for trials that are played side by side: each batch knows those
    before it, and nothing else.
    """
    rounds = sorted({number for curve in curves for number in curve if number >= first})
    values = {number: [curve[number] for curve in curves if number in curve] for number in rounds}
    return [(number, statistics.median(of)) for number, of in values.items() if len(of) >= EARLIER]


class Pruner:
    """Watches a run, and ends it behind the first round by which its best figure has not reached the round's bar."""

    def __init__(self, run: ComparedRun, federation: Federation) -> None:
        """Watch for the bars that `run` has, if it has any."""
        self._bars, self._figure = dict(run.bars), run.judged
        metrics = federation.run.metrics
        # Only figures of tiers need to know which size is whose, which takes measuring.
        self._sizes = {} if not self._bars or self._figure in (*metrics, LOSS) else sizes_of(federation)
        tiers = tuple(TierResult(tier, 1, size, {}, None, 0.0, 0.0) for tier, size in self._sizes.items())
        self._run = RunResult(run.method, run.seed, metrics, "", (), tiers)
        self._best: float | None = None
        self.ended = False

    def begun(self, coordinator: Coordinator) -> None:
        """Take in the coordinator before its first round, and what an earlier process has closed."""
        self._coordinator = coordinator
        for closed in coordinator.closed:
            self(closed)

    def __call__(self, event: Event) -> None:
        """Look at a round that has closed."""
        if not self._bars or self.ended or not isinstance(event, RoundClosed):
            return
        value = self._run.scored(round_of(event, self._sizes)).get(self._figure)
        metric = metric_of(self._figure)
        if value is not None and isfinite(value) and (self._best is None or ahead(metric, value, self._best)):
            self._best = value
        bar = self._bars.get(event.round)
        if bar is not None and (self._best is None or ahead(metric, bar, self._best)):
            self.ended = True
            self._coordinator.stop()


def round_of(closed: RoundClosed, sizes: Mapping[str, str]) -> RoundResult:
    """Return what a closed round came to, with each tier's scores those of its size, by label."""
    return RoundResult(
        round=closed.round,
        scores=closed.scores,
        tiers={tier: closed.tier_scores[size] for tier, size in sizes.items() if size in closed.tier_scores},
        bytes=closed.bytes_down + closed.bytes_up,
        macs=closed.macs,
        seconds=closed.seconds,
        wall_seconds=closed.wall_seconds,
        server_seconds=closed.server_seconds,
    )


def sizes_of(home: Federation) -> dict[str, str]:
    """Return the label of the largest exported size that fits most devices of each tier; empty for none."""
    sizes, deadline = home.run.method().offers(), home.virtual_rounds().deadline if home.field else None
    fits = {
        group: home.run.fitting(sizes, {n: p for n, p in home.profiles.items() if p.tier == group}, deadline)
        for group in home.simulation.groups
    }
    return {group: size.spec.label if size else "" for group, size in fits.items()}
