"""Devices that are kept out for a while, because they offend again and again or because the operator wants it."""

import threading
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

LONGEST = 1000
"""Rounds of the longest suspension."""


@dataclass(frozen=True, slots=True)
class Suspension:
    """A device is kept out.

    Attributes:
        reason: why.
        since: the round behind which it began.
        until: the round in which the device may take part again; 0: not before it is released.

    """

    reason: str
    since: int = 0
    until: int = 0

    def __str__(self) -> str:
        until = f"until round {self.until}" if self.until else "until it is released"
        return f"it is suspended {until}: {self.reason}"


class Suspensions:
    """Who is kept out of a run; safe to use from several threads.

    A device whose updates are quarantined in `offences` rounds, with none accepted in between, is suspended for
    `rounds` rounds, and each further time for twice as many as the last time. Only rounds that count are looked at:
    where most devices fail, the model is at fault.
    """

    def __init__(self, offences: int, rounds: int) -> None:
        """Suspend by these numbers; 0 offences: nobody but by hand."""
        self._offences, self._rounds = offences, rounds
        self._lock = threading.Lock()
        self._row: dict[str, int] = {}
        self._times: dict[str, int] = {}
        self._out: dict[str, Suspension] = {}
        self._by_hand: dict[str, Suspension] = {}

    def why(self, device: str) -> str:
        """Return why a device is kept out; empty if it is not."""
        if not self._by_hand and not self._out:
            return ""
        found = self._by_hand.get(device) or self._out.get(device)
        return str(found) if found else ""

    def begin(self, number: int) -> None:
        """Let those back in whose suspension ends with the round before."""
        with self._lock:
            self._out = {device: each for device, each in self._out.items() if each.until > number}

    def note(self, number: int, offenders: Collection[str], accepted: Collection[str]) -> dict[str, Suspension]:
        """Note a round that counts, and return who is suspended for it."""
        found = dict[str, Suspension]()
        with self._lock:
            for device in accepted:
                self._row.pop(device, None)
            for device in sorted(offenders) if self._offences else ():
                self._row[device] = self._row.get(device, 0) + 1
                if self._row[device] >= self._offences:
                    times = self._times[device] = self._times.get(device, 0) + 1
                    count = min(LONGEST, self._rounds * 2 ** min(times - 1, LONGEST))
                    row = self._row.pop(device)
                    last = f"its last {row} updates were" if row > 1 else "its last update was"
                    reason = f"{last} quarantined"
                    found[device] = Suspension(reason, number, number + 1 + count)
            self._out |= found
        return found

    def suspend(self, device: str, reason: str) -> None:
        """Keep a device out until it is released."""
        with self._lock:
            self._by_hand[device] = Suspension(reason)

    def release(self, device: str, closed: int = LONGEST**3) -> bool:
        """Let a device back in, and forget what it did in the first `closed` rounds; return whether it was kept out."""
        with self._lock:
            by_hand, out = self._by_hand.pop(device, None), self._out.get(device)
            if out is not None and out.since > closed:
                return by_hand is not None
            for each in (self._row, self._times, self._out):
                each.pop(device, None)
            return by_hand is not None or out is not None

    def memory(self) -> dict[str, Any]:
        """Return what was learned, as JSON; what the operator decided is kept elsewhere."""
        with self._lock:
            out = {device: asdict(each) for device, each in self._out.items()}
            return {"row": dict(self._row), "times": dict(self._times), "out": out}

    def resume(self, memory: Mapping[str, Any]) -> None:
        """Go on with other suspensions' `memory()`."""
        with self._lock:
            self._row, self._times = dict(memory.get("row", {})), dict(memory.get("times", {}))
            self._out = {device: Suspension(**each) for device, each in memory.get("out", {}).items()}
