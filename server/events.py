"""What happens in a run, for observers such as the console, the admin service and the report."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class RunStarted:
    """The run begins with these devices online, or goes on after `closed` rounds of an earlier process.

    `metric` is the score that the run is judged by.
    """

    method: str
    rounds: int
    devices: tuple[str, ...]
    closed: int = 0
    metric: str = "accuracy"


@dataclass(frozen=True, slots=True)
class DeviceJoined:
    """A device has joined; a device that comes back joins again.

    Attributes:
        device: its name.
        tier: that it is in.
        examples: that it can train on.
        lacks: codecs of the run that it does not know, so that its payloads travel exactly; empty if it knows all.

    """

    device: str
    tier: str
    examples: int
    lacks: str = ""


@dataclass(frozen=True, slots=True)
class DeviceLeft:
    """A device has left, or has been silent for longer than its lease."""

    device: str
    reason: str


@dataclass(frozen=True, slots=True)
class DevicesAwaited:
    """The run waits for devices: for whom, and why those that are there are not enough."""

    message: str


@dataclass(frozen=True, slots=True)
class RoundStarted:
    """Tasks go out; `specs` has the label of each device's sub-model.

    A round that an earlier process had opened goes on with the `kept` updates that had come.
    """

    round: int
    specs: dict[str, str]
    kept: int = 0


@dataclass(frozen=True, slots=True)
class UpdateAccepted:
    """A device's update passed every check."""

    round: int
    device: str
    spec: str
    examples: int
    loss: float
    seconds: float


@dataclass(frozen=True, slots=True)
class UpdateQuarantined:
    """A device sent something that must not reach the aggregate."""

    round: int
    device: str
    reason: str


@dataclass(frozen=True, slots=True)
class DeviceLost:
    """A device that owed an update is gone, or its transfer has failed."""

    round: int
    device: str
    reason: str


@dataclass(frozen=True, slots=True)
class TaskDeclined:
    """A device will not do its task: `why` is "memory", "paused" or "task", and `reason` what it says."""

    round: int
    device: str
    why: str
    reason: str


ROLLED_BACK = "back to the model before the last round that counted"
"""The end of the words of an abandoned round that also takes the last good model back."""


@dataclass(frozen=True, slots=True)
class RoundClosed:
    """The global model moved on, or stayed as it was if the round was abandoned.

    Attributes:
        round: counted from 1.
        updates: how many were folded in.
        abandoned: why the global model was left alone; empty if it was not.
        scores: of the global model on the test set, by metric in the experiment's order, and then "loss"; None without
            a test set, or if the round was not evaluated.
        tier_scores: likewise of each exported size's sub-model, by label.
        bytes_down: payload bytes sent in this round.
        bytes_up: payload bytes received in this round.
        seconds: from the first step of the round to the last, by the coordinator's clock.
        macs: multiply-accumulates of the training whose updates were accepted.
        wall_seconds: the same by a real clock.
        server_seconds: real seconds of the server's own work, without waiting for devices and without evaluation.
        validation: the score on the proxy set's validation part by which the run may be ended early, if it may.
        warnings: what the operator should look at, each one line: who is suspended, and whose update is long and heavy.

    """

    round: int
    updates: int
    abandoned: str
    scores: dict[str, float] | None
    tier_scores: dict[str, dict[str, float]]
    bytes_down: int
    bytes_up: int
    seconds: float
    macs: int = 0
    # Two runs of the same bits never take the same real time.
    wall_seconds: float = field(default=0.0, compare=False)
    server_seconds: float = field(default=0.0, compare=False)
    validation: float | None = None
    warnings: tuple[str, ...] = ()

    @property
    def rolled_back(self) -> bool:
        """Whether the global model is again what it was before the last round that counted."""
        return self.abandoned.endswith(ROLLED_BACK)

    @property
    def accuracy(self) -> float | None:
        """The global model's accuracy on the test set, in [0, 1]; None if it was not measured."""
        return (self.scores or {}).get("accuracy")

    @property
    def tier_accuracy(self) -> dict[str, float]:
        """Likewise of each exported size's sub-model, by label, as far as it was measured."""
        return {label: scores["accuracy"] for label, scores in self.tier_scores.items() if "accuracy" in scores}


