"""One card that trains chunks: its copy of the data, its programs, and the steps that it has captured."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch

from diastole.models.crossing import send
from diastole.models.hollow import hollow
from diastole.models.methods.registry import build, untrained
from diastole.models.networks.config import ModelConfig
from diastole.models.spec import SubModelSpec
from diastole.models.state import State
from diastole.models.task import Task
from diastole.models.training import Examples, Objective, TrainConfig
from diastole.simulations.engines.agreement import Program
from diastole.simulations.engines.arithmetic import Precision
from diastole.simulations.engines.captured import Capture, Captured, Common, again, graphed, labelled
from diastole.simulations.engines.schedule import widest
from diastole.simulations.engines.stacked import least, programs
from diastole.simulations.engines.together import Together

LOG = logging.getLogger(__name__)

SPARE = 1.15
"""How many times the devices of a chunk the memory of steps may be for that were captured for another one."""

REPEATS, BETTER = 5, 0.9
"""Steps that are timed of each program, and the share of the time at which a later one takes an earlier one's place:
two that are nearly as fast would take turns from run to run, and with them the last bits."""

Kind = tuple[SubModelSpec, TrainConfig, str]
"""What tasks that are trained together have in common."""


@dataclass(frozen=True, slots=True)
class Pool:
    """The examples of all devices, one device's behind another's, and where each one's begin."""

    examples: Examples
    starts: Mapping[str, int]
    counts: Mapping[str, int]

    @staticmethod
    def of(devices: Mapping[str, Examples], card: torch.device) -> "Pool":
        """Copy the devices' examples to a card."""
        x, y = (send(torch.cat([getattr(each, part) for each in devices.values()]), card) for part in "xy")
        counts = {name: len(each) for name, each in devices.items()}
        starts, start = dict[str, int](), 0
        for name, count in counts.items():
            starts[name], start = start, start + count
        return Pool(Examples(x, y), starts, counts)

    def of_device(self, name: str) -> Examples:
        """Return a device's examples; nothing is copied."""
        return self.examples.part(self.starts[name], self.starts[name] + self.counts[name])


class Card:
    """Trains one chunk at a time."""

    def __init__(
        self,
        model: ModelConfig,
        device: torch.device,
        pool: Pool,
        precision: Precision = "float32",
        capture: Capture | None = None,
    ) -> None:
        """Capture nothing yet; `capture` is by default what the device can."""
        self.device, self.pool = device, pool
        self._model, self._precision = model, precision
        self._capture: Capture = capture or (graphed if device.type == "cuda" else again)
        self._programs: dict[Kind, Mapping[str, Program]] = {}
        self._chosen: dict[Kind, str] = {}
        self.captured: dict[Kind, list[Captured]] = {}

    def here(self) -> AbstractContextManager[object]:
        """Return the context in which a thread works on this card."""
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()

    def programs(self, kind: Kind) -> Mapping[str, Program]:
        """Return the programs for a kind of task, made at the first call; none if tasks train one after another."""
        if kind not in self._programs:
            spec, training, part = kind
            self._programs[kind] = programs(self._model, spec, self.device, training, part)
        return self._programs[kind]

    def train(self, tasks: Sequence[Task], state: State, stopped: Callable[[], bool]) -> Together | None:
        """Train tasks of one kind, which has a program, those with the most examples first; None if it is stopped.

        Raises `torch.OutOfMemoryError` if the chunk is too large, once nothing captured is left.
        """
        names = [task.device for task in tasks]
        counts, starts = ([table[name] for name in names] for table in (self.pool.counts, self.pool.starts))
        first = tasks[0]
        kind = first.spec, first.training, first.levers.part
        batch = widest(first.training, counts[0], least(self._model, first.spec, first.levers.part))
        try:
            steps = self._steps(kind, state, len(tasks), batch)
            return steps.train(state, [task.seed for task in tasks], counts, starts, first.progress, stopped)
        except torch.OutOfMemoryError:
            if not self.forget():
                raise
        return self.train(tasks, state, stopped)

    def forget(self) -> bool:
        """Give back the memory of captured steps; return whether there were any."""
        there = bool(self.captured)
        self.captured.clear()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return there

    def _steps(self, kind: Kind, state: State, devices: int, batch: int) -> Captured:
        """Return captured steps that a chunk fits into, without too much that is empty."""
        there = self.captured.setdefault(kind, [])
        fitting = [each for each in there if each.batch == batch and devices <= each.devices <= SPARE * devices]
        if fitting:
            return min(fitting, key=lambda each: each.devices)
        common = self._common(kind)
        makes = {
            name: partial(Captured, program, common, state, devices, batch, self._capture)
            for name, program in self.programs(kind).items()
            if self._chosen.get(kind, name) == name
        }
        found = self._quickest(kind, makes) if len(makes) > 1 else next(iter(makes.values()))()
        there.append(found)
        return found

    def _common(self, kind: Kind) -> Common:
        """Return what all steps of a kind have in common."""
        (spec, training, part), pool = kind, self.pool
        with hollow():
            asks = bool(training.balance) or isinstance(build(self._model, spec, part), Objective)
        return Common(
            training,
            pool.examples,
            labelled(training.criterion, pool.examples, list(pool.counts.values())) if asks else None,
            untrained(self._model, spec, part),
            least(self._model, spec, part),
            self._precision,
        )

    def _quickest(self, kind: Kind, makes: Mapping[str, Callable[[], Captured]]) -> Captured:
        """Return the steps by the program that takes the least time, which is then the kind's."""
        best, least, times = None, 0.0, {}
        for name, make in makes.items():
            try:
                steps = make()
                times[name] = self.seconds(steps)
            except torch.OutOfMemoryError as error:
                LOG.info("%s of %s takes too much memory: %s", name, kind[0].label, str(error).partition(".")[0])
                continue
            if best is None or times[name] < BETTER * least:
                best, least, self._chosen[kind] = steps, times[name], name
        if best is None:
            raise torch.OutOfMemoryError(f"{kind[0].label}: no program fits the card")
        told = ", ".join(f"{name} {1e3 * seconds:.3g} ms" for name, seconds in times.items())
        LOG.info("%s: steps are %s (%s)", kind[0].label, self._chosen[kind], told)
        return best

    def seconds(self, steps: Captured, repeats: int = REPEATS) -> float:
        """Return the seconds of one step, of several in a row."""
        steps.replay()
        self.wait()
        began = time.perf_counter()
        for _ in range(repeats):
            steps.replay()
        self.wait()
        return (time.perf_counter() - began) / repeats

    def wait(self) -> None:
        """Wait until the card has done all that it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()
