"""The loop engine: one simulated device after another, in this process. The reference for every other."""

from collections.abc import Generator, Mapping, Sequence
from functools import partial

from diastole.client.choices import ExecutionPlan
from diastole.client.training import train
from diastole.models.allocator import keep_pages
from diastole.models.method import Size
from diastole.models.networks.config import ModelConfig
from diastole.models.spec import SubModelSpec
from diastole.models.state import State
from diastole.models.task import Task, Update
from diastole.server.link import Failure
from diastole.simulations.cards import devices as named
from diastole.simulations.cards import moved
from diastole.simulations.devices import Device, Federation
from diastole.simulations.engines.alone import train_alone
from diastole.simulations.engines.base import SimulatedLink
from diastole.simulations.engines.registry import EngineRow


class LoopLink(SimulatedLink):
    """Trains each task in turn with the code a device agent runs; deadlines do not apply.

    A card keeps the data of all devices. Updates are where the states are that were dispatched.
    """

    def __init__(
        self,
        model: ModelConfig,
        devices: Mapping[str, Device],
        plan: ExecutionPlan = "reference",
        device: str = "cpu",
    ) -> None:
        """Move the data to `device` if that is a card. Raises `ExperimentError` if it is not there."""
        self._device = named(device)[0]
        super().__init__({name: device.profile for name, device in devices.items()}, model)
        self._model, self._devices = model, devices
        self._train = partial(train, plan=plan)
        card = self._device.type != "cpu"
        self._moved = moved(devices, self._device) if card else {}
        if plan == "fast" and not card:
            keep_pages()  # of this process, which folds and evaluates

    def dispatch(
        self, tasks: Sequence[Task], states: Mapping[SubModelSpec, State], deadline: float | None
    ) -> Generator[Update | Failure, None, None]:
        """Train the tasks in order and yield each update."""
        for task in tasks:
            if self.interrupted.is_set():
                return
            state = states[task.spec]
            examples = self._moved[task.device] if self._moved else self._devices[task.device].examples
            outcome = train_alone(self._train, self._model, task, state, examples, self._device)
            if isinstance(outcome, Update):
                self.count(outcome, state)
            yield outcome


def _open(federation: Federation, sizes: Sequence[Size]) -> LoopLink:
    return LoopLink(federation.model, federation.devices, federation.simulation.plan, federation.simulation.device)


ROW = EngineRow(_open, cards=1)
