"""The link over Flower's engine: tasks travel as Flower messages to virtual clients."""

from collections.abc import Callable, Generator, Mapping, Sequence

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

from diastole.models.networks.config import ModelConfig
from diastole.models.spec import SubModelSpec
from diastole.models.state import State
from diastole.models.task import Task, Update
from diastole.server.link import Failure
from diastole.simulations.devices import Device
from diastole.simulations.engines.base import SimulatedLink
from diastole.simulations.engines.flower.records import ARRAYS, CONFIG, Order, arrays_of, outcome

POLL_SECONDS = 0.02


class FlowerLink(SimulatedLink):
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
        super().__init__({name: device.profile for name, device in devices.items()}, model)
        self._grid = grid
        self._model = model
        self._numbers = {name: number for number, name in enumerate(devices)}
        self._check = check

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
        while sent and not self.interrupted.wait(POLL_SECONDS):
            self._check()
            for reply in self._grid.pull_messages(list(sent)):
                task = sent.pop(reply.metadata.reply_to_message_id)
                found = outcome(task, reply)
                if isinstance(found, Update):
                    self.count(found, states[task.spec])
                yield found
