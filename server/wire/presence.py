"""Telling a run's observers of devices that come and go."""

import queue
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from diastole.server.events import Change


class Presence:
    """Tells in a thread of its own: observers may be slow, and the services do not wait for them."""

    def __init__(self) -> None:
        self._tell: Callable[[Change], None] | None = None
        self._untold: queue.SimpleQueue[Change] = queue.SimpleQueue()
        self._teller = ThreadPoolExecutor(1, "diastole-presence")

    def observe(self, tell: Callable[[Change], None]) -> None:
        """Call `tell` for each device that has joined or left so far, or does so later."""
        self._tell = tell
        self._teller.submit(self._tell_all)

    def announce(self, event: Change) -> None:
        """Tell of a device, soon."""
        self._untold.put(event)
        # Once it is closed, nobody is to be told.
        with suppress(RuntimeError):
            self._teller.submit(self._tell_all)

    def close(self) -> None:
        """Tell what is untold, and end the thread."""
        self._teller.shutdown()

    def _tell_all(self) -> None:
        while self._tell and not self._untold.empty():
            self._tell(self._untold.get())
