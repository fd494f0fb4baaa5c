"""What a coordinator's database keeps, and the one interface of every database."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

KEPT_ROUNDS = 2
"""Of so many rounds a run's assignments are kept, the open one included: late uploads are answered by them."""
KEPT_DETAILS = 100
"""Of so many rounds a run's history says what came of each device; of all, what the round came to."""
KEPT_AUDITS = 100_000
"""Audit lines that are kept; the oldest go first."""


class RunState(StrEnum):
    """How far a run is."""

    OPEN = "open"
    """It goes on when its coordinator is started again."""
    FINISHED = "finished"
    FAILED = "failed"
    """It is over, and nothing was learned."""
    DROPPED = "dropped"
    """Whoever started the coordinator wanted to start afresh."""


@dataclass(frozen=True, slots=True)
class RunRow:
    """A run.

    Attributes:
        run_id: its name.
        place: the state folder that it belongs to.
        label: tells its experiment and data from all others (`experiments/checkpoint.py`).
        state: how far it is.
        closed: rounds that are closed.

    """

    run_id: str
    place: str
    label: str
    state: RunState = RunState.OPEN
    closed: int = 0


class Outcome(StrEnum):
    """What came of an assignment."""

    ACCEPTED = "accepted"
    QUARANTINED = "quarantined"
    DECLINED = "declined"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Assigned:
    """What a device is to do in a round: its sub-model, its levers, and what it said of itself then, all as JSON."""

    device: str
    spec: str
    levers: str
    profile: str


@dataclass(frozen=True, slots=True)
class Settled:
    """What came of a device's assignment.

    Attributes:
        device: name of the device.
        outcome: what came of it.
        reason: why nothing was folded in; empty if it was.
        why: why the device declined (`server/link.py`); empty if it did not.
        sha256: digest of its contribution, which names the object; empty if there is none.
        size: bytes of the contribution.
        report: what the device said of its training, as JSON.

    """

    device: str
    outcome: Outcome
    reason: str = ""
    why: str = ""
    sha256: str = ""
    size: int = 0
    report: str = ""


@dataclass(frozen=True, slots=True)
class RoundRow:
    """A round as it was opened, and what came of its assignments so far; `planner` is what planned it, as JSON."""

    number: int
    planner: str
    assigned: Sequence[Assigned]
    settled: Mapping[str, Settled]


@dataclass(frozen=True, slots=True)
class Recorded:
    """A closed round, for good.

    Attributes:
        number: of the round.
        at: when it was closed, in seconds of the Unix epoch.
        closed: what it came to (`server/events.py`, `RoundClosed`), as JSON.
        devices: what came of each device (`server/store/record.py`), as JSON; empty if it is not kept any more.
        undone: whether the run was rolled back to a round before.

    """

    number: int
    at: float
    closed: str
    devices: str = ""
    undone: bool = False


@dataclass(frozen=True, slots=True)
class Present:
    """A device that is there: its profile as JSON, and the digest of the key by which it may take its name over."""

    profile: str
    key: str = ""


@dataclass(frozen=True, slots=True)
class Audited:
    """A line of the audit: at a time (seconds of the Unix epoch), who did what to what, and how it ended."""

    at: float
    who: str
    call: str
    detail: str = ""
    outcome: str = ""


@dataclass(frozen=True, slots=True)
class Queued:
    """A run in a coordinator's queue.

    Attributes:
        run_id: its name.
        label: as in `RunRow`.
        document: its experiment as JSON if an operator has sent it; empty if the coordinator's command names it.
        over: whether its turn is over, however it ended.

    """

    run_id: str
    label: str
    document: str = ""
    over: bool = False


class Store(Protocol):
    """A database; safe to use from several threads, and what a method has done survives a crash after it returns.

    Every method raises `StoreError` if the database cannot be read or written.
    """

    def add_run(self, run: RunRow) -> None:
        """Begin a run."""
        ...

    def set_run(self, run_id: str, state: RunState) -> None:
        """Note how far a run is. One that is not open any more loses its assignments."""
        ...

    def runs(self, place: str) -> list[RunRow]:
        """Return the runs of a state folder, the newest first."""
        ...

    def queue(self, place: str) -> list[Queued]:
        """Return the queue of a state folder, in order; empty once every run in it is over."""
        ...

    def set_queue(self, place: str, queue: Sequence[Queued]) -> None:
        """Replace the queue of a state folder."""
        ...

    def open_round(self, run_id: str, number: int, planner: str, assigned: Sequence[Assigned]) -> None:
        """Note what is to go out in a round, in the place of what was noted of it before."""
        ...

    def settle(self, run_id: str, number: int, settled: Sequence[Settled]) -> None:
        """Note what came of assignments. The first word holds, but what was accepted may be quarantined after."""
        ...

    def round(self, run_id: str, number: int) -> RoundRow | None:
        """Return a round with its assignments; None if it has none, or none any more."""
        ...

    def close_round(self, run_id: str, number: int, updates: int, abandoned: str) -> None:
        """Note what a round came to, and forget the assignments of all but the last `KEPT_ROUNDS`."""
        ...

    def record(self, run_id: str, row: Recorded) -> None:
        """Append a round to a run's history; devices are kept of the last `KEPT_DETAILS` rounds."""
        ...

    def records(self, run_id: str) -> list[Recorded]:
        """Return a run's history as it was written, without devices."""
        ...

    def recorded(self, run_id: str, number: int) -> Recorded | None:
        """Return a round of a run's history, with its devices: the one that counts, or else the last."""
        ...

    def roll_back(self, run_id: str, number: int) -> None:
        """Forget rounds behind `number`, the open one too; in the history they are undone. May be repeated."""
        ...

    def note(self, place: str, kind: str, name: str, text: str) -> None:
        """Note something of a kind about a run or a device of a state folder; an empty text forgets it."""
        ...

    def notes(self, place: str, kind: str) -> dict[str, str]:
        """Return what is noted of a kind, by name."""
        ...

    def meet(self, place: str, device: str, present: Present) -> None:
        """Note that a device has joined."""
        ...

    def part(self, place: str, device: str) -> None:
        """Note that a device has left, or that its lease has lapsed."""
        ...

    def devices(self, place: str) -> dict[str, Present]:
        """Return the devices that are there, by name."""
        ...

    def suspend(self, place: str, device: str, reason: str) -> None:
        """Suspend a device, or release it with an empty reason."""
        ...

    def suspended(self, place: str) -> dict[str, str]:
        """Return why devices are suspended, by name."""
        ...

    def audit(self, place: str, line: Audited) -> None:
        """Append to the audit, of which the last `KEPT_AUDITS` lines are kept."""
        ...

    def audited(self, place: str, most: int = 100) -> list[Audited]:
        """Return the last lines of the audit, the newest first."""
        ...

    def close(self) -> None:
        """Release what the database takes."""
        ...
