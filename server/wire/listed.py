"""A run as operators see it: queued, under way, or over."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from diastole.models.metrics import shown, title
from diastole.server.coordinator import Coordinator
from diastole.server.wire.event_log import EventLog
from diastole.server.wire.link import RunLink
from diastole.v1 import admin_pb2 as pb


@dataclass(slots=True)
class ListedRun:
    """A run of a coordinator.

    Attributes:
        run_id: its name.
        method: that is run.
        rounds: how many there are to be.
        folder: checkpoints go below it.
        stop: ends it, after the open round or now; one that has not begun never will.
        log: observes its coordinator.
        coordinator: of the run; None before it begins.
        link: to its devices; likewise.
        over: whether its turn is over.
        last: what operators are told of it once it is over; None before.
        name: of its experiment.

    """

    run_id: str
    method: str
    rounds: int
    folder: Path
    stop: Callable[[bool], object]
    log: EventLog = field(default_factory=EventLog)
    coordinator: Coordinator | None = None
    link: RunLink | None = None
    over: bool = False
    last: pb.Run | None = None
    name: str = ""

    @property
    def under_way(self) -> bool:
        """Whether it has begun and is not over."""
        return self.coordinator is not None and not self.log.over

    def retire(self) -> None:
        """Keep what operators are told, and nothing that takes memory."""
        self.last = self.message()
        self.coordinator, self.link, self.over = None, None, True
        self.log.end()

    def message(self) -> pb.Run:
        """Return what operators are told of it."""
        coordinator = self.coordinator
        if self.last is not None:
            return self.last
        if coordinator is None:
            state = pb.Run.STATE_STOPPED if self.over else pb.Run.STATE_QUEUED
            return pb.Run(run_id=self.run_id, state=state, method=self.method, rounds=self.rounds)
        closed, state = coordinator.closed, pb.Run.STATE_RUNNING if self.log.begun else pb.Run.STATE_WAITING
        if self.log.over:
            state = pb.Run.STATE_STOPPED if coordinator.stopping else pb.Run.STATE_FINISHED
        metric = coordinator.settings.metrics[0]
        scores = next((item.scores for item in reversed(closed) if item.scores), {})
        return pb.Run(
            run_id=self.run_id,
            state=state,
            method=self.method,
            round=len(closed),
            rounds=self.rounds,
            accuracy=scores.get("accuracy"),
            scores=scores,
            metric=metric,
            standing=f"{title(metric)} {shown(metric, scores[metric])}" if scores else "",
            devices_online=len(self.link.devices()) if self.link else 0,
            elapsed_seconds=self.log.seconds,
            quarantined=sum(account.quarantined for account in list(coordinator.ledger.values())),
        )
