"""The batched engine: devices of one sub-model are trained together as one program."""

import logging
import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue

import torch

from diastole.client.training import train
from diastole.models.allocator import keep_pages
from diastole.models.crossing import device_of, fetch, send, send_all
from diastole.models.hollow import hollow
from diastole.models.method import Size
from diastole.models.methods.registry import build, cost_of, untrained
from diastole.models.networks.config import ModelConfig
from diastole.models.rows import Stack
from diastole.models.seeds import reference_plan
from diastole.models.spec import SubModelSpec
from diastole.models.state import State, check_state
from diastole.models.task import Report, Task, Update
from diastole.models.training import Examples, TrainConfig
from diastole.proto.errors import DiastoleError
from diastole.server.link import Failure
from diastole.simulations.cards import devices as named
from diastole.simulations.devices import Device, Federation
from diastole.simulations.engines.agreement import Program
from diastole.simulations.engines.alone import Train, train_alone
from diastole.simulations.engines.arithmetic import Precision
from diastole.simulations.engines.base import SimulatedLink
from diastole.simulations.engines.card import Card, Kind, Pool
from diastole.simulations.engines.registry import MANY, EngineRow
from diastole.simulations.engines.stacked import least, program
from diastole.simulations.engines.together import Together, train_together

LOG = logging.getLogger(__name__)

MEMINFO = Path("/proc/meminfo")

GUESS = 4 << 30

MEMORY_SHARE = 0.5
"""Of the memory that is available when the link is opened, for what is being trained."""

CPU_CHUNK = 32
"""Devices of a chunk on a CPU: more gain nothing, fewer keep every core busy until the end."""


