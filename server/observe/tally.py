"""Counts of what has happened in a coordinator's runs, for whoever asks how it is doing."""

import math
import re
import threading
import time
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field

from diastole.server.events import (
    DeviceLost,
    DevicesMoved,
    Event,
    RoundClosed,
    RoundTimed,
    RunFinished,
    TaskDeclined,
    UpdateAccepted,
    UpdateQuarantined,
)

SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)
"""Bounds of the histograms' buckets."""

REASONS = {
    "unknown task": r"unknown task|without a session",
    "upload": r"^upload for ",
    "not finite": r"not finite",
    "too far": r"away from what was sent|changes values by",
    "tensors": r"^tensor ",
    "report": r"^update (counts|reports)|^weight ",
    "unlisted": r"more faults of devices",
}
"""Kinds of reasons of quarantines, and how each is known; the first that fits counts."""
OTHER = "payload"


@dataclass(slots=True)
class Histogram:
    """How many values there were up to each bound, and their sum."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(SECONDS) + 1))
    sum: float = 0.0

    def add(self, value: float) -> None:
        """Count a value; one that is not finite is none."""
        if math.isfinite(value):
            self.counts[bisect_left(SECONDS, value)] += 1
            self.sum += value


class Tally:
    """Observes every run of a coordinator. May be read from any thread.

    Attributes:
        began: when it was made, in seconds since 1970.
        rounds: that were over, by outcome: "closed", "abandoned" or "rolled back".
        updates: tasks by what became of them: "accepted", "quarantined", "lost", "declined" or "late".
        quarantines: by kind of reason.
        declined: tasks by why.
        bytes: payload bytes by direction, of closed rounds.
        failures: of runs.
        phases: seconds of rounds by phase.
        whole: seconds of rounds.
        training: seconds of updates' training, as devices say.
        fold_rate: updates a second that the last round folded.
        last: when the last round was over, in seconds since 1970; 0 before.
        scores: of the last evaluation, by metric.

    """

    def __init__(self) -> None:
        self.began = time.time()
        self.rounds, self.updates, self.quarantines = Counter[str](), Counter[str](), Counter[str]()
        self.declined, self.bytes = Counter[str](), Counter[str]()
        self.failures = self._folded = 0
        self.phases: dict[str, Histogram] = {}
        self.whole, self.training = Histogram(), Histogram()
        self.fold_rate = self.last = 0.0
        self.scores: dict[str, float] = {}
        self.lock = threading.Lock()

    def __call__(self, event: Event) -> None:
        """Count an event."""
        with self.lock:
            self._count(event)

    def _count(self, event: Event) -> None:
        match event:
            case UpdateAccepted():
                self.updates["accepted"] += 1
                self.training.add(event.seconds)
            case UpdateQuarantined():
                self.updates["quarantined"] += 1
                self.quarantines[kind_of(event.reason)] += 1
            case DeviceLost():
                self.updates["lost"] += 1
            case TaskDeclined():
                self.updates["declined"] += 1
                self.declined[event.why] += 1
            case DevicesMoved():
                self.updates["late"] += sum(move.stage == "late" for move in event.moves)
            case RoundClosed():
                outcome = "abandoned" if event.abandoned else "closed"
                self.rounds["rolled back" if event.rolled_back else outcome] += 1
                self.bytes.update({"down": event.bytes_down, "up": event.bytes_up})
                self.whole.add(event.wall_seconds)
                self._folded, self.last = event.updates, time.time()
                self.scores = event.scores or self.scores
            case RoundTimed():
                for phase in event.phases:
                    self.phases.setdefault(phase.name, Histogram()).add(phase.seconds)
                    if phase.name == "fold" and phase.seconds:
                        self.fold_rate = self._folded / phase.seconds
            case RunFinished():
                self.failures += bool(event.failed)


def kind_of(reason: str) -> str:
    """Return which kind a reason of a quarantine is of; there are few, whatever devices send."""
    return next((name for name, pattern in REASONS.items() if re.search(pattern, reason)), OTHER)
