"""How often a device may call: a bucket of calls that fills with time, and with every task that it is given."""

from dataclasses import dataclass

CALLS = 3000
"""Calls that a device may make at once, and a minute for as long as it likes."""

JOIN_CALLS = 20
"""For so many a join counts: it is written down, and told."""

TASK_CALLS = 60
"""That a device may make for each task beside: it looks, downloads and uploads, and goes on where it was cut off."""


@dataclass(slots=True)
class Pace:
    """The calls of one device.

    Attributes:
        at: when the bucket was looked at last, in seconds.
        left: calls in it then.

    """

    at: float
    left: float = CALLS

    def take(self, now: float, calls: int = 1) -> float:
        """Take calls out of the bucket; if there are not so many, none, and return the seconds until there are."""
        self.left, self.at = min(CALLS, self.left + (now - self.at) * CALLS / 60), now
        if self.left >= calls:
            self.left -= calls
            return 0.0
        return (calls - self.left) * 60 / CALLS

    def give(self) -> None:
        """Let a device call about a task that it is given."""
        self.left = min(CALLS, self.left + TASK_CALLS)
