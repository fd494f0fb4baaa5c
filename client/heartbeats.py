"""When an agent is to be heard of: three times a lease, which the coordinator may change with every answer."""

import threading
from collections.abc import Callable

from diastole.client.bounds import SHORTEST_LEASE, lease_of

BEATS = 3
"""Heartbeats in a lease: two may be lost."""


class Heartbeats:
    """Calls at intervals from one thread; others may change the lease, or end them."""

    def __init__(self) -> None:
        self._lease = SHORTEST_LEASE
        self._changed = threading.Event()
        self._ended = False

    def go_by(self, seconds: float) -> None:
        """Go by a lease of so many seconds, within what a device keeps; it begins now."""
        self._lease = lease_of(seconds)
        self._changed.set()

    def end(self) -> None:
        """Let `run` return; a call that is under way is not waited for."""
        self._ended = True
        self._changed.set()

    def run(self, beat: Callable[[float], float]) -> None:
        """Call `beat(lease)` three times a lease until the `end`; it returns the next lease, 0 for the same."""
        while not self._ended:
            # Else a device that has joined anew goes by the pause of a longer lease.
            if self._changed.wait(self._lease / BEATS):
                self._changed.clear()
                continue
            try:
                told = beat(self._lease)
            except ValueError:
                # What gRPC says of a channel that has been closed just before.
                if self._ended:
                    return
                raise
            if told and not self._changed.is_set():
                self._lease = lease_of(told)