class BatchedLink(SimulatedLink):
    """Trains tasks of one sub-model together, in chunks that fit the memory, on a CPU or on cards.

    Every device sees the batches it would see in the loop, in their order, so the results are the loop's within float
    tolerance; chunks of the same size give the same bits on one machine. On a CPU chunks are trained by one thread a
    core; on cards, each of which keeps the data of all devices, by one thread a card. Updates are where the states are
    that were dispatched. Deadlines do not apply. An update's seconds are its share, by examples, of its chunk's.
    """

    def __init__(
        self,
        model: ModelConfig,
        devices: Mapping[str, Device],
        *,
        device: str = "cpu",
        workers: int | None = None,
        budget: int | None = None,
        precision: Precision = "float32",
        like_card: bool = False,
        train: Train = train,
    ) -> None:
        """Copy the data to every card that `device` names.

        `workers` threads train on a CPU, by default one a core; `budget` bytes, by default a share of the free ones,
        are for training; `precision` is that of cards; `like_card` lets a CPU do what a card does, to try it
        out; `train` trains what has no batched program. Raises `ExperimentError` if a card is not there.
        """
        places = named(device)
        self._device = places[0]
        super().__init__({name: item.profile for name, item in devices.items()}, model)
        self._model = model
        self._devices = devices
        card = like_card or self._device.type != "cpu"
        held = {name: item.examples for name, item in devices.items()} if card else {}
        self.cards = [Card(model, place, Pool.of(held, place), precision) for place in places] if held else []
        self._threads = len(self.cards) or workers or os.cpu_count() or 1
        self._budget = budget or int(min(map(_free_bytes, places)) * MEMORY_SHARE)
        self._most: dict[Kind, int] = {}
        self._expected: dict[SubModelSpec, State] = {}
        self.train = train
        self._programs: dict[tuple[SubModelSpec, TrainConfig, str], Program | None] = {}
        if not self.cards:
            keep_pages()

    def dispatch(
        self, tasks: Sequence[Task], states: Mapping[SubModelSpec, State], deadline: float | None
    ) -> Generator[Update | Failure, None, None]:
        """Train the tasks and yield the updates of each chunk when it is done."""
        closed, idle = threading.Event(), SimpleQueue[Card]()
        for card in self.cards:
            idle.put(card)

        def train_chunk(chunk: Sequence[Task]) -> list[Update | Failure]:
            stopped = lambda: closed.is_set() or self.interrupted.is_set()  # noqa: E731
            if not self.cards:
                return self._train(chunk, states[chunk[0].spec], stopped)
            card = idle.get()
            try:
                with card.here():
                    return self._train_on(card, chunk, states[chunk[0].spec], stopped)
            finally:
                idle.put(card)

        waiting, kinds = deque[Sequence[Task]](), dict[tuple[SubModelSpec, TrainConfig, str, bool], list[Task]]()
        for task in tasks:
            kinds.setdefault(self._kind(task), []).append(task)
        for alike in kinds.values():
            try:
                waiting.extend(self._chunks(alike, states[alike[0].spec]))
            except DiastoleError as error:
                yield from (Failure(task.device, str(error), faulty=True) for task in alike)
        if len(self.cards) == 1:
            # A card that works for one chunk has nothing left for another.
            for chunk in waiting:
                for outcome in train_chunk(chunk):
                    if isinstance(outcome, Update):
                        self.count(outcome, states[outcome.spec])
                    yield outcome
            return
        running = deque[Future[list[Update | Failure]]]()
        # Part of what `set_num_threads` sets is global: it has to be one here too.
        with reference_plan(), ThreadPoolExecutor(self._threads, initializer=lambda: torch.set_num_threads(1)) as pool:
            try:
                while waiting or running:
                    # One more than can run, so that none waits for whoever folds; not all, or results would pile up.
                    while waiting and len(running) <= self._threads:
                        running.append(pool.submit(train_chunk, waiting.popleft()))
                    for outcome in running.popleft().result():
                        if isinstance(outcome, Update):
                            self.count(outcome, states[outcome.spec])
                        yield outcome
            finally:
                closed.set()

    def chunk(self, spec: SubModelSpec, training: TrainConfig, tasks: int) -> int:
        """Return how many devices to train together, of `tasks` of one sub-model.

        As many as fit; on a CPU no more than leaves every thread its share.
        """
        memory = cost_of(self._model, spec, training).memory
        most = max(1, self._budget // (1 if self.cards else self._threads) // memory)
        if self.cards:
            return min(most, -(-tasks // self._threads))
        return min(most, CPU_CHUNK, -(-tasks // self._threads))

    def program(self, spec: SubModelSpec, training: TrainConfig, part: str = "") -> Program | None:
        """Return the program that trains a sub-model, or a part of it, made at the first call; None if there is none.

        Raises `SpecError`.
        """
        if (spec, training, part) not in self._programs:
            self._programs[spec, training, part] = program(self._model, spec, self._device, training, part)
        return self._programs[spec, training, part]

    def data(self, device: str) -> Examples:
        """Return a device's examples, where they are trained on first."""
        return self.cards[0].pool.of_device(device) if self.cards else self._devices[device].examples

    def _kind(self, task: Task) -> tuple[SubModelSpec, TrainConfig, str, bool]:
        """Return what tasks that are trained together have in common, and whether they train one after another.

        Other levers than a shorter state give the result that there is without them. One example alone, where a batch
        needs two, can be trained or not, which only trying tells.
        """
        spec, part = task.spec, task.levers.part
        few = self._devices[task.device].profile.examples == 1 and least(self._model, spec, part) > 1
        return spec, task.training, part, task.levers.half_state or few

    def _chunks(self, tasks: Sequence[Task], state: State) -> list[Sequence[Task]]:
        """Return tasks of one spec, training and state, those with the most steps first, cut into chunks."""
        first = tasks[0]
        kind = first.spec, first.training, first.levers.part
        if not self.cards:
            self.program(*kind)
        if first.spec not in self._expected:
            with hollow():
                self._expected[first.spec] = dict(build(self._model, first.spec).named_parameters())
        check_state(state, self._expected[first.spec])
        size = min(self.chunk(first.spec, first.training, len(tasks)), self._most.get(kind, len(tasks)))
        ordered = sorted(tasks, key=lambda task: -self._devices[task.device].profile.examples)
        return [ordered[start : start + size] for start in range(0, len(ordered), size)]

    def _train(self, tasks: Sequence[Task], state: State, stopped: Callable[[], bool]) -> list[Update | Failure]:
        """Train one chunk; nothing comes back if it is stopped."""
        spec, training, part, apart = self._kind(tasks[0])
        examples, began = [self.data(task.device) for task in tasks], time.perf_counter()
        program = self.program(spec, training, part)
        if program is None or apart:
            return self._train_apart(tasks, state, stopped, self._device, self.data)
        seeds, still = [task.seed for task in tasks], untrained(self._model, spec, part)
        needs = least(self._model, spec, part)
        progress = tasks[0].progress
        trained = train_together(program, state, training, seeds, examples, stopped, still, needs, progress)
        return _updates(tasks, trained, list(map(len, examples)), state, began, together=False) if trained else []

    def _train_on(
        self, card: Card, tasks: Sequence[Task], state: State, stopped: Callable[[], bool]
    ) -> list[Update | Failure]:
        """Train one chunk on a card, in halves if it is too large; nothing comes back if it is stopped."""
        began, (spec, training, part, apart) = time.perf_counter(), self._kind(tasks[0])
        kind = spec, training, part
        if apart or not card.programs(kind):
            return self._train_apart(tasks, state, stopped, card.device, card.pool.of_device)
        try:
            trained = card.train(tasks, state, stopped)
        except torch.OutOfMemoryError:
            if len(tasks) == 1:
                raise
        else:
            counts = [card.pool.counts[task.device] for task in tasks]
            return _updates(tasks, trained, counts, state, began, together=True) if trained else []
        half = self._most[kind] = len(tasks) // 2
        LOG.info("%s: %d devices at a time, because more do not fit the card", spec.label, half)
        parts = tasks[:half], tasks[half:]
        return [outcome for part in parts for outcome in self._train_on(card, part, state, stopped)]

    def _train_apart(
        self,
        tasks: Sequence[Task],
        state: State,
        stopped: Callable[[], bool],
        place: torch.device,
        examples: Callable[[str], Examples],
    ) -> list[Update | Failure]:
        """Train a chunk one after another: sub-models that have no program."""
        outcomes = list[Update | Failure]()
        for task in tasks:
            if stopped():
                break
            outcome = train_alone(self.train, self._model, task, state, examples(task.device), place)
            if isinstance(outcome, Update):
                # Other chunks may train at the same time.
                outcome = replace(outcome, report=replace(outcome.report, processor=None))
            outcomes.append(outcome)
        return outcomes


@contextmanager
def _open(federation: Federation, sizes: Sequence[Size]) -> Iterator[BatchedLink]:
    wanted = federation.simulation
    yield BatchedLink(
        federation.model,
        federation.devices,
        device=wanted.device,
        workers=wanted.workers,
        precision=wanted.precision,
    )


ROW = EngineRow(_open, cards=MANY)


def _updates(
    tasks: Sequence[Task], trained: Together, counts: Sequence[int], state: State, began: float, *, together: bool
) -> list[Update | Failure]:
    """Return what came of a chunk, where `state`, which was dispatched, is.

    Each device's seconds are its share of those since `began`. Updates are folded `together` if they are rows.
    """
    stack, rows = send_all(trained.stack, device_of(state)), list[State]()
    if together:
        found, (losses,) = Stack.of(stack, state, send(trained.losses, device_of(state)))
        rows += found.rows()
    else:
        # A processor's folding is faster one by one.
        (losses,) = fetch([trained.losses])
        rows += ({name: tensor[k] for name, tensor in stack.items()} for k in range(len(tasks)))
    each = (time.perf_counter() - began) / max(1, sum(counts))
    reports = [Report(count, loss, each * count) for count, loss in zip(counts, losses.tolist(), strict=True)]
    return [Update(*parts) for parts in zip(tasks, rows, reports, strict=True)]


def _free_bytes(device: torch.device) -> int:
    """Return the bytes that can be taken now; a guess of 4 GiB where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type not in ("cpu", "mps"):
        return GUESS
    try:
        # Unlike free pages, this counts those that hold files and can be taken at once.
        found = re.search(r"^MemAvailable: *(\d+) kB$", MEMINFO.read_text(), re.MULTILINE)
    except OSError:
        found = None
    if found:
        return int(found[1]) * 1024
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return GUESS
