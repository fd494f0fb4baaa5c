"""The stream of a client: what has changed since it was last told, as server-sent events."""

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict
from typing import Any

from diastole.server.web.shown import after
from diastole.server.web.view import RunView
from diastole.server.web.watching import Watching

QUIET_SECONDS = 10.0
"""After which a comment is sent, so that both sides learn of a connection that is gone."""
MOST_POINTS = 500
"""Closed rounds of one event."""


class Stream:
    """Tells one client of one run, or of whichever is under way."""

    def __init__(self, watching: Watching, run_id: str) -> None:
        """Tell of a run; without a name of the first one under way, or else the last one."""
        self._watching, self._asked = watching, run_id
        self._run = ""
        self._sent = dict[str, int]()
        self._runs: list[dict[str, Any]] | None = None
        self._shown: Mapping[str, Any] = {}

    async def texts(self) -> AsyncIterator[str]:
        """Yield an event for each change, and a comment if there is none for long."""
        watched = ""
        try:
            while True:
                now = self._watching.beat
                self._choose()
                if watched != self._run:
                    self._watch(watched, self._run)
                    watched = self._run
                told, more = self._told()
                yield f"data: {json.dumps(told, separators=(',', ':'))}\n\n" if told else ":\n\n"
                if not more:
                    await self._watching.wait(now, QUIET_SECONDS)
        finally:
            self._watch(watched, "")

    def _watch(self, before: str, now: str) -> None:
        if before:
            self._watching.watch(before, -1)
        if now:
            self._watching.watch(now, 1)

    def _choose(self) -> None:
        """Choose the run that is told of; the client's own choice, or one that is under way."""
        views = {view.run_id: view for view in self._watching.views()}
        listed = {each.run_id for each in self._watching.standings}
        run_id = self._asked if self._asked in views or self._asked in listed else ""
        if not run_id and not (self._run in views and not views[self._run].over):
            going = [view.run_id for view in views.values() if view.began is not None and not view.over]
            rest = [view.run_id for view in views.values() if not view.over]
            run_id = (going or rest or [*views][-1:] or [""])[0]
        run_id = run_id or self._run
        if run_id != self._run:
            self._run, self._sent, self._shown = run_id, {}, {}

    def _told(self) -> tuple[dict[str, Any], bool]:
        """Return what the client has not been told yet, and whether there is more of it."""
        told, runs = dict[str, Any](), [asdict(each) for each in self._watching.standings]
        if runs != self._runs:
            self._runs = told["runs"] = runs
        view, summary = self._watching.view(self._run), self._watching.summary(self._run)
        if view is None or summary is None:
            if self._run and not self._shown:
                self._shown = told["run"] = {"id": self._run}
            return told, False
        if summary.shown != self._shown:
            self._shown = told["run"] = summary.shown
        told |= {"points": self._points(view), "notes": self._lines(view, "notes")}
        told["refused"] = self._lines(view, "refused")
        return {key: value for key, value in told.items() if value}, len(told["points"]) == MOST_POINTS

    def _points(self, view: RunView) -> list[dict[str, Any]]:
        sent = self._sent.get("points", 0)
        # Most clients know all but the last.
        first = len(view.points)
        while first > 0 and view.points[first - 1]["point"] > sent:
            first -= 1
        new = view.points[first : first + MOST_POINTS]
        self._sent["points"] = new[-1]["point"] if new else sent
        return new

    def _lines(self, view: RunView, name: str) -> list[dict[str, Any]]:
        new = after(getattr(view, name), self._sent.get(name, 0))
        self._sent[name] = new[-1]["number"] if new else self._sent.get(name, 0)
        return new
