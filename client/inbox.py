"""What a coordinator has sent that the agent has not taken up yet: at most one task."""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from diastole.v1 import device_pb2 as pb

MOST_REMEMBERED = 256
"""Tasks that are known again when they are handed out once more."""
SOON_SECONDS = 0.5
"""Until when the next task may come before a device counts as idle."""


@dataclass(slots=True)
class ReceivedTask:
    """A task as it came.

    Attributes:
        task: what is to be done.
        due: the time of this machine's monotonic clock after which nobody needs the update. A task that is handed out
            again may have more time.
        again: whether it has come before, so that it may be settled already.

    """

    task: pb.TrainTask
    due: float
    again: bool = False


class Inbox:
    """One task that waits and one that is being worked on; safe to use from several threads.

    A device owes one task at a time, so a newer task takes the place of one that still waits: the coordinator has gone
    on to another round. Nothing here grows with what the coordinator sends.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: ReceivedTask | None = None
        self._current: ReceivedTask | None = None
        self._ended = False
        self._error: Exception | None = None
        self._known: OrderedDict[bytes, None] = OrderedDict()
        self.unwanted = threading.Event()
        """Set while the task that is being worked on is not needed any more."""

    def put(self, received: ReceivedTask) -> None:
        """Let a task wait, unless it waits already.

        A task that has come before waits once more, even the one that is being worked on: the coordinator may have lost
        what came of it, or what was to come of it may have been given up.
        """
        # Names may be of any length; their digest is not.
        key = hashlib.sha256(received.task.task_id.encode(errors="replace")).digest()
        with self._changed:
            if self._is_current(received.task.task_id) and self._current is not None:
                self._current.due = received.due
            if self._waiting is not None and self._waiting.task.task_id == received.task.task_id:
                self._waiting.due = received.due
                return
            received.again = key in self._known
            self._known[key] = None
            if len(self._known) > MOST_REMEMBERED:
                self._known.popitem(last=False)
            self._waiting = received
            self._changed.notify_all()

    def cancel(self, task_id: str) -> None:
        """Drop a task that waits, or mark the one that is being worked on."""
        with self._changed:
            if self._waiting is not None and self._waiting.task.task_id == task_id:
                self._waiting = None
            if self._is_current(task_id):
                self.unwanted.set()

    def end(self, error: Exception | None = None) -> None:
        """Let `take` return None from now on, or raise `error`."""
        with self._changed:
            self._ended, self._error = True, error
            self._changed.notify_all()

    @property
    def waits(self) -> bool:
        """Whether `take` has no need to wait."""
        return self._ended or self._waiting is not None

    def take(self, idle: Callable[[], None] = lambda: None) -> ReceivedTask | None:
        """Wait for a task and return it; None at the end of the run. `idle` is called if it does not come soon."""
        with self._changed:
            self._current = None
            if not self._changed.wait_for(lambda: self.waits, SOON_SECONDS):
                idle()
            self._changed.wait_for(lambda: self.waits)
            received, self._waiting = self._waiting, None
            if self._error is not None:
                raise self._error
            if self._ended or received is None:
                return None
            self._current = received
            self.unwanted.clear()
            return received

    def cancelled(self, task_id: str) -> bool:
        """Return whether the task that is being worked on is not needed any more."""
        return self._is_current(task_id) and self.unwanted.is_set()

    def _is_current(self, task_id: str) -> bool:
        return self._current is not None and self._current.task.task_id == task_id
