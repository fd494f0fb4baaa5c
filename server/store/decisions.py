"""What the operator decides of devices, so that it outlasts a process."""

import threading
from collections.abc import Callable

from diastole.server.store.store import Store
from diastole.server.suspensions import Suspensions


class Decisions:
    """Suspends and releases devices, in a state folder's runs and its database; safe to use from several threads.

    A suspension by hand holds for every run, until the device is released. A release also ends what runs themselves
    have decided up to then; the database keeps behind how many rounds of each that was.
    """

    def __init__(self, store: Store, place: str) -> None:
        """Decide for the runs of the state folder `place`."""
        self._store, self._place = store, place
        self._lock = threading.Lock()
        self._runs: dict[str, tuple[Suspensions, Callable[[], int]]] = {}

    def begin(self, run_id: str, suspensions: Suspensions, closed: Callable[[], int] = lambda: 0) -> None:
        """Apply what was decided before to a run, which has been resumed, and from now on what is decided.

        `closed` returns how many of its rounds are closed. Raises `StoreError`.
        """
        with self._lock:
            for device, rounds in self._store.suspended(run_id).items():
                suspensions.release(device, int(rounds))
            for device, reason in self._store.suspended(self._place).items():
                suspensions.suspend(device, reason)
            self._runs[run_id] = suspensions, closed

    def end(self, run_id: str) -> None:
        """Decide nothing more for a run."""
        with self._lock:
            self._runs.pop(run_id, None)

    def suspend(self, device: str, reason: str) -> None:
        """Keep a device out from the next round of every run on. Raises `StoreError`."""
        with self._lock:
            self._store.suspend(self._place, device, reason)
            for suspensions, _ in self._runs.values():
                suspensions.suspend(device, reason)

    def release(self, device: str) -> bool:
        """Let a device back in; return whether it was kept out anywhere. Raises `StoreError`."""
        with self._lock:
            known = device in self._store.suspended(self._place)
            self._store.suspend(self._place, device, "")
            for run_id, (suspensions, closed) in self._runs.items():
                self._store.suspend(run_id, device, str(closed()))
                known = suspensions.release(device) or known
            return known
