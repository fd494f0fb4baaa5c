"""The processes engine: simulated devices trained by worker processes that share every tensor with this one."""

import selectors
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from os import cpu_count
from typing import Any

import torch

from diastole.client.choices import ExecutionPlan
from diastole.client.plans.plan import Plan
from diastole.client.plans.planned import plan_for
from diastole.models.allocator import keep_pages
from diastole.models.hollow import hollow
from diastole.models.method import Size
from diastole.models.methods.registry import build
from diastole.models.networks.config import ModelConfig
from diastole.models.spec import SubModelSpec
from diastole.models.state import State
from diastole.models.task import Report, Task, Update
from diastole.models.training import TrainConfig
from diastole.server.link import Failure
from diastole.simulations.devices import Device, Federation
from diastole.simulations.engines.base import SimulatedLink
from diastole.simulations.engines.children import Child
from diastole.simulations.engines.examples import SharedExamples
from diastole.simulations.engines.registry import EngineRow
from diastole.simulations.engines.shared import shared_folder
from diastole.simulations.engines.slabs import Slab, StateLayout
from diastole.simulations.engines.worker import Setup

AHEAD = 2


@dataclass(slots=True)
class _Worker:
    child: Child
    slots: list[int]
    mapped: bool = False
    running: dict[int, int] = field(default_factory=dict)


