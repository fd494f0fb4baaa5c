"""What the round loop knows of devices; the only thing that changes between a simulation and the field."""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from diastole.models.spec import SubModelSpec
from diastole.models.state import State
from diastole.models.training import TrainConfig
from diastole.proto.profile import Profile

LONGEST_REASON = 300


@dataclass(frozen=True, slots=True)
class Task:
    """One sub-model for one device to train.

    Attributes:
        task_id: unique within the run, the same for every repetition.
        round: counted from 1.
        device: name of the device.
        spec: the sub-model.
        state: its parameters; tasks of one spec share one object.
        training: how to train.
        seed: seeds every draw of the task.
        progress: share of the run's rounds that lies behind, in [0, 1].

    """

    task_id: str
    round: int
    device: str
    spec: SubModelSpec
    state: State
    training: TrainConfig
    seed: int
    progress: float = 0.0


@dataclass(frozen=True, slots=True)
class Update:
    """What a device brought back: not checked yet, beyond being tensors.

    Attributes:
        task: what it was given.
        state: the trained parameters.
        examples: trained on, as the device says.
        loss: mean training loss of its last epoch.
        seconds: of training, without transfers.

    """

    task: Task
    state: State
    examples: int
    loss: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Failure:
    """A task that will bring no update.

    Attributes:
        device: name of the device, or what it called itself.
        reason: one line.
        faulty: True if the device sent something wrong; False if it is merely gone.

    """

    device: str
    reason: str
    faulty: bool

    def __post_init__(self) -> None:
        # A reason may quote a device, which may say anything at any length.
        text = "".join(letter if letter.isprintable() else "?" for letter in self.reason[:LONGEST_REASON])
        object.__setattr__(self, "reason", text)


@dataclass(frozen=True, slots=True)
class Traffic:
    """Payload bytes one device has moved so far."""

    down: int = 0
    up: int = 0


class Link(Protocol):
    """A way to reach devices."""

    def devices(self) -> Mapping[str, Profile]:
        """Return the devices that can take a task now, by name."""
        ...

    def wait(self, count: int, seconds: float) -> bool:
        """Wait until `count` devices can take a task; False if that took longer than `seconds`."""
        ...

    def dispatch(self, tasks: Sequence[Task], deadline: float | None) -> Generator[Update | Failure, None, None]:
        """Hand out the tasks and yield what comes of each as it comes.

        Ends when every task has an answer, `deadline` seconds after the start, or on `interrupt`. Whatever is
        then still being trained is not needed any more; the same holds when the caller closes the generator.
        Failures of devices that were given no task may be among those yielded.
        """
        ...

    def interrupt(self) -> None:
        """End the dispatch that is going on. May be called from another thread."""
        ...

    def traffic(self) -> Mapping[str, Traffic]:
        """Return the payload bytes each device has moved since the link was opened."""
        ...
