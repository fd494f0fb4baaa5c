"""`engine = "auto"`: for each sub-model the fastest engine, by a short measurement."""

import logging
import os
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import cached_property
from math import ceil
from typing import Literal

from diastole.client.training import train
from diastole.models.method import Size
from diastole.models.methods.registry import untrained
from diastole.models.seeds import reference_plan
from diastole.models.spec import SubModelSpec
from diastole.models.state import State
from diastole.models.task import Task, Update
from diastole.models.training import Examples, TrainConfig
from diastole.server.link import Failure, Traffic
from diastole.simulations.cards import is_card
from diastole.simulations.devices import Federation
from diastole.simulations.engines.base import SimulatedLink
from diastole.simulations.engines.batched import BatchedLink
from diastole.simulations.engines.loop import LoopLink
from diastole.simulations.engines.processes import ProcessLink
from diastole.simulations.engines.registry import MANY, EngineRow
from diastole.simulations.engines.together import train_together

Name = Literal["loop", "processes", "batched"]

STEPS, REPEATS = 2, 3
"""Steps that are timed at a time, and how often: the quickest counts, for others may be using the machine."""

SECONDS = 0.5
"""What timing the batched engine may take on a CPU; the loop takes its few steps however long they are."""

START_UP = 4.0
"""Seconds until worker processes have imported torch: 2 to 4 where this was measured."""

LOG = logging.getLogger(__name__)


