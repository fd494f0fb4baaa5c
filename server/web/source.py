"""What a dashboard asks of whoever has the runs, beside their events."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from diastole.proto.errors import DiastoleError
from diastole.server.progress import Moving
from diastole.server.web.family import Family


class VerbError(DiastoleError):
    """Something that cannot be done to a run now."""


@dataclass(frozen=True, slots=True)
class ShownRun:
    """A run in the list of runs.

    Attributes:
        run_id: its name.
        title: the experiment's name.
        method: that is run.
        state: "queued", "held", "waiting", "running", "paused", "finished", "stopped" or "failed".
        rounds: how many there are to be.
        verbs: what an operator may do to it now: "stop", "stop-now", "pause", "resume".

    """

    run_id: str
    title: str
    method: str
    state: str
    rounds: int
    verbs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Seen:
    """What is known of a device now, beside what events tell.

    Attributes:
        idle: seconds since it was last heard of; None if nobody asks.
        macs_per_second: that it trains at, measured by itself; None if unknown.
        memory: bytes that it may train in; None if unknown.
        down: bytes a second that it can download; likewise.
        up: likewise upload.
        moved: payload bytes that it has moved, down and up.
        version: of its agent.
        barred: why it is kept out; empty if it is not.

    """

    idle: float | None = None
    macs_per_second: float | None = None
    memory: int | None = None
    down: float | None = None
    up: float | None = None
    moved: tuple[int, int] = (0, 0)
    version: str = ""
    barred: str = ""


@dataclass(frozen=True, slots=True)
class Stored:
    """What lies on disk: bytes of each part of the state, by its name, and of the file system."""

    path: str
    parts: Mapping[str, int]
    free: int
    total: int


class Source(Protocol):
    """Has the runs. Called in the web server's threads; each call is short."""

    def runs(self) -> Sequence[ShownRun]:
        """Return the runs in their order."""
        ...

    def moving(self, run_id: str) -> Mapping[str, Moving]:
        """Return the transfers that are under way, by device; none if nobody knows."""
        ...

    def seen(self, run_id: str, names: Sequence[str]) -> Mapping[str, Seen]:
        """Return what is known of some devices now."""
        ...

    def family(self, run_id: str) -> Family | None:
        """Return the global network and what each sub-model holds of it; None before the run has begun."""
        ...

    def stored(self) -> Stored | None:
        """Return what lies on disk; None if nothing is kept."""
        ...

    def do(self, run_id: str, verb: str) -> None:
        """Do one of a run's verbs. Raises `VerbError`."""
        ...
