"""A store in memory: for tests, and for what need not survive its process."""

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from diastole.server.store.store import (
    KEPT_AUDITS,
    KEPT_DETAILS,
    KEPT_ROUNDS,
    Assigned,
    Audited,
    Outcome,
    Present,
    Queued,
    Recorded,
    RoundRow,
    RunRow,
    RunState,
    Settled,
)


class MemoryStore:
    """A `Store` that ends with its process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs: dict[str, RunRow] = {}
        self._queues: dict[str, list[Queued]] = {}
        self._rounds: dict[tuple[str, int], tuple[str, tuple[Assigned, ...], dict[str, Settled]]] = {}
        self._history: dict[str, list[Recorded]] = {}
        self._notes: dict[tuple[str, str, str], str] = {}
        self._devices: dict[tuple[str, str], Present] = {}
        self._suspended: dict[tuple[str, str], str] = {}
        self._audit: deque[tuple[str, Audited]] = deque(maxlen=KEPT_AUDITS)

    def add_run(self, run: RunRow) -> None:
        """See `Store.add_run`."""
        with self._lock:
            self._runs[run.run_id] = run

    def set_run(self, run_id: str, state: RunState) -> None:
        """See `Store.set_run`."""
        with self._lock:
            self._runs[run_id] = replace(self._runs[run_id], state=state)
            if state is not RunState.OPEN:
                self._rounds = {key: row for key, row in self._rounds.items() if key[0] != run_id}

    def runs(self, place: str) -> list[RunRow]:
        """See `Store.runs`."""
        with self._lock:
            return [run for run in reversed(self._runs.values()) if run.place == place]

    def queue(self, place: str) -> list[Queued]:
        """See `Store.queue`."""
        with self._lock:
            return list(self._queues.get(place, ()))

    def set_queue(self, place: str, queue: Sequence[Queued]) -> None:
        """See `Store.set_queue`."""
        with self._lock:
            self._queues[place] = list(queue)

    def open_round(self, run_id: str, number: int, planner: str, assigned: Sequence[Assigned]) -> None:
        """See `Store.open_round`."""
        with self._lock:
            self._rounds[run_id, number] = planner, tuple(assigned), {}

    def settle(self, run_id: str, number: int, settled: Sequence[Settled]) -> None:
        """See `Store.settle`."""
        with self._lock:
            _, assigned, found = self._rounds.get((run_id, number), ("", (), {}))
            names = {each.device for each in assigned}
            for each in settled:
                before = found.get(each.device)
                if before is None and each.device in names:
                    found[each.device] = each
                elif before is not None and before.outcome is Outcome.ACCEPTED and each.outcome is Outcome.QUARANTINED:
                    found[each.device] = replace(before, outcome=each.outcome, reason=each.reason)

    def round(self, run_id: str, number: int) -> RoundRow | None:
        """See `Store.round`."""
        with self._lock:
            row = self._rounds.get((run_id, number))
            return row and RoundRow(number, row[0], row[1], dict(row[2]))

    def close_round(self, run_id: str, number: int, updates: int, abandoned: str) -> None:
        """See `Store.close_round`."""
        with self._lock:
            self._runs[run_id] = replace(self._runs[run_id], closed=number)
            last = number - KEPT_ROUNDS + 2
            self._rounds = {key: row for key, row in self._rounds.items() if key[0] != run_id or key[1] >= last}

    def record(self, run_id: str, row: Recorded) -> None:
        """See `Store.record`."""
        with self._lock:
            last = row.number - KEPT_DETAILS
            rows = [*self._history.get(run_id, ()), row]
            self._history[run_id] = [replace(each, devices="") if each.number <= last else each for each in rows]

    def records(self, run_id: str) -> list[Recorded]:
        """See `Store.records`."""
        with self._lock:
            return [replace(each, devices="") for each in self._history.get(run_id, ())]

    def recorded(self, run_id: str, number: int) -> Recorded | None:
        """See `Store.recorded`."""
        with self._lock:
            found = [each for each in self._history.get(run_id, ()) if each.number == number]
            return max(reversed(found), key=lambda each: not each.undone, default=None)

    def roll_back(self, run_id: str, number: int) -> None:
        """See `Store.roll_back`."""
        with self._lock:
            self._rounds = {key: row for key, row in self._rounds.items() if key[0] != run_id or key[1] <= number}
            rows = self._history.get(run_id, [])
            self._history[run_id] = [replace(each, undone=each.undone or each.number > number) for each in rows]
            self._runs[run_id] = replace(self._runs[run_id], closed=number)

    def note(self, place: str, kind: str, name: str, text: str) -> None:
        """See `Store.note`."""
        with self._lock:
            self._notes.pop((place, kind, name), None)
            if text:
                self._notes[place, kind, name] = text

    def notes(self, place: str, kind: str) -> dict[str, str]:
        """See `Store.notes`."""
        with self._lock:
            return {name: text for (*where, name), text in sorted(self._notes.items()) if where == [place, kind]}

    def meet(self, place: str, device: str, present: Present) -> None:
        """See `Store.meet`."""
        with self._lock:
            self._devices[place, device] = present

    def part(self, place: str, device: str) -> None:
        """See `Store.part`."""
        with self._lock:
            self._devices.pop((place, device), None)

    def devices(self, place: str) -> dict[str, Present]:
        """See `Store.devices`."""
        with self._lock:
            return {name: present for (where, name), present in self._devices.items() if where == place}

    def suspend(self, place: str, device: str, reason: str) -> None:
        """See `Store.suspend`."""
        with self._lock:
            self._suspended.pop((place, device), None)
            if reason:
                self._suspended[place, device] = reason

    def suspended(self, place: str) -> dict[str, str]:
        """See `Store.suspended`."""
        with self._lock:
            return {name: reason for (where, name), reason in self._suspended.items() if where == place}

    def audit(self, place: str, line: Audited) -> None:
        """See `Store.audit`."""
        with self._lock:
            self._audit.append((place, line))

    def audited(self, place: str, most: int = 100) -> list[Audited]:
        """See `Store.audited`."""
        with self._lock:
            return [line for where, line in reversed(self._audit) if where == place][:most]

    def close(self) -> None:
        """See `Store.close`."""