class AutoLink(SimulatedLink):
    """Routes the tasks of each sub-model to the loop, the processes or the batched engine; starts what it needs.

    The choice is made when a sub-model is first seen, holds for the run and is logged in one line. It may differ
    between two runs, and the batched engine agrees with the others within float tolerance only: a run that must be
    repeated to the bit names its engine.
    """

    def __init__(self, federation: Federation, sizes: Sequence[Size]) -> None:
        """Start nothing yet. Raises `ExperimentError` if the simulation wants a GPU that is not there."""
        super().__init__(federation.profiles, federation.model)
        experiment = federation.simulation
        self._federation, self._sizes = federation, sizes
        self._cores = min(experiment.workers or os.cpu_count() or 1, os.cpu_count() or 1)
        self._choices: dict[SubModelSpec, Name] = {}
        self._started: dict[Name, SimulatedLink] = {}
        if is_card(experiment.device):
            self._link("batched")

    @property
    def choices(self) -> Mapping[SubModelSpec, Name]:
        """The engine of each sub-model seen so far."""
        return dict(self._choices)

    def dispatch(
        self, tasks: Sequence[Task], states: Mapping[SubModelSpec, State], deadline: float | None
    ) -> Generator[Update | Failure, None, None]:
        """Train the tasks, one engine after another."""
        for spec in dict.fromkeys(task.spec for task in tasks):
            if spec not in self._choices:
                self._choices[spec] = self._choose([task for task in tasks if task.spec == spec], states[spec])
        for name in dict.fromkeys(self._choices.values()):
            mine = [task for task in tasks if self._choices[task.spec] == name]
            if mine and not self.interrupted.is_set():
                with closing(self._link(name).dispatch(mine, states, deadline)) as outcomes:
                    yield from outcomes

    def interrupt(self) -> None:
        """End the dispatch that is going on."""
        super().interrupt()
        for link in tuple(self._started.values()):
            link.interrupt()

    def traffic(self) -> Mapping[str, Traffic]:
        """Return the payload bytes that the gRPC link would have moved."""
        totals = dict.fromkeys(self.profiles, Traffic())
        for link in self._started.values():
            for name, moved in link.traffic().items():
                totals[name] = Traffic(
                    totals[name].bytes_down + moved.bytes_down, totals[name].bytes_up + moved.bytes_up
                )
        return totals

    def close(self) -> None:
        """End the workers, if any were started."""
        for link in self._started.values():
            link.close()

    @cached_property
    def _batched(self) -> BatchedLink:
        made, wanted = self._federation, self._federation.simulation
        return BatchedLink(
            made.model, made.devices, device=wanted.device, workers=wanted.workers, precision=wanted.precision
        )

    def _link(self, name: Name) -> SimulatedLink:
        """Return an engine, started at the first call."""
        if name not in self._started:
            made, wanted = self._federation, self._federation.simulation
            if name == "loop":
                self._started[name] = LoopLink(made.model, made.devices, wanted.plan, wanted.device)
            elif name == "batched":
                self._started[name] = self._batched
            else:
                self._started[name] = ProcessLink(
                    made.model,
                    made.devices,
                    self._sizes,
                    wanted.training,
                    workers=wanted.workers,
                    plan=wanted.plan,
                )
            self._started[name].kept = self.kept
        return self._started[name]

    def _choose(self, tasks: Sequence[Task], state: State) -> Name:
        """Return the engine that should train such tasks soonest, over all rounds of the run, and log why."""
        if is_card(self._federation.simulation.device):
            # What can be trained together is faster so, and what cannot is trained there as the loop does.
            return "batched"
        seconds = self._predict(tasks, state)
        name = min(seconds, key=lambda name: seconds[name])
        told = ", ".join(f"{engine} {value:.3g} s" for engine, value in seconds.items())
        LOG.info("auto: %s is trained by %s (whole run: %s)", tasks[0].spec.label, name, told)
        return name

    def _predict(self, tasks: Sequence[Task], state: State) -> dict[Name, float]:
        """Return the seconds that each engine would take for tasks like these in every round of the run.

        One thread is timed; worker processes, and the threads of the batched engine, are taken to share the work
        evenly among the cores.
        """
        wanted = self._federation.simulation
        counts = [self._federation.devices[task.device].profile.examples for task in tasks]
        batches = sum(ceil(count / wanted.training.batch_size) for count in counts)
        steps = wanted.rounds.count * wanted.training.epochs * batches
        with reference_plan():
            alone = self._time_loop(tasks, state)
            together = self._time_batched(tasks, state, alone)
        seconds: dict[Name, float] = {"loop": alone * steps}
        if self._cores > 1:
            start = 0.0 if "processes" in self._started else START_UP
            seconds["processes"] = alone * steps / self._cores + start
        if together is not None:
            seconds["batched"] = together * steps / min(self._cores, len(tasks))
        return seconds

    def _time_loop(self, tasks: Sequence[Task], state: State) -> float:
        """Return the seconds of one step of one device, as the loop or a worker takes it."""
        made, wanted = self._federation, self._federation.simulation
        task = max(tasks, key=lambda task: made.devices[task.device].profile.examples)
        batch = _first_batch(made.devices[task.device].examples, wanted.training)

        def run(steps: int) -> None:
            training = replace(wanted.training, epochs=steps)
            train(made.model, replace(task, training=training), state, batch, wanted.plan)

        return _time(run)

    def _time_batched(self, tasks: Sequence[Task], state: State, alone: float) -> float | None:
        """Return the seconds of one step of the batched engine, divided by its devices.

        None if it cannot train the model, or if steps are so long (`alone` seconds for one device) that nothing is
        gained by sharing their overhead.
        """
        wanted, first = self._federation.simulation, tasks[0]
        affordable = int(SECONDS / alone / (1 + STEPS * REPEATS))
        if min(affordable, len(tasks)) < 2:
            return None
        link = self._batched
        chosen = tasks[: min(affordable, link.chunk(first.spec, wanted.training, len(tasks)))]
        program, seeds = link.program(first.spec, wanted.training), [task.seed for task in chosen]
        if program is None:
            return None
        still = untrained(self._federation.model, first.spec)
        batches = [_first_batch(link.data(task.device), wanted.training) for task in chosen]
        batches.sort(key=len, reverse=True)

        def run(steps: int) -> None:
            training = replace(wanted.training, epochs=steps)
            train_together(program, state, training, seeds, batches, untrained=still)

        return _time(run) / len(chosen)


def _open(federation: Federation, sizes: Sequence[Size]) -> AutoLink:
    return AutoLink(federation, sizes)


ROW = EngineRow(_open, cards=MANY, alone=True, separate=True)


def _first_batch(examples: Examples, training: TrainConfig) -> Examples:
    return Examples(examples.x[: training.batch_size], examples.y[: training.batch_size])


def _time(run: Callable[[int], None]) -> float:
    """Return the seconds that each of `run(steps)`'s steps takes, after a first one that is not timed: it allocates."""
    run(1)
    seconds = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        run(STEPS)
        seconds.append(time.perf_counter() - began)
    return min(seconds) / STEPS
