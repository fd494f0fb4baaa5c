"""Real time: the part of it that was spent waiting, and what each phase of a round took."""

import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from diastole.server.events import Phase

T = TypeVar("T")


class Stopwatch:
    """Counts real seconds from when it is made, whatever clock a run goes by."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._waited = 0.0
        self._phases: dict[str, Phase] = {}
        self._open: list[str] = []
        self._marked = self._began

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        return time.perf_counter() - self._began

    @property
    def worked(self) -> float:
        """Seconds so far that were not spent waiting."""
        return self.seconds - self._waited

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The phases so far, in the order in which they began."""
        return tuple(self._phases.values())

    @contextmanager
    def running(self) -> Generator[None, None, None]:
        """Let what the block calls name its phases, with `phase`."""
        before = _RUNNING.set(self)
        try:
            yield
        finally:
            _RUNNING.reset(before)

    @contextmanager
    def phase(self, name: str) -> Generator[None, None, None]:
        """Count the block as a phase; a phase inside it is counted for itself."""
        self._mark()
        self._open.append(name)
        now = time.time()
        self._phases.setdefault(name, Phase(name, now, now, 0.0))
        try:
            yield
        finally:
            self._mark()
            self._open.pop()

    @contextmanager
    def waiting(self) -> Generator[None, None, None]:
        """Count the block as waiting."""
        began = time.perf_counter()
        try:
            with self.phase("wait"):
                yield
        finally:
            self._waited += time.perf_counter() - began

    def awaited(self, items: Iterable[T]) -> Iterator[T]:
        """Yield the items; the time until each comes counts as waiting."""
        source = iter(items)
        while True:
            with self.waiting():
                try:
                    item = next(source)
                except StopIteration:
                    return
            yield item

    def _mark(self) -> None:
        """Book the seconds since the last mark for the innermost phase."""
        now, before = time.perf_counter(), self._marked
        self._marked = now
        if self._open:
            name = self._open[-1]
            phase = self._phases[name]
            self._phases[name] = Phase(name, phase.began, time.time(), phase.seconds + now - before)


_RUNNING: ContextVar[Stopwatch | None] = ContextVar("running", default=None)


@contextmanager
def phase(name: str) -> Generator[None, None, None]:
    """Count the block as a phase of the round that is going on in this thread, if one is timed."""
    watch = _RUNNING.get()
    if watch is None:
        yield
        return
    with watch.phase(name):
        yield