Stage = Literal["given", "downloading", "training", "uploading", "delivered", "late"]
"""How far a device is with its task, as the coordinator sees it; "late" once the round has ended without its update."""


@dataclass(frozen=True, slots=True)
class Move:
    """A device has come to a stage of its task, at a time in seconds since 1970."""

    device: str
    stage: Stage
    at: float = field(compare=False)


@dataclass(frozen=True, slots=True)
class DevicesMoved:
    """What devices have come to since the last such event, oldest first; over a network only, twice a second at most.

    It may come after the event that says what became of a device's update, which then counts.
    """

    round: int
    moves: tuple[Move, ...]


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of a round.

    Attributes:
        name: "plan", "encode", "wait" (for devices), "decode", "fold", "step", "learn", "prepare", "evaluate" or
            "checkpoint".
        began: its first moment, in seconds since 1970.
        ended: its last one; others may lie between.
        seconds: real seconds that it took itself.

    """

    name: str
    began: float = field(compare=False)
    ended: float = field(compare=False)
    seconds: float = field(compare=False)


@dataclass(frozen=True, slots=True)
class RoundTimed:
    """Where the real time of a closed round went, in the order in which its phases began; comes behind its end."""

    round: int
    phases: tuple[Phase, ...]


@dataclass(frozen=True, slots=True)
class RunPaused:
    """An operator has paused the run, of which `closed` rounds are closed: no round begins before it is resumed."""

    closed: int


@dataclass(frozen=True, slots=True)
class RunResumed:
    """An operator has resumed the run."""

    closed: int


@dataclass(frozen=True, slots=True)
class RunRolledBack:
    """An operator has rolled the run back: it goes on behind `round`, and the `undone` rounds after it do not count."""

    round: int
    undone: int


@dataclass(frozen=True, slots=True)
class RunFinished:
    """The last event.

    Attributes:
        rounds: that were closed.
        stopped: whether an operator ended the run early.
        early: why the run ended itself before its last round; empty if it did not.
        failed: why the run could not go on, or came to nothing; empty if it did not fail.

    """

    rounds: int
    stopped: bool
    early: str = ""
    failed: str = ""


Event = (
    RunStarted
    | DeviceJoined
    | DeviceLeft
    | DevicesAwaited
    | RoundStarted
    | UpdateAccepted
    | UpdateQuarantined
    | DeviceLost
    | TaskDeclined
    | DevicesMoved
    | RoundClosed
    | RoundTimed
    | RunPaused
    | RunResumed
    | RunRolledBack
    | RunFinished
)
Change = DeviceJoined | DeviceLeft | DevicesMoved
"""What a link tells of devices, at any time."""

Observer = Callable[[Event], None]


def kind(event: Event) -> str:
    """Return the event's name in snake case, such as `round_closed`."""
    name = type(event).__name__
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("_")


def as_dict(event: Event) -> dict[str, Any]:
    """Return the event's fields for JSON; a closed round's accuracy has keys of its own, null if not measured."""
    if isinstance(event, DevicesMoved):
        # There may be very many; `asdict` takes five times as long.
        moves = [{"device": move.device, "stage": move.stage, "at": move.at} for move in event.moves]
        return {"round": event.round, "moves": moves}
    fields = asdict(event)
    if isinstance(event, RoundClosed):
        fields |= {"accuracy": event.accuracy, "tier_accuracy": event.tier_accuracy}
    found: dict[str, Any] = finite(fields)
    return found


def finite(document: Any) -> Any:
    """Return a document with None for each number that is not finite: JSON has no such numbers."""
    if isinstance(document, dict):
        return {key: finite(value) for key, value in document.items()}
    if isinstance(document, list | tuple):
        return [finite(value) for value in document]
    return None if isinstance(document, float) and not math.isfinite(document) else document
