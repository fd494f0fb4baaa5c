"""Who has asked a coordinator for what, in its database."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from diastole.proto.words import plain
from diastole.server.errors import StoreError
from diastole.server.store.store import Audited, Store

LOG = logging.getLogger(__name__)
STRANGERS, HOUR = 100, 3600.0
"""Lines of refused strangers that are written in so many seconds: they must not push those of operators out."""


class Note(Protocol):
    """Writes a line of the audit."""

    def __call__(self, who: str, call: str, detail: str, outcome: str, *, stranger: bool = False) -> None:
        """Note that `who` has called; `stranger` if nobody knows whether it is who it says."""
        ...


class Audit:
    """Reads and writes the audit of one state folder; safe to use from several threads."""

    def __init__(self, place: str, store: Store, clock: Callable[[], float] = time.time) -> None:
        self._place, self._store, self._clock = place, store, clock
        self._lock = threading.Lock()
        self._began, self._strangers = clock(), 0

    def __call__(self, who: str, call: str, detail: str, outcome: str, *, stranger: bool = False) -> None:
        """Write a line; a database that cannot be written to does not keep the operator from stopping a run."""
        if stranger and not self._heard():
            return
        self._write(who, call, detail, outcome)

    def last(self, most: int) -> Sequence[Audited]:
        """Return the last lines, the newest first. Raises `StoreError`."""
        return self._store.audited(self._place, most)

    def _heard(self) -> bool:
        """Count a stranger's call, and return whether it is written down."""
        with self._lock:
            unheard = max(self._strangers - STRANGERS, 0)
            over = self._clock() - self._began >= HOUR
            if over:
                self._began, self._strangers = self._clock(), 0
            self._strangers += 1
            heard = self._strangers <= STRANGERS
        if over and unheard:
            self._write("", "", "", f"{unheard} more calls of strangers were refused")
        return heard

    def _write(self, who: str, call: str, detail: str, outcome: str) -> None:
        try:
            self._store.audit(self._place, Audited(self._clock(), plain(who), call, plain(detail), plain(outcome)))
        except StoreError as error:
            LOG.warning("no audit of %s by %s: %s", call, who, error)
