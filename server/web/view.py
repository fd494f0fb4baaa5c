"""What a dashboard shows of a run: a function of the run's events, of bounded size."""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from diastole.proto.words import plain
from diastole.server.events import (
    DeviceJoined,
    DeviceLeft,
    DeviceLost,
    DevicesAwaited,
    DevicesMoved,
    Event,
    RoundClosed,
    RoundStarted,
    RoundTimed,
    RunFinished,
    RunPaused,
    RunResumed,
    RunRolledBack,
    RunStarted,
    Stage,
    TaskDeclined,
    UpdateAccepted,
    UpdateQuarantined,
    finite,
)
from diastole.server.progress import DONE, Part

MOST_POINTS = 4000
"""Closed rounds of a run that are kept; of more, every second of the older half goes."""
MOST_GONE = 10_000
"""Devices that have left, and are still shown."""
MOST_NOTES, MOST_REFUSED = 300, 1000
"""Lines of the two logs."""

STAGES: Mapping[Stage, Part] = {
    "given": Part.TOLD,
    "downloading": Part.DOWNLOADING,
    "training": Part.TRAINING,
    "uploading": Part.UPLOADING,
    "delivered": Part.DELIVERED,
    "late": Part.LATE,
}


@dataclass(slots=True)
class Member:
    """A device in a round's cohort.

    Attributes:
        spec: label of its sub-model.
        part: how far it is.
        why: it has brought nothing; empty if that is not so.
        seconds: that it has trained; 0 before its update is folded.
        loss: of that training.

    """

    spec: str
    part: Part
    why: str = ""
    seconds: float = 0.0
    loss: float | None = None


@dataclass(slots=True)
class Device:
    """A device of the run.

    Attributes:
        tier: that it is in; empty if unknown.
        examples: that it can train on.
        online: whether it is there.
        spec: label of its last sub-model.
        rounds: in whose cohort it was, as far as this process knows.
        accepted: updates that were folded.
        quarantined: updates that were refused.
        seconds: of its last training.
        loss: likewise.

    """

    tier: str = ""
    examples: int = 0
    online: bool = True
    spec: str = ""
    rounds: int = 0
    accepted: int = 0
    quarantined: int = 0
    seconds: float = 0.0
    loss: float | None = None


@dataclass(frozen=True, slots=True)
class Note:
    """A line of a log; `number` counts the lines of that log, `at` is in seconds of the Unix epoch."""

    number: int
    at: float
    round: int
    kind: str
    device: str
    text: str


