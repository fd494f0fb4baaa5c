"""Spans of rounds for OpenTelemetry: what the coordinator did when, and some of its devices."""

import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from diastole.proto.missing import missing
from diastole.server.events import (
    DevicesMoved,
    Event,
    Move,
    Phase,
    RoundClosed,
    RoundStarted,
    RoundTimed,
    RunFinished,
    RunStarted,
    Stage,
    UpdateAccepted,
)

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, Tracer

LOG = logging.getLogger(__name__)
SAMPLED = 20
"""Devices of a round that have spans of their own: the first that move."""
STAGES: tuple[Stage, ...] = ("downloading", "training", "uploading")
ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


@dataclass(slots=True)
class _Round:
    number: int
    devices: int
    moves: dict[str, list[Move]] = field(default_factory=dict)
    accepted: dict[str, float] = field(default_factory=dict)
    closed: RoundClosed | None = None
    phases: tuple[Phase, ...] = ()


class Traced:
    """Observes a run, and makes a trace of each round once the next one is over: devices are told of a little late."""

    def __init__(self, run_id: str, tracer: "Tracer") -> None:
        self._run_id, self._tracer, self._method = run_id, tracer, ""
        self._rounds: dict[int, _Round] = {}

    def __call__(self, event: Event) -> None:
        """Note an event, or make spans."""
        match event:
            case RunStarted():
                self._method = event.method
            case RoundStarted():
                self._rounds[event.round] = _Round(event.round, len(event.specs))
            case DevicesMoved() if event.round in self._rounds:
                moves = self._rounds[event.round].moves
                for move in event.moves:
                    if move.device in moves or len(moves) < SAMPLED:
                        moves.setdefault(move.device, []).append(move)
            case UpdateAccepted() if event.round in self._rounds and len(self._rounds[event.round].accepted) < SAMPLED:
                self._rounds[event.round].accepted[event.device] = time.time()
            case RoundClosed() if event.round in self._rounds:
                self._rounds[event.round].closed = event
            case RoundTimed() if event.round in self._rounds:
                self._rounds[event.round].phases = event.phases
                self._make(before=event.round)
            case RunFinished():
                self._make(before=event.rounds + 1)

    def _make(self, before: int) -> None:
        for number in sorted(number for number in self._rounds if number < before):
            found = self._rounds.pop(number)
            if found.phases:
                self._trace(found)

    def _trace(self, found: _Round) -> None:
        ended = max(phase.ended for phase in found.phases)
        what: dict[str, Any] = {"run": self._run_id, "round": found.number, "method": self._method}
        if (closed := found.closed) is not None:
            what |= {"updates": closed.updates, "bytes.down": closed.bytes_down, "bytes.up": closed.bytes_up}
            what |= {"abandoned": closed.abandoned, "devices": found.devices}
        whole = self._span("round", found.phases[0].began, None, what)
        for phase in found.phases:
            self._span(phase.name, phase.began, whole, {"seconds": phase.seconds}).end(_nanoseconds(phase.ended))
        for device, moves in found.moves.items():
            last = min(found.accepted.get(device, ended), ended)
            self._device(device, moves, whole, max(last, moves[-1].at))
        whole.end(_nanoseconds(ended))

    def _device(self, device: str, moves: list[Move], whole: "Span", ended: float) -> None:
        span = self._span("device", moves[0].at, whole, {"device": device})
        for move, until in zip(moves, (*(each.at for each in moves[1:]), ended), strict=True):
            if move.stage in STAGES:
                self._span(move.stage, move.at, span, {"device": device}).end(_nanoseconds(until))
        span.end(_nanoseconds(ended))

    def _span(self, name: str, began: float, parent: "Span | None", what: Mapping[str, Any]) -> "Span":
        from opentelemetry.context import Context
        from opentelemetry.trace import set_span_in_context

        context = Context() if parent is None else set_span_in_context(parent, Context())
        return self._tracer.start_span(name, context, attributes=dict(what), start_time=_nanoseconds(began))


def provider(environment: Mapping[str, str] = os.environ) -> "TracerProvider | None":
    """Return what sends spans where the environment says, in `OTEL_EXPORTER_OTLP_ENDPOINT`; None if it says nothing."""
    if not any(environment.get(name) for name in ENDPOINTS):
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        LOG.warning("%s", missing(f"{ENDPOINTS[-1]} is set", "OpenTelemetry", "diastole[traces]"))
        return None
    resource = {
        "service.name": environment.get("OTEL_SERVICE_NAME", "diastole"),
        "service.version": version("diastole"),
    }
    made = TracerProvider(resource=Resource.create(resource), shutdown_on_exit=False)
    made.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return made


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
