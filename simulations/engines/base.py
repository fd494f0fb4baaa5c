"""What all links to simulated devices share: who is there, and the bytes that they would have moved."""

import threading
from abc import abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Self

from diastole.models.spec import SubModelSpec
from diastole.models.state import State
from diastole.models.task import Task, Update
from diastole.proto.codec import EXACT, Codec
from diastole.proto.profile import Profile
from diastole.server.events import DeviceJoined, DeviceLeft
from diastole.server.link import Failure, Traffic


class SimulatedLink(AbstractContextManager["SimulatedLink"]):
    """A link to devices that are always there, have been from the start, and never leave.

    A subclass's `dispatch` trains, asks `interrupted`, and calls `count` for every task that is done.
    """

    def __init__(self, profiles: Mapping[str, Profile], codec: Codec = EXACT) -> None:
        self.profiles, self.codec = dict(profiles), codec
        self.interrupted = threading.Event()
        self._totals = dict.fromkeys(self.profiles, Traffic())
        self._payload_bytes: dict[SubModelSpec, tuple[int, int]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release what the engine took."""

    def devices(self) -> Mapping[str, Profile]:
        """Return every simulated device."""
        return self.profiles

    def seen(self) -> Mapping[str, Profile]:
        """Return every simulated device."""
        return self.profiles

    def observe(self, tell: Callable[[DeviceJoined | DeviceLeft], None]) -> None:
        """Tell of nothing: nobody joins or leaves."""

    def wait(self, count: int, seconds: float) -> bool:
        """Return whether there are that many devices; nobody else will come."""
        return len(self.profiles) >= count

    @abstractmethod
    def dispatch(
        self, tasks: Sequence[Task], states: Mapping[SubModelSpec, State], deadline: float | None
    ) -> Generator[Update | Failure, None, None]:
        """Train the tasks and yield what comes of each."""

    def interrupt(self) -> None:
        """End the dispatch that is going on, at the next moment at which the engine can."""
        self.interrupted.set()

    def traffic(self) -> Mapping[str, Traffic]:
        """Return the payload bytes of every device so far: those that the gRPC link would have moved."""
        return dict(self._totals)

    def count(self, update: Update, state: State) -> None:
        """Count a task that is done: its sub-model `state` down, and what was trained of it up."""
        spec, device = update.spec, update.device
        if spec not in self._payload_bytes:
            self._payload_bytes[spec] = len(self.codec.encode(state)), len(self.codec.encode(update.state))
        (down, up), before = self._payload_bytes[spec], self._totals[device]
        self._totals[device] = Traffic(before.bytes_down + down, before.bytes_up + up)