@dataclass(slots=True)
class RunView:
    """What is shown of one run.

    Attributes:
        run_id: its name.
        staged: whether events tell how far each device is with its task; if not, all train from the first moment.
        method: that is run.
        metric: that it is judged by.
        rounds: how many there are to be.
        began: when this process began with it, in seconds of the Unix epoch; None before.
        over: whether it has finished.
        ending: why it ended before its last round; empty if it did not.
        awaited: whom it waits for; empty if it does not wait.
        round: the round that is open, or was last.
        open: whether it is.
        opened: when, likewise.
        cohort: of that round, by device.
        devices: of the run, by name.
        points: closed rounds, as JSON; `point` numbers them.
        notes: what an operator should look at.
        refused: quarantined updates.
        timed: where the time of the last closed round went: its number, and the seconds of each phase.
        totals: of updates by what became of them, and of bytes, over the whole run.
        revision: grows with every event.

    """

    run_id: str
    staged: bool = True
    method: str = ""
    metric: str = "accuracy"
    rounds: int = 0
    began: float | None = None
    over: bool = False
    ending: str = ""
    awaited: str = ""
    round: int = 0
    open: bool = False
    opened: float = 0.0
    cohort: dict[str, Member] = field(default_factory=dict)
    devices: dict[str, Device] = field(default_factory=dict)
    points: list[dict[str, Any]] = field(default_factory=list)
    notes: deque[Note] = field(default_factory=lambda: deque(maxlen=MOST_NOTES))
    refused: deque[Note] = field(default_factory=lambda: deque(maxlen=MOST_REFUSED))
    timed: dict[str, Any] = field(default_factory=dict)
    totals: dict[str, float] = field(default_factory=dict)
    revision: int = 0
    _numbers: dict[str, int] = field(default_factory=dict)
    _gone: dict[str, None] = field(default_factory=dict)

    def meet(self, tiers: Mapping[str, str], examples: Mapping[str, int]) -> None:
        """Let devices be there that no event tells of: simulated ones, by the tier of each."""
        self.devices |= {name: Device(tier, examples.get(name, 0)) for name, tier in tiers.items()}

    def recall(self, closed: Iterable[RoundClosed]) -> None:
        """Show rounds that an earlier process has closed."""
        for each in closed:
            self._point(each, cohort=0)
            self.round = each.round

    def apply(self, event: Event, at: float) -> None:
        """Take in an event that happened at a time, in seconds of the Unix epoch."""
        self.revision += 1
        match event:
            case RunStarted():
                self.method, self.rounds, self.metric = event.method, event.rounds, event.metric
                self.began, self.round = at, max(self.round, event.closed)
                for name in event.devices:
                    self.devices.setdefault(name, Device())
            case DeviceJoined():
                device = self.devices.setdefault(event.device, Device())
                device.tier, device.examples, device.online = event.tier, event.examples, True
                self._gone.pop(event.device, None)
            case DeviceLeft():
                self._part(event.device)
            case DevicesAwaited():
                self.awaited = event.message
            case RoundStarted():
                self._start(event, at)
            case DevicesMoved():
                self._move(event)
            case UpdateAccepted():
                self._fold(event)
            case UpdateQuarantined():
                self._fail(event.device, event.round, Part.QUARANTINED, event.reason, at)
            case DeviceLost():
                self._fail(event.device, event.round, Part.LOST, event.reason, at)
            case TaskDeclined():
                self._fail(event.device, event.round, Part.DECLINED, f"{event.why}: {event.reason}", at)
            case RoundClosed():
                self._close(event, at)
            case RoundTimed():
                self.timed = {"round": event.round, "phases": [(each.name, each.seconds) for each in event.phases]}
            case RunPaused():
                self._note("paused", event.closed, "", "no round begins before the run is resumed", at)
            case RunResumed():
                self._note("resumed", event.closed, "", "rounds begin again", at)
            case RunRolledBack():
                self.points = [point for point in self.points if point["round"] <= event.round]
                self.round, self.open = event.round, False
                self._note("rolled back", event.round, "", f"{event.undone} rounds are taken back", at)
            case RunFinished():
                self.over, self.awaited = True, ""
                self.ending = event.failed or event.early or ("stopped by the operator" if event.stopped else "")
                if self.ending:
                    self._note("failed" if event.failed else "ended", event.rounds, "", self.ending, at)

    def _start(self, event: RoundStarted, at: float) -> None:
        self.round, self.open, self.opened, self.awaited = event.round, True, at, ""
        part = Part.WAITING if self.staged else Part.TRAINING
        self.cohort = {name: Member(spec, part) for name, spec in event.specs.items()}
        for name, spec in event.specs.items():
            device = self.devices.setdefault(name, Device())
            device.spec, device.rounds = spec, device.rounds + 1
        if event.kept:
            text = f"the round goes on; {event.kept} of {len(event.specs)} updates are here"
            self._note("resumed", event.round, "", text, at)

    def _move(self, event: DevicesMoved) -> None:
        for move in event.moves if event.round == self.round else ():
            member = self.cohort.get(move.device)
            if member is not None and member.part not in DONE:
                member.part = STAGES[move.stage]

    def _fold(self, event: UpdateAccepted) -> None:
        member = self.cohort.setdefault(event.device, Member(event.spec, Part.FOLDED))
        device = self.devices.setdefault(event.device, Device())
        member.part, member.seconds, member.loss = Part.FOLDED, event.seconds, finite(event.loss)
        device.accepted, device.seconds, device.loss = device.accepted + 1, event.seconds, member.loss

    def _fail(self, name: str, number: int, part: Part, reason: str, at: float) -> None:
        # Whoever sends without a session has a name that nobody gave it.
        device, member = self.devices.get(name), self.cohort.get(name)
        if member is not None and member.part not in (Part.FOLDED, Part.QUARANTINED):
            member.part, member.why = part, plain(reason)
        if part is Part.QUARANTINED:
            if device is not None:
                device.quarantined += 1
            self.refused.append(Note(self._next("refused"), at, number, part, plain(name, 64), plain(reason)))
        else:
            self._note(part, number, name, reason, at)

    def _close(self, event: RoundClosed, at: float) -> None:
        for member in self.cohort.values():
            if member.part not in DONE:
                member.part = Part.LATE
        for part in (Part.FOLDED, Part.DECLINED, Part.LOST, Part.LATE, Part.QUARANTINED):
            self._count(part, sum(member.part is part for member in self.cohort.values()))
        self.open, self.round = False, event.round
        self._point(event, len(self.cohort))
        if event.abandoned:
            self._note("abandoned", event.round, "", event.abandoned, at)
        for warning in event.warnings:
            self._note("warning", event.round, "", warning, at)

    def _point(self, event: RoundClosed, cohort: int) -> None:
        down = self._count("bytes_down", event.bytes_down)
        up = self._count("bytes_up", event.bytes_up)
        seconds = self._count("seconds", event.seconds)
        self._count("macs", event.macs)
        point = {
            "point": self._next("points"),
            "round": event.round,
            "scores": event.scores,
            "tiers": event.tier_scores,
            "down": down,
            "up": up,
            "seconds": seconds,
            "took": event.seconds,
            "moved": event.bytes_down + event.bytes_up,
            "updates": event.updates,
            "cohort": cohort,
            "abandoned": plain(event.abandoned),
        }
        self.points.append(finite(point))
        if len(self.points) > MOST_POINTS:
            half = len(self.points) // 2
            self.points[:half] = self.points[:half:2]

    def _part(self, name: str) -> None:
        if (device := self.devices.get(name)) is None:
            return
        device.online, self._gone[name] = False, None
        if len(self._gone) > MOST_GONE:
            oldest = next(iter(self._gone))
            del self._gone[oldest], self.devices[oldest]

    def _note(self, kind: str, number: int, device: str, text: str, at: float) -> None:
        self.notes.append(Note(self._next("notes"), at, number, kind, plain(device, 64), plain(text)))

    def _count(self, key: str, amount: float = 1) -> float:
        self.totals[key] = self.totals.get(key, 0) + amount
        return self.totals[key]

    def _next(self, key: str) -> int:
        self._numbers[key] = self._numbers.get(key, 0) + 1
        return self._numbers[key]
