"""A run as operators see it: queued, under way, or over."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import grpc

from diastole.models.metrics import shown, title
from diastole.proto.words import Reason, plain
from diastole.server.coordinator import Coordinator
from diastole.server.errors import StoreError
from diastole.server.wire.event_log import EventLog
from diastole.server.wire.link import RunLink
from diastole.server.wire.refusal import LONGEST_MESSAGE, refuse_operator
from diastole.v1 import admin_pb2 as pb


class Control(Protocol):
    """What operators do with a run. What has come of it is durable when a method returns; each raises `StoreError`."""

    @property
    def held(self) -> bool:
        """Whether no round begins, because an operator does not want it."""
        ...

    def stop(self, now: bool) -> object:
        """End it, after the open round or now; one that has not begun never will."""
        ...

    def pause(self) -> None:
        """Let no round begin before `proceed`; the open one is closed."""
        ...

    def proceed(self) -> None:
        """Let it begin, or go on."""
        ...

    def roll_back(self, number: int) -> None:
        """Go on behind an earlier round; later ones do not count any more. Raises `DiastoleError` if that cannot be."""
        ...

    def model(self, number: int) -> bytes:
        """Return the models behind a closed round, as a file. Raises `DiastoleError` if they are not kept."""
        ...


@dataclass(slots=True)
class ListedRun:
    """A run of a coordinator.

    Attributes:
        run_id: its name.
        method: that is run.
        rounds: how many there are to be.
        folder: checkpoints go below it.
        control: steers it.
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
    control: Control
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

    @property
    def state(self) -> pb.Run.State:
        """How far it is."""
        coordinator = self.coordinator
        if self.last is not None:
            return self.last.state
        if coordinator is None:
            waits = pb.Run.STATE_HELD if self.control.held else pb.Run.STATE_QUEUED
            return pb.Run.STATE_STOPPED if self.over else waits
        if self.log.over:
            return pb.Run.STATE_STOPPED if coordinator.stopping else pb.Run.STATE_FINISHED
        if self.control.held and coordinator.rest.resting:
            return pb.Run.STATE_PAUSED
        return pb.Run.STATE_RUNNING if self.log.begun else pb.Run.STATE_WAITING

    @property
    def standing(self) -> str:
        """The same in a word: "queued", "held", "waiting", "running", "paused", "finished" or "stopped"."""
        return pb.Run.State.Name(self.state).removeprefix("STATE_").lower()

    def retire(self) -> None:
        """Keep what operators are told, and nothing that takes memory."""
        self.last = self.message()
        self.coordinator, self.link, self.over = None, None, True
        self.log.end()

    def message(self) -> pb.Run:
        """Return what operators are told of it."""
        coordinator, link = self.coordinator, self.link
        if self.last is not None:
            return self.last
        if coordinator is None:
            return pb.Run(run_id=self.run_id, state=self.state, method=self.method, rounds=self.rounds)
        closed, metric = coordinator.closed, coordinator.settings.metrics[0]
        scores = next((item.scores for item in reversed(closed) if item.scores), {})
        return pb.Run(
            run_id=self.run_id,
            state=self.state,
            method=self.method,
            round=len(closed),
            rounds=self.rounds,
            pausing=self.control.held and not coordinator.rest.resting,
            accuracy=scores.get("accuracy"),
            scores=scores,
            metric=metric,
            standing=f"{title(metric)} {shown(metric, scores[metric])}" if scores else "",
            devices_online=len(link.devices()) if link else 0,
            elapsed_seconds=self.log.seconds,
            quarantined=sum(account.quarantined for account in list(coordinator.ledger.values())),
        )


def named(runs: Sequence[ListedRun], run_id: str, context: grpc.ServicerContext, *, alone: bool = False) -> ListedRun:
    """Return a run by its name; without a name the one that is under way, or else the next one, or the last.

    Refuses a name that no run has; if the run must be `alone` under way, also no name.
    """
    names = ", ".join(run.run_id for run in runs) or "none"
    if run_id:
        found = [run for run in runs if run.run_id == run_id]
    else:
        going = [run for run in runs if run.under_way]
        if alone and len(going) > 1:
            text = f"several runs are under way; name one of {', '.join(run.run_id for run in going)}"
            refuse_operator(context, grpc.StatusCode.INVALID_ARGUMENT, Reason.UNKNOWN_RUN, text)
        found = going or [run for run in runs if not run.over] or list(runs[-1:])
    if not found:
        text = f"no run {run_id!r}; this coordinator has {names}"
        refuse_operator(context, grpc.StatusCode.NOT_FOUND, Reason.UNKNOWN_RUN, text)
    return found[0]


@contextmanager
def stored(context: grpc.ServicerContext) -> Iterator[None]:
    """Refuse a call whose database fails."""
    try:
        yield
    except StoreError as error:
        refuse_operator(context, grpc.StatusCode.UNAVAILABLE, Reason.STORAGE, plain(str(error), LONGEST_MESSAGE))
