"""The link over Flower's engine: tasks travel as Flower messages to virtual clients."""

import threading
from collections.abc import Callable, Generator, Mapping, Sequence

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

from diastole.models.networks.config import ModelConfig
from diastole.models.spec import SubModelSpec
from diastole.models.state import State
from diastole.models.task import Task, Update
from diastole.proto.profile import Profile
from diastole.server.link import Failure, Traffic
from diastole.simulations.devices import Device
from diastole.simulations.engines.flower.records import ARRAYS, CONFIG, Order, arrays_of, outcome
from diastole.simulations.engines.traffic import TrafficCounter

POLL_SECONDS = 0.02


class FlowerLink:
    """Sends each task through a `Grid` and yields updates as replies come; usable inside any `ServerApp`.

    A node is only an address: the task says whose examples to train on, so any node can stand for any device, and
    there need not be more nodes than tasks in a round. A client that raises is a `Failure` of its device alone.
    Under the `reference` plan the results are those of the loop engine to the bit; deadlines do not apply. Bytes are
    those that the gRPC link would have moved.
    """

    def __init__(
        self, grid: Grid, model: ModelConfig, devices: Mapping[str, Device], check: Callable[[], None] = lambda: None
    ) -> None:
        """Start from a grid that has nodes; `check` is called while waiting, and raises if waiting is in vain."""
        self._grid = grid
        self._model = model
        self._devices = devices
        self._numbers = {name: number for number, name in enumerate(devices)}
        self._traffic = TrafficCounter(devices)
        self._interrupted = threading.Event()
        self._check = check

    def devices(self) -> Mapping[str, Profile]:
        """Return every simulated device."""
        return {name: device.profile for name, device in self._devices.items()}

    def wait(self, count: int, seconds: float) -> bool:
        """Return whether there are that many devices; nobody else will come."""
        return len(self._devices) >= count

    def dispatch(
        self, tasks: Sequence[Task], states: Mapping[SubModelSpec, State], deadline: float | None
    ) -> Generator[Update | Failure, None, None]:
        """Send the tasks and yield what comes of each. Raises what `check` raises."""
        nodes = sorted(self._grid.get_node_ids())
        arrays = {spec: arrays_of(state) for spec, state in states.items()}
        sent: dict[str, Task] = {}
        for number, task in enumerate(tasks):
            order = Order(self._model, task, self._numbers[task.device])
            content = RecordDict({ARRAYS: arrays[task.spec], CONFIG: order.record()})
            message = Message(content, nodes[number % len(nodes)], MessageType.TRAIN, group_id=str(task.round))
            taken = list(self._grid.push_messages([message]))
            if taken:
                sent[taken[0]] = task
            else:
                yield Failure(task.device, "Flower did not take the message", faulty=False)
        while sent and not self._interrupted.wait(POLL_SECONDS):
            self._check()
            for reply in self._grid.pull_messages(list(sent)):
                task = sent.pop(reply.metadata.reply_to_message_id)
                found = outcome(task, reply)
                if isinstance(found, Update):
                    self._traffic.count(task)
                yield found

    def interrupt(self) -> None:
        """End the dispatch; what is being trained comes to nothing."""
        self._interrupted.set()

    def traffic(self) -> Mapping[str, Traffic]:
        """Return the payload bytes of every device so far."""
        return self._traffic.totals()
