"""Telling observers, and the journal, of devices that come and go."""

import queue
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from diastole.server.errors import StoreError
from diastole.server.events import DeviceJoined, DeviceLeft
from diastole.server.store.journal import Journal
from diastole.server.wire.sessions import Sessions


class Presence:
    """Tells in a thread of its own: observers may be slow, and the services do not wait for them."""

    def __init__(self, sessions: Sessions, journal: Journal | None) -> None:
        self._sessions, self._journal = sessions, journal
        self._tell: Callable[[DeviceJoined | DeviceLeft], None] | None = None
        self._untold: queue.SimpleQueue[DeviceJoined | DeviceLeft] = queue.SimpleQueue()
        self._teller = ThreadPoolExecutor(1, "diastole-presence")

    def observe(self, tell: Callable[[DeviceJoined | DeviceLeft], None]) -> None:
        """Call `tell` for each device that has joined or left so far, or does so later."""
        self._tell = tell
        self._teller.submit(self._tell_all)

    def announce(self, event: DeviceJoined | DeviceLeft) -> None:
        """Tell of a device, soon."""
        self._untold.put(event)
        self._teller.submit(self._tell_all)

    def close(self) -> None:
        """Tell what is untold, and end the thread."""
        self._teller.shutdown()

    def _tell_all(self) -> None:
        while self._tell and not self._untold.empty():
            event = self._untold.get()
            if self._journal is not None:
                with suppress(StoreError):
                    self._note(self._journal, event)
            self._tell(event)

    def _note(self, journal: Journal, event: DeviceJoined | DeviceLeft) -> None:
        session = self._sessions.all().get(event.device)
        if isinstance(event, DeviceJoined) and session is not None:
            journal.meet(event.device, session.profile, session.key)
        elif session is None or not session.alive:
            journal.part(event.device)
