"""The processes engine: simulated devices trained by worker processes that share every tensor with this one."""

import json
import selectors
import subprocess
import threading
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from os import cpu_count, read

import torch

from diastole.client.plan import Plan
from diastole.models.compressor import Offer
from diastole.models.networks.config import ModelConfig
from diastole.models.training import TrainConfig
from diastole.proto.errors import DiastoleError
from diastole.proto.profile import Profile
from diastole.server.admission import expected_state
from diastole.server.link import Failure, Task, Traffic, Update
from diastole.simulations.devices import Device
from diastole.simulations.engines.children import command, environment
from diastole.simulations.engines.dealt import Dealt
from diastole.simulations.engines.shared import shared_folder
from diastole.simulations.engines.slabs import Layout, Slab
from diastole.simulations.engines.traffic import TrafficCounter
from diastole.simulations.engines.worker import Setup

AHEAD = 2


class WorkerError(DiastoleError):
    """A worker process that ended without being asked to."""

    reason = "WORKER"


@dataclass(slots=True)
class _Worker:
    process: subprocess.Popen[bytes]
    slots: list[int]
    mapped: bool = False
    buffer: bytes = b""
    running: dict[int, int] = field(default_factory=dict)


class ProcessLink:
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
        offers: Sequence[Offer],
        training: TrainConfig,
        *,
        workers: int | None = None,
        plan: Plan = "reference",
    ) -> None:
        """Share the data and start the workers, by default one a core. Raises `SpaceError` if there is no room."""
        self._devices = devices
        self._traffic = TrafficCounter(devices)
        self._interrupted = threading.Event()
        self._macs = {offer.spec: offer.cost.training_macs for offer in offers}
        self._specs = {offer.spec: number for number, offer in enumerate(offers)}
        self._numbers = {name: number for number, name in enumerate(devices)}
        self._workers: list[_Worker] = []
        self._selector = selectors.DefaultSelector()
        self._release = ExitStack()
        try:
            # First of all: they import torch while the data is being shared.
            for number in range(workers or cpu_count() or 1):
                self._workers.append(self._start(number))
            self._share(model, offers, training, plan)
        except BaseException:
            self.close()
            raise

    def devices(self) -> Mapping[str, Profile]:
        """Return every simulated device."""
        return {name: device.profile for name, device in self._devices.items()}

    def wait(self, count: int, seconds: float) -> bool:
        """Return whether there are that many devices; nobody else will come."""
        return len(self._devices) >= count

    def dispatch(self, tasks: Sequence[Task], deadline: float | None) -> Generator[Update | Failure, None, None]:
        """Train the tasks and yield each update as it is done. Raises `WorkerError` if a worker dies.

        What is still being trained when a dispatch ends early is waited for by the next one.
        """
        self._settle()
        for spec, state in {task.spec: task.state for task in tasks}.items():
            self._layouts[self._specs[spec]].write(state, self._sent[self._specs[spec]])
        waiting = sorted(range(len(tasks)), key=lambda k: self._work(tasks[k]))
        while any(worker.running for worker in self._workers) or waiting:
            if self._interrupted.is_set():
                return
            for worker in self._workers:
                while waiting and worker.slots:
                    self._send(worker, waiting.pop(), tasks)
            for key, _ in self._selector.select():
                # All of them first: who asks for no more must not leave answers that have been read.
                yield from [self._outcome(key.data, answer, tasks) for answer in self._answers(key.data)]

    def interrupt(self) -> None:
        """End the dispatch at the next answer of a worker."""
        self._interrupted.set()

    def traffic(self) -> Mapping[str, Traffic]:
        """Return the payload bytes that the gRPC link would have moved."""
        return self._traffic.totals()

    def close(self) -> None:
        """End the workers and remove what was shared."""
        for worker in self._workers:
            worker.process.kill()
            worker.process.wait()
            for pipe in (worker.process.stdin, worker.process.stdout):
                if pipe:
                    pipe.close()
        self._selector.close()
        self._release.close()

    def _share(self, model: ModelConfig, offers: Sequence[Offer], training: TrainConfig, plan: Plan) -> None:
        """Write what is shared and tell the workers where it is."""
        states = [expected_state(model, offer.spec) for offer in offers]
        self._layouts = [Layout.of(state) for state in states]
        empty = torch.zeros(max(layout.size for layout in self._layouts), dtype=torch.uint8)
        sent = {f"sent-{k}": empty[: layout.size] for k, layout in enumerate(self._layouts)}
        returned = {f"returned-{k}": empty for k in range(len(self._workers) * AHEAD)}
        tensors, shape = sent | returned, model.input_shape
        spool = shared_folder([*(tensor.nbytes for tensor in tensors.values()), *Dealt.sizes(self._devices, shape)])
        self._release.callback(spool.close)
        self._folder = spool.path
        slabs = {name: Slab.create(self._folder / name, tensor) for name, tensor in tensors.items()}
        setup = Setup(
            model=model.to_json(),
            training=training.to_json(),
            specs=[offer.spec.to_json() for offer in offers],
            layouts=[(list(it.names), [list(shape) for shape in it.shapes], list(it.dtypes)) for it in self._layouts],
            sent=[slabs[name] for name in sent],
            returned=[slabs[name] for name in returned],
            data=Dealt.share(self._folder, self._devices, shape),
            plan=plan,
        )
        self._sent = [slab.map() for slab in setup.sent]
        self._returned = [slab.map() for slab in setup.returned]
        for worker in self._workers:
            self._write(worker, setup.to_line())
            self._selector.register(worker.process.stdout or 0, selectors.EVENT_READ, worker)

    def _start(self, number: int) -> _Worker:
        process = subprocess.Popen(
            command("diastole.simulations.engines.worker"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=environment(),
            # Ctrl-C is for this process, which then kills the worker.
            start_new_session=True,
        )
        return _Worker(process, list(range(number * AHEAD, (number + 1) * AHEAD)))

    def _send(self, worker: _Worker, number: int, tasks: Sequence[Task]) -> None:
        task, slot = tasks[number], worker.slots.pop()
        worker.running[number] = slot
        line = f"{number} {self._specs[task.spec]} {self._numbers[task.device]} {slot} {task.seed} {task.progress!r}\n"
        self._write(worker, line.encode())

    def _write(self, worker: _Worker, line: bytes) -> None:
        try:
            if worker.process.stdin:
                worker.process.stdin.write(line)
        except BrokenPipeError:
            raise self._dead(worker) from None

    def _answers(self, worker: _Worker) -> list[dict[str, float | str]]:
        """Return the answers that have come from a worker. The first line is empty: it has mapped all files."""
        data = read(worker.process.stdout.fileno(), 1 << 16) if worker.process.stdout else b""
        if not data:
            raise self._dead(worker)
        worker.mapped = True
        if all(other.mapped for other in self._workers):
            self._release.close()
        *lines, worker.buffer = (worker.buffer + data).split(b"\n")
        return [json.loads(line) for line in lines if line]

    def _outcome(self, worker: _Worker, answer: Mapping[str, float | str], tasks: Sequence[Task]) -> Update | Failure:
        number = int(answer["number"])
        task, slot = tasks[number], worker.running.pop(number)
        worker.slots.append(slot)
        if "error" in answer:
            return Failure(task.device, str(answer["error"]), faulty=True)
        self._traffic.count(task)
        views = self._layouts[self._specs[task.spec]].views(self._returned[slot].clone())
        examples = self._devices[task.device].profile.examples
        return Update(task, views, examples, float(answer["loss"]), float(answer["seconds"]))

    def _settle(self) -> None:
        """Wait for tasks of earlier dispatches, at which nobody will look, until every worker is free."""
        for worker in self._workers:
            while worker.running:
                for answer in self._answers(worker):
                    worker.slots.append(worker.running.pop(int(answer["number"])))

    def _work(self, task: Task) -> int:
        return self._macs[task.spec] * self._devices[task.device].profile.examples

    def _dead(self, worker: _Worker) -> WorkerError:
        code = worker.process.wait()
        return WorkerError(f"worker process {worker.process.pid} ended with code {code} in the middle of its work")
