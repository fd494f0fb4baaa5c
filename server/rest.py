"""A run that an operator has paused: no round begins before it is resumed."""

import threading
from collections.abc import Callable

from diastole.server.events import RunPaused, RunResumed


class Rest:
    """Lets a round loop wait; safe to use from several threads."""

    def __init__(self, tell: Callable[[RunPaused | RunResumed], None]) -> None:
        """Begin without a pause; `tell` is told when the run has come to rest, and when it goes on."""
        self._tell = tell
        self._going, self._ended = threading.Event(), False
        self._going.set()
        self.resting = False

    @property
    def asked(self) -> bool:
        """Whether no round is to begin."""
        return not self._going.is_set() and not self._ended

    def pause(self) -> None:
        """Let no round begin from now on."""
        self._going.clear()

    def resume(self) -> None:
        """Let rounds begin again."""
        self._going.set()

    def end(self) -> None:
        """Let nobody rest any more, because the run ends."""
        self._ended = True
        self._going.set()

    def taken(self, closed: int) -> bool:
        """Wait until rounds may begin, `closed` being closed; return whether that was not at once."""
        if not self.asked:
            return False
        self.resting = True
        self._tell(RunPaused(closed))
        while self.asked:
            self._going.wait()
        self.resting = False
        if not self._ended:
            self._tell(RunResumed(closed))
        return True