class ProcessLink(SimulatedLink):
    """Trains tasks in persistent worker processes, one thread each.

    Data and states lie in mapped files, which are removed as soon as every worker has mapped them: nothing is left of
    a run that is killed. A task costs a line of numbers each way. Every worker has `AHEAD` tasks, the next of which
    goes to whoever is done first, the costliest first. Under the `reference` plan the results are those of the loop
    engine to the bit; deadlines do not apply.
    """

    def __init__(
        self,
        model: ModelConfig,
        devices: Mapping[str, Device],
        sizes: Sequence[Size],
        training: TrainConfig,
        *,
        workers: int | None = None,
        plan: ExecutionPlan = "reference",
    ) -> None:
        """Share the data and start the workers, by default one a core. Raises `SpaceError` if there is no room."""
        super().__init__({name: device.profile for name, device in devices.items()}, model)
        self._model, self._devices = model, devices
        self._macs = {size.spec: size.cost.training_macs for size in sizes}
        self._specs = {size.spec: number for number, size in enumerate(sizes)}
        self._numbers = {name: number for number, name in enumerate(devices)}
        # Found before there are workers to disturb a search.
        plans = [plan_for(plan, model, size.spec, training) for size in sizes]
        self._workers: list[_Worker] = []
        self._selector = selectors.DefaultSelector()
        self._release = ExitStack()
        try:
            # First of all: they import torch while the data is being shared.
            for number in range(workers or cpu_count() or 1):
                slots = list(range(number * AHEAD, (number + 1) * AHEAD))
                self._workers.append(_Worker(Child("diastole.simulations.engines.worker"), slots))
            self._share(model, sizes, training, plans)
        except BaseException:
            self.close()
            raise

    def dispatch(
        self, tasks: Sequence[Task], states: Mapping[SubModelSpec, State], deadline: float | None
    ) -> Generator[Update | Failure, None, None]:
        """Train the tasks and yield each update as it is done. Raises `ChildError` if a worker dies.

        What is still being trained when a dispatch ends early is waited for by the next one.
        """
        self._settle()
        for spec in {task.spec for task in tasks}:
            self._layouts[self._specs[spec]].write(states[spec], self._sent[self._specs[spec]])
        waiting = sorted(range(len(tasks)), key=lambda k: self._work(tasks[k]))
        while any(worker.running for worker in self._workers) or waiting:
            if self.interrupted.is_set():
                return
            for worker in self._workers:
                while waiting and worker.slots:
                    self._send(worker, waiting.pop(), tasks)
            for key, _ in self._selector.select():
                # All of them first: who asks for no more must not leave answers that have been read.
                yield from [self._outcome(key.data, answer, tasks, states) for answer in self._answers(key.data)]

    def close(self) -> None:
        """End the workers and remove what was shared."""
        for worker in self._workers:
            worker.child.close()
        self._selector.close()
        self._release.close()

    def _share(self, model: ModelConfig, sizes: Sequence[Size], training: TrainConfig, plans: Sequence[Plan]) -> None:
        """Write what is shared and tell the workers where it is."""
        named = [_parameters(model, size.spec) for size in sizes]
        self._layouts = [StateLayout.of(every) for every in named]
        self._trained = [StateLayout.of(_trained(every)) for every in named]
        empty = torch.zeros(max(layout.size for layout in self._layouts), dtype=torch.uint8)
        sent = {f"sent-{k}": empty[: layout.size] for k, layout in enumerate(self._layouts)}
        returned = {f"returned-{k}": empty for k in range(len(self._workers) * AHEAD)}
        tensors = sent | returned
        spool = shared_folder([*(tensor.nbytes for tensor in tensors.values()), *SharedExamples.sizes(self._devices)])
        self._release.callback(spool.close)
        self._folder = spool.path
        slabs = {name: Slab.create(self._folder / name, tensor) for name, tensor in tensors.items()}
        setup = Setup(
            model=model.to_json(),
            training=training.to_json(),
            specs=[size.spec.to_json() for size in sizes],
            layouts=self._layouts,
            trained=self._trained,
            sent=[slabs[name] for name in sent],
            returned=[slabs[name] for name in returned],
            data=SharedExamples.share(self._folder, self._devices),
            plans=[plan.to_json() for plan in plans],
        )
        self._sent = [slab.map() for slab in setup.sent]
        self._returned = [slab.map() for slab in setup.returned]
        for worker in self._workers:
            worker.child.tell(asdict(setup))
            self._selector.register(worker.child, selectors.EVENT_READ, worker)

    def _send(self, worker: _Worker, number: int, tasks: Sequence[Task]) -> None:
        task, slot = tasks[number], worker.slots.pop()
        worker.running[number] = slot
        device = self._numbers[task.device]
        levers = task.levers.to_json()
        worker.child.tell([number, self._specs[task.spec], device, slot, task.seed, task.progress, levers])

    def _answers(self, worker: _Worker) -> list[dict[str, Any]]:
        """Return the answers that have come from a worker. The first one is null: it has mapped all files."""
        answers = worker.child.read()
        worker.mapped = True
        if all(other.mapped for other in self._workers):
            self._release.close()
        return [answer for answer in answers if answer is not None]

    def _outcome(
        self,
        worker: _Worker,
        answer: Mapping[str, Any],
        tasks: Sequence[Task],
        states: Mapping[SubModelSpec, State],
    ) -> Update | Failure:
        number = int(answer["number"])
        task, slot = tasks[number], worker.running.pop(number)
        worker.slots.append(slot)
        if "error" in answer:
            return Failure(task.device, str(answer["error"]), faulty=True)
        layout = self._trained[self._specs[task.spec]]
        if task.levers.part:
            layout = StateLayout.of(_trained(_parameters(self._model, task.spec, task.levers.part)))
        update = Update(task, layout.views(self._returned[slot].clone()), Report(**answer["report"]))
        self.count(update, states[task.spec])
        return update

    def _settle(self) -> None:
        """Wait for tasks of earlier dispatches, at which nobody will look, until every worker is free."""
        for worker in self._workers:
            while worker.running:
                for answer in self._answers(worker):
                    worker.slots.append(worker.running.pop(int(answer["number"])))

    def _work(self, task: Task) -> int:
        return self._macs[task.spec] * self._devices[task.device].profile.examples


def _parameters(model: ModelConfig, spec: SubModelSpec, part: str = "") -> State:
    """Return the parameters of a sub-model, of which a part may be trained, without memory."""
    with hollow():
        return dict(build(model, spec, part).named_parameters())


def _trained(every: State) -> State:
    return {name: parameter for name, parameter in every.items() if parameter.requires_grad}


def _open(federation: Federation, sizes: Sequence[Size]) -> ProcessLink:
    wanted = federation.simulation
    if wanted.plan == "fast":
        keep_pages()  # of this process, which folds and evaluates
    return ProcessLink(
        federation.model, federation.devices, sizes, wanted.training, workers=wanted.workers, plan=wanted.plan
    )


ROW = EngineRow(_open, alone=True, separate=True)
