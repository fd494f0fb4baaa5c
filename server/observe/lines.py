"""Events as lines for people, as a console shows them and a log keeps them."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass

from diastole.models.metrics import shown, title
from diastole.proto.words import megabytes
from diastole.server.events import (
    DeviceJoined,
    DeviceLeft,
    DeviceLost,
    DevicesAwaited,
    Event,
    RoundClosed,
    RoundStarted,
    RoundTimed,
    RunFinished,
    RunPaused,
    RunResumed,
    RunRolledBack,
    RunStarted,
    TaskDeclined,
    UpdateAccepted,
    UpdateQuarantined,
)


@dataclass(frozen=True, slots=True)
class Line:
    """One line.

    Attributes:
        text: without its end.
        level: how much it matters, as `logging` counts.
        routine: whether a moving picture of the run shows the same.

    """

    text: str
    level: int = logging.INFO
    routine: bool = False


class Lines:
    """Says what the events of one run are; some need what came before."""

    def __init__(self) -> None:
        self._rounds, self._metric = 0, "accuracy"
        self._tiers: dict[str, dict[str, float]] = {}

    def __call__(self, event: Event) -> Iterator[Line]:
        """Yield the lines that tell an event."""
        match event:
            case RunStarted():
                self._rounds, self._metric = event.rounds, event.metric
                yield Line(f"{event.method}: {event.rounds} rounds, {len(event.devices)} devices", routine=True)
                if event.closed:
                    yield Line(f"going on after round {event.closed}")
            case RoundStarted():
                yield Line(f"round {event.round} begins with {len(event.specs)} devices", logging.DEBUG)
                if event.kept:
                    yield Line(f"round {event.round} goes on; {event.kept} of {len(event.specs)} updates are here")
            case UpdateAccepted():
                text = f"round {event.round}: {event.device} delivered {event.spec}, loss {event.loss:.3g}"
                yield Line(f"{text}, {event.seconds:.2f} s of training", logging.DEBUG)
            case UpdateQuarantined():
                yield Line(f"round {event.round}: {event.device} quarantined: {event.reason}", logging.WARNING)
            case DeviceLost():
                yield Line(f"round {event.round}: {event.device} lost: {event.reason}", logging.WARNING)
            case TaskDeclined():
                yield Line(f"round {event.round}: {event.device} declined, {event.why}: {event.reason}")
            case RoundClosed():
                yield from self._closed(event)
            case RoundTimed():
                spent = ", ".join(f"{phase.name} {phase.seconds:.3g} s" for phase in event.phases)
                yield Line(f"round {event.round}: {spent}", logging.DEBUG)
            case DeviceJoined():
                exactly = f"; it does not know {event.lacks}, so its payloads travel exactly" if event.lacks else ""
                yield Line(f"{event.device} joined, tier {event.tier}, {event.examples} examples{exactly}")
            case DevicesAwaited():
                yield Line(f"waiting: {event.message}")
            case DeviceLeft():
                yield Line(f"{event.device} left: {event.reason}")
            case RunPaused():
                yield Line(f"paused after round {event.closed}, until an operator resumes the run")
            case RunResumed():
                yield Line("resumed")
            case RunRolledBack():
                yield Line(f"rolled back to round {event.round}; {event.undone} rounds are taken back", logging.WARNING)
            case RunFinished():
                after = f"after round {event.rounds} of {self._rounds}"
                if event.failed:
                    yield Line(f"failed, {after}: {event.failed}", logging.ERROR)
                if event.early:
                    yield Line(f"ended early, {after}: {event.early}")

    def standing(self) -> list[str]:
        """Return how good each exported size is, as far as it was measured."""
        found = {label: row[self._metric] for label, row in self._tiers.items() if self._metric in row}
        return [f"{label} {shown(self._metric, value)}" for label, value in found.items()]

    def _closed(self, event: RoundClosed) -> Iterator[Line]:
        self._tiers = event.tier_scores or self._tiers
        if event.abandoned:
            yield Line(f"round {event.round} abandoned: {event.abandoned}", logging.WARNING)
        for warning in event.warnings:
            yield Line(f"round {event.round}: {warning}", logging.WARNING)
        parts = [f"round {event.round:>{len(str(self._rounds))}}/{self._rounds}", f"{event.updates} updates"]
        parts += [f"{title(name)} {shown(name, value)}" for name, value in (event.scores or {}).items()]
        if len(event.tier_scores) > 1:
            parts.append(", ".join(self.standing()))
        parts += [megabytes(event.bytes_down + event.bytes_up), f"{event.seconds:.1f} s"]
        yield Line("  ".join(parts), routine=True)
