"""What the round loop knows of devices; only this differs between a simulation and the field."""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from diastole.models.spec import SubModelSpec
from diastole.models.state import State
from diastole.models.task import Task, Update
from diastole.proto.profile import Profile
from diastole.proto.words import plain
from diastole.server.events import Change


class Declined(StrEnum):
    """Why a device declines a task."""

    TASK = "task"
    """It makes no sense to the device."""
    MEMORY = "memory"
    """Training would take more memory than the device has for it."""
    PAUSED = "paused"
    """The owner does not want the device to work now."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A task that will bring no update.

    Attributes:
        device: name of the device, or what it called itself.
        reason: one line.
        faulty: True if the device sent something wrong; False if it is merely gone, or has declined its task.
        declined: why it has declined its task; None if it has not.
        final: False for a fault beside the device's task, which it may still deliver.

    """

    device: str
    reason: str
    faulty: bool
    declined: Declined | None = None
    final: bool = True

    def __post_init__(self) -> None:
        # A reason may quote a device, which may say anything at any length.
        object.__setattr__(self, "reason", plain(self.reason))


@dataclass(frozen=True, slots=True)
class Traffic:
    """Payload bytes that one device has moved so far."""

    bytes_down: int = 0
    bytes_up: int = 0


class Link(Protocol):
    """A way to reach devices."""

    def devices(self) -> Mapping[str, Profile]:
        """Return the devices that can take a task now, by name."""
        ...

    def seen(self) -> Mapping[str, Profile]:
        """Return every device that was ever there, by name, including those that have gone."""
        ...

    def wait(self, count: int, seconds: float) -> bool:
        """Wait until `count` devices can take a task; False if that took longer than `seconds`."""
        ...

    def dispatch(
        self, tasks: Sequence[Task], states: Mapping[SubModelSpec, State], deadline: float | None
    ) -> Generator[Update | Failure, None, None]:
        """Hand out the tasks, each with the state of its sub-model, and yield the outcome of each as it comes.

        Ends when every task has an outcome, `deadline` seconds after the start, or on `interrupt`. Tasks without an
        outcome are then not needed any more; the same holds when the caller closes the generator. Failures of devices
        that were given no task may be yielded too.
        """
        ...

    def enough(self) -> bool:
        """Learn that the dispatch that is going on need not bring more; asked between two of its outcomes.

        Return whether it yields what devices have been told is accepted, and ends; if not, the caller closes it.
        """
        ...

    def interrupt(self) -> None:
        """End the dispatch that is going on. May be called from another thread."""
        ...

    def traffic(self) -> Mapping[str, Traffic]:
        """Return the payload bytes each device has moved since the link was opened."""
        ...

    def observe(self, tell: Callable[[Change], None]) -> None:
        """Call `tell`, from any thread, for each device that has joined or left so far, or does so later."""
        ...
