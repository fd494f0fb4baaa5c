"""A run's events in the log."""

import logging
from typing import Any

from diastole.proto.about import about
from diastole.server.events import Event, as_dict, kind
from diastole.server.observe.lines import Lines

LOG = logging.getLogger(__name__)
MOST_PARTS = 100
"""Of a list in a record."""


class Logged:
    """Observes a run, and logs what happens in it.

    Every record has the event's name as `event`, and what it holds as `fields`, long lists left out.
    """

    def __init__(self, run_id: str) -> None:
        self._run_id, self._lines = run_id, Lines()

    def __call__(self, event: Event) -> None:
        """Log an event."""
        for line in self._lines(event):
            if LOG.isEnabledFor(line.level):
                with about(self._run_id, getattr(event, "round", None), getattr(event, "device", None)):
                    LOG.log(line.level, "%s", line.text, extra={"event": kind(event), "fields": _fields(event)})


def _fields(event: Event) -> dict[str, Any]:
    found = as_dict(event)
    lists = (dict, list, tuple)
    return {name: part for name, part in found.items() if not isinstance(part, lists) or len(part) <= MOST_PARTS}
