"""A closed round as it is kept for good: what it came to, and in short what came of each device."""

import json
import time
from dataclasses import asdict, dataclass

from pydantic import ConfigDict, TypeAdapter

from diastole.models.levers import Levers
from diastole.proto.jsontext import from_json
from diastole.server.events import RoundClosed
from diastole.server.store.store import Recorded, RoundRow


@dataclass(frozen=True, slots=True)
class Part:
    """What came of a device in a round.

    Attributes:
        device: its name.
        size: label of the sub-model that it held.
        levers: with which it trained in little memory.
        outcome: "accepted", "quarantined", "declined" or "lost"; empty if it owes its update, or it was not needed.
        reason: why nothing was folded in; empty if it was.
        examples: that it trained on; 0 if it brought nothing.
        loss: mean loss of its last epoch; None if it brought nothing, or told no number.
        seconds: that it trained.
        bytes_up: of its update.

    """

    device: str
    size: str
    levers: tuple[str, ...] = ()
    outcome: str = ""
    reason: str = ""
    examples: int = 0
    loss: float | None = None
    seconds: float = 0.0
    bytes_up: int = 0


# A loss may be infinite.
_PARTS = TypeAdapter(list[Part], config=ConfigDict(ser_json_inf_nan="constants"))
_CLOSED = TypeAdapter(RoundClosed)


def parts_of(row: RoundRow) -> list[Part]:
    """Return what came of each device of a round so far."""
    # Devices share few sub-models.
    labels = {spec: from_json(spec)["label"] for spec in {each.spec for each in row.assigned}}
    found = []
    for each in row.assigned:
        part = Part(each.device, labels[each.spec], Levers.from_json(each.levers).used)
        if settled := row.settled.get(each.device):
            report = from_json(settled.report or "{}")
            part = Part(
                part.device,
                part.size,
                part.levers,
                settled.outcome.value,
                settled.reason,
                report.get("examples", 0),
                report.get("loss"),
                report.get("seconds", 0.0),
                settled.size,
            )
        found.append(part)
    return found


def recorded(closed: RoundClosed, row: RoundRow | None) -> Recorded:
    """Return a round that has closed, for the history; `row` has its devices."""
    parts = _PARTS.dump_json(parts_of(row) if row else []).decode()
    return Recorded(closed.round, time.time(), json.dumps(asdict(closed)), parts)


def closed_of(row: Recorded) -> RoundClosed:
    """Return what a round came to. Raises `ValueError` if it cannot be read."""
    return _CLOSED.validate_python(from_json(row.closed))


def parts_in(row: Recorded) -> list[Part] | None:
    """Return what came of its devices; None if that is not kept any more. Raises `ValueError` likewise."""
    return _PARTS.validate_json(row.devices) if row.devices else None
