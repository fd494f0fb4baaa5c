"""What all links to simulated devices share: who is there, and the bytes that they would have moved."""

import threading
from abc import abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Self

from diastole.models.crossing import CPU, send_all
from diastole.models.methods.registry import apart, untrained
from diastole.models.networks.config import ModelConfig
from diastole.models.spec import SubModelSpec
from diastole.models.state import State
from diastole.models.task import Task, Update
from diastole.proto.kept import keep
from diastole.proto.payload import Payload, encode
from diastole.proto.profile import Profile
from diastole.server.events import Change
from diastole.server.link import Failure, Traffic


class SimulatedLink(AbstractContextManager["SimulatedLink"]):
    """A link to devices that are always there, have been from the start, and never leave.

    A subclass's `dispatch` trains, asks `interrupted`, and calls `count` for every task that is done.
    """

    def __init__(self, profiles: Mapping[str, Profile], model: ModelConfig) -> None:
        self.profiles = dict(profiles)
        self.interrupted = threading.Event()
        self._totals = dict.fromkeys(self.profiles, Traffic())
        self._payloads = Payloads(model)
        self.kept: dict[str, dict[str, None]] = {}
        """Digests of what each device has kept, the latest last."""

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

    def observe(self, tell: Callable[[Change], None]) -> None:
        """Tell of nothing: nobody joins or leaves."""

    def wait(self, count: int, seconds: float) -> bool:
        """Return whether there are that many devices; nobody else will come."""
        return len(self.profiles) >= count

    @abstractmethod
    def dispatch(
        self, tasks: Sequence[Task], states: Mapping[SubModelSpec, State], deadline: float | None
    ) -> Generator[Update | Failure, None, None]:
        """Train the tasks and yield what comes of each."""

    def enough(self) -> bool:
        """Leave it to the caller to close the dispatch: no device is told anything before its update is yielded."""
        return False

    def interrupt(self) -> None:
        """End the dispatch that is going on, at the next moment at which the engine can."""
        self.interrupted.set()

    def traffic(self) -> Mapping[str, Traffic]:
        """Return the payload bytes of every device so far: those that the gRPC link would have moved."""
        return dict(self._totals)

    def count(self, update: Update, state: State) -> None:
        """Count a task that is done: its sub-model `state` down, less what is kept, and what was trained up."""
        self.move(update.device, *self._payloads.of(update, state))

    def move(self, device: str, down: int, up: int, still: int, digest: str) -> None:
        """Count a device's bytes, and of what it does not train, which it keeps by its digest, unless it has it."""
        mine = self.kept.setdefault(device, {}) if still else {}
        down += 0 if digest in mine else still
        if still:
            keep(mine, digest, None)
        before = self._totals[device]
        self._totals[device] = Traffic(before.bytes_down + down, before.bytes_up + up)

    def memory(self) -> tuple[dict[str, Any], State]:
        """Return what devices have kept, as JSON and tensors."""
        return ({"kept": {device: list(digests) for device, digests in self.kept.items()}} if self.kept else {}), {}

    def resume(self, memory: Mapping[str, Any], tensors: State) -> None:
        """Go on with another link's `memory()`."""
        self.kept |= {device: dict.fromkeys(digests) for device, digests in memory.get("kept", {}).items()}


class Payloads:
    """The sizes of payloads, and the digests of what devices keep of them."""

    def __init__(self, model: ModelConfig) -> None:
        self._model = model
        self._moving: dict[tuple[SubModelSpec, str], int] = {}
        self._still: dict[SubModelSpec, tuple[State, int, str]] = {}

    def of(self, update: Update, state: State) -> tuple[int, int, int, str]:
        """Return the bytes of what anybody trains, of what was trained, and of what nobody trains, with its digest."""
        spec, part = update.spec, update.task.levers.part
        for key, values in (((spec, ""), None), ((spec, part), update.state)):
            if key not in self._moving:
                self._moving[key] = len(encode(send_all(values or apart(self._model, spec, state)[0], CPU)))
        down, up = self._moving[spec, ""], self._moving[spec, part]
        if not untrained(self._model, spec):
            return down, up, 0, ""
        # A round has one state for each sub-model.
        if spec not in self._still or self._still[spec][0] is not state:
            payload = Payload.of(encode(send_all(apart(self._model, spec, state)[1], CPU)))
            self._still[spec] = state, len(payload.data), payload.sha256
        return down, up, *self._still[spec][1:]
