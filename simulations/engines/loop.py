"""The loop engine: one simulated device after another, in this process. The reference for every other."""

import threading
import time
from collections.abc import Generator, Mapping, Sequence

from diastole.client.plan import Plan
from diastole.client.training import train
from diastole.models.networks.config import ModelConfig
from diastole.proto.profile import Profile
from diastole.server.link import Failure, Task, Traffic, Update
from diastole.simulations.devices import Device
from diastole.simulations.engines.traffic import TrafficCounter


class LoopLink:
    """Trains each task in turn with the code a device agent runs; deadlines do not apply.

    Bytes are those that the gRPC link would have moved.
    """

    def __init__(self, model: ModelConfig, devices: Mapping[str, Device], plan: Plan = "reference") -> None:
        self._model = model
        self._plan: Plan = plan
        self._devices = devices
        self._traffic = TrafficCounter(devices)
        self._interrupted = threading.Event()

    def devices(self) -> Mapping[str, Profile]:
        """Return every simulated device."""
        return {name: device.profile for name, device in self._devices.items()}

    def wait(self, count: int, seconds: float) -> bool:
        """Return whether there are that many devices; nobody else will come."""
        return len(self._devices) >= count

    def dispatch(self, tasks: Sequence[Task], deadline: float | None) -> Generator[Update | Failure, None, None]:
        """Train the tasks in order and yield each update."""
        for task in tasks:
            if self._interrupted.is_set():
                return
            examples = self._devices[task.device].examples
            began = time.perf_counter()
            trained = train(
                self._model, task.spec, task.state, task.training, task.seed, examples, self._plan, task.progress
            )
            seconds = time.perf_counter() - began
            self._traffic.count(task)
            yield Update(task, trained.state, len(examples), trained.loss, seconds)

    def interrupt(self) -> None:
        """End the dispatch before the next task."""
        self._interrupted.set()

    def traffic(self) -> Mapping[str, Traffic]:
        """Return the payload bytes of every device so far."""
        return self._traffic.totals()
