"""What has happened in a run, as operators read it."""

import json
import threading
import time
from collections.abc import Iterator

import grpc

from diastole.server.events import Event, RunFinished, RunStarted, as_dict, kind
from diastole.v1 import admin_pb2 as pb

MOST_BYTES = 32 << 20
"""Of the events that are kept."""

DROPPED = "events_dropped"


class EventLog:
    """The latest events of a run, numbered from the first; observes a coordinator and lets others follow."""

    def __init__(self, most: int = MOST_BYTES) -> None:
        """Keep events of `most` bytes; beyond that the oldest are dropped."""
        self._began = time.monotonic()
        self._events: list[pb.Event] = []
        self._most, self._bytes, self._dropped = most, 0, 0
        self._begun = self._over = False
        self._changed = threading.Condition()

    @property
    def seconds(self) -> float:
        """Seconds since the log began."""
        return time.monotonic() - self._began

    def __call__(self, event: Event) -> None:
        """Append an event."""
        with self._changed:
            number = self._dropped + len(self._events) + 1
            fields = json.dumps(as_dict(event))
            message = pb.Event(number=number, seconds=self.seconds, kind=kind(event), json=fields)
            self._events.append(message)
            self._bytes += message.ByteSize()
            if self._bytes > self._most:
                self._drop()
            self._begun = self._begun or isinstance(event, RunStarted)
            self._over = isinstance(event, RunFinished)
            self._changed.notify_all()

    def end(self) -> None:
        """Let nobody wait for more."""
        with self._changed:
            self._over = True
            self._changed.notify_all()

    @property
    def begun(self) -> bool:
        """True once the run has started."""
        return self._begun

    @property
    def over(self) -> bool:
        """True after the last event."""
        return self._over

    def follow(self, after: int, context: grpc.ServicerContext) -> Iterator[pb.Event]:
        """Yield the events after number `after`, until the run is over or the caller has gone.

        In the place of those that have been dropped comes one that says so, with the number of the last of them.
        """
        context.add_callback(self._wake)
        while context.is_active():
            with self._changed:
                while self._dropped + len(self._events) <= after and not self._over and context.is_active():
                    self._changed.wait()
                lost = self._dropped - after
                ready, over = self._events[max(-lost, 0) :], self._over
                after = max(after, self._dropped) + len(ready)
                first = self._dropped
            if lost > 0:
                yield pb.Event(number=first, kind=DROPPED, json=json.dumps({"events": lost}))
            yield from ready
            if over:
                return

    def _drop(self) -> None:
        """Drop the oldest events, a quarter of the bytes and not one by one; the last one stays."""
        count = 0
        while self._bytes > self._most * 3 // 4 and count < len(self._events) - 1:
            self._bytes -= self._events[count].ByteSize()
            count += 1
        del self._events[:count]
        self._dropped += count

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()
