"""What devices send that no honest one would, told to the round loop, and no more of it than anybody reads."""

from collections import Counter
from collections.abc import Callable

from diastole.server.link import Failure
from diastole.server.wire.bounds import ALL_FAULTS, FAULTS


class Faults:
    """A device may send as much nonsense as it likes; this must not fill the journal or the queue."""

    def __init__(self) -> None:
        self._listed: Counter[str] = Counter()
        self._unlisted = 0

    def note(self, device: str, reason: str, fail: Callable[[Failure], None]) -> None:
        """Tell of a fault, unless there are too many."""
        if self._listed[device] < FAULTS and self._listed.total() < ALL_FAULTS:
            self._listed[device] += 1
            fail(Failure(device, reason, faulty=True, final=False))
        else:
            self._unlisted += 1

    def renew(self, fail: Callable[[Failure], None]) -> None:
        """Begin to count anew, as a round does, and tell of how many nothing was said."""
        more, self._unlisted = self._unlisted, 0
        self._listed.clear()
        if more:
            reason = f"{more} more faults of devices since the last round began"
            fail(Failure("unknown", reason, faulty=True, final=False))
