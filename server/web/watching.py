"""The views of several runs, built from their events in the web server's thread."""

import asyncio
import logging
import queue
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress

from diastole.server.events import Event, Observer, RoundClosed
from diastole.server.web.shown import Summary, summary
from diastole.server.web.source import ShownRun, Source
from diastole.server.web.view import RunView

LOG = logging.getLogger(__name__)
TICK_SECONDS, REST_SECONDS = 0.2, 1.0
"""Between two looks at what has happened while somebody watches, and while nobody does."""
SHARE = 20
"""Of the time, one part in so many goes into summaries."""


class Watching:
    """Takes events from the coordinator's threads, and lets the web server's clients wait for what they make.

    `feed` and `recall` may be used from any thread, and an observer does nothing but put the event aside. All else
    belongs to the web server's event loop.

    Attributes:
        standings: the runs, as of the last beat.
        beat: counts the beats, after each of which there may be something new.

    """

    def __init__(self, source: Source, clock: Callable[[], float] = time.time) -> None:
        """Show the runs of a source; `clock` gives seconds of the Unix epoch."""
        self.source, self._clock = source, clock
        self._queue: queue.SimpleQueue[tuple[RunView, Callable[[RunView], None]]] = queue.SimpleQueue()
        self._views: dict[str, RunView] = {}
        self._summaries: dict[str, Summary] = {}
        self._watched: dict[str, int] = {}
        self._pulse = asyncio.Event()
        self.standings: list[ShownRun] = []
        self.beat, self._listed = 0, 0.0

    def feed(
        self,
        run_id: str,
        *,
        tiers: Mapping[str, str] | None = None,
        examples: Mapping[str, int] | None = None,
        closed: Iterable[RoundClosed] = (),
        staged: bool = True,
    ) -> Observer:
        """Return an observer of a run, for the view.

        Args:
            run_id: its name.
            tiers: of devices of which no event tells, by device.
            examples: likewise.
            closed: rounds that were closed before.
            staged: whether events tell how far each device is with its task.

        """
        view = RunView(run_id, staged)
        view.meet(tiers or {}, examples or {})
        view.recall(closed)
        self._views[run_id] = view

        def observe(event: Event) -> None:
            at = self._clock()
            self._queue.put((view, lambda view: view.apply(event, at)))

        return observe

    def recall(self, run_id: str, closed: Iterable[RoundClosed]) -> None:
        """Show rounds of a run that were closed before its first event."""
        earlier = tuple(closed)
        self._queue.put((self._views[run_id], lambda view: view.recall(earlier)))

    def view(self, run_id: str) -> RunView | None:
        """Return the view of a run, as of the last beat."""
        return self._views.get(run_id)

    def views(self) -> list[RunView]:
        """Return all of them."""
        return list(self._views.values())

    def summary(self, run_id: str) -> Summary | None:
        """Return what is shown of a run above all, as of the last beat; made once a beat, if anybody asks."""
        view = self._views.get(run_id)
        if view is not None and run_id not in self._summaries:
            self._summaries[run_id] = self._summarise(view)
        return self._summaries.get(run_id)

    async def wait(self, beat: int, seconds: float) -> int:
        """Wait for a beat after `beat`, or for so many seconds, and return the number of the last one."""
        if self.beat == beat:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._pulse.wait()
        return self.beat

    def pulse(self) -> None:
        """Beat: let whoever waits look again."""
        self.beat += 1
        self._pulse.set()
        self._pulse = asyncio.Event()

    def watch(self, run_id: str, more: int) -> None:
        """Note that one more client watches a run, or with -1 one less."""
        self._watched[run_id] = self._watched.get(run_id, 0) + more
        if self._watched[run_id] <= 0:
            del self._watched[run_id]

    async def run(self) -> None:
        """Take events in and beat, for ever."""
        spent = 0.0
        while True:
            await asyncio.sleep(max(TICK_SECONDS if self._watched else REST_SECONDS, SHARE * spent))
            # What others take of a busy machine is no reason to rest.
            began = time.thread_time()
            try:
                self._look(time.monotonic())
            except Exception:
                # A run may end between two looks at it; the next beat shows that.
                LOG.exception("the dashboard has missed a beat")
            spent = time.thread_time() - began

    def _look(self, now: float) -> None:
        """Take events in, and beat if there is something new."""
        changed = {view.run_id for view in self.take()}
        moving = {each for each in self._watched if (view := self._views.get(each)) and view.open}
        for run_id in changed | moving:
            self._summaries.pop(run_id, None)
        for run_id in (changed | moving) & self._watched.keys():
            self.summary(run_id)
        if changed or moving:
            self.pulse()
        if now - self._listed >= REST_SECONDS:
            self._listed, before, self.standings = now, self.standings, list(self.source.runs())
            if self.standings != before:
                self._forget()
                self.pulse()

    def _forget(self) -> None:
        """Forget the runs that are over, and not listed any more."""
        listed = {each.run_id for each in self.standings}
        for run_id in [each for each, view in list(self._views.items()) if view.over and each not in listed]:
            del self._views[run_id]

    def take(self) -> list[RunView]:
        """Take in what has happened, and return the views of it."""
        changed = dict[int, RunView]()
        for _ in range(self._queue.qsize()):
            view, change = self._queue.get()
            change(view)
            changed[id(view)] = view
        return list(changed.values())

    def _summarise(self, view: RunView) -> Summary:
        return summary(view, self.source.moving(view.run_id) if view.open else {})
