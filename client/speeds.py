"""How fast this device trains, kind of work by kind: a handful of small networks, timed for a second or two."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import ceil, inf, isfinite
from statistics import fmean
from typing import TypeVar

import torch
from pydantic import TypeAdapter, ValidationError

from diastole.client.apart import apart, can_fork
from diastole.client.choices import ExecutionPlan
from diastole.client.plans import cache
from diastole.client.plans.apply import apply, arrange, running
from diastole.client.plans.plan import REFERENCE
from diastole.client.plans.planned import plan_for, sample
from diastole.client.probes import PROBES, Probe
from diastole.client.walls import room
from diastole.models.errors import StoppedError
from diastole.models.kinds import KINDS
from diastole.models.methods.widths.width import spec_of
from diastole.models.networks.custom.made import move_constants
from diastole.models.seeds import generator
from diastole.models.training import Examples, TrainConfig, fit, never
from diastole.models.work import explain

T = TypeVar("T")

TURNS = 3
"""The networks take turns so often, so that a device's hot or busy moment meets them all."""

TURN_SECONDS, TURN_STEPS = 0.025, (3, 12)
"""How long a turn is meant to last, and the fewest and the most steps that it has."""

VALID_SECONDS = 7 * 86400
"""What was measured before that is measured anew: a device ages, is cooled better, or has other neighbours."""

GUESSED_BY = 2
"""Of `PROBES`, the network by which speeds are guessed before they are measured."""

VERSION = 2
"""Of how speeds are measured; what was measured in another way is of no use."""

# A middling x86 core's with AVX2; what the networks cannot tell apart stays near these ratios.
GUESS: dict[ExecutionPlan, dict[str, float]] = {
    "reference": {
        "dense": 2.5e10,
        "pointwise": 1.8e10,
        "sequence": 1.1e10,
        "ragged": 2.1e11,
        "depthwise3": 5e9,
        "depthwise5": 1.7e9,
        "depthwise7": 1.9e9,
        "matrix": 3.7e10,
        "memory": 8.2e9,
        "pooling": 5e9,
        "exponential": 1.1e10,
        "convolutions": 2.5e3,
        "calls": 3.5e4,
        "steps": 2.5e3,
    },
    "fast": {
        "dense": 4.3e10,
        "pointwise": 2e10,
        "sequence": 1.1e10,
        "ragged": 2e11,
        "depthwise3": 3.2e9,
        "depthwise5": 4.2e9,
        "depthwise7": 1.1e10,
        "matrix": 3.3e10,
        "memory": 1e10,
        "pooling": 2e10,
        "exponential": 1.8e10,
        "convolutions": 2.5e3,
        "calls": 2.6e4,
        "steps": 1.8e3,
    },
}


class _VainError(Exception):
    """The process that was to measure has ended without a word."""


@dataclass(frozen=True, slots=True)
class Measured:
    """How fast a device trains.

    Attributes:
        macs_per_second: multiply-accumulates a second of the first of `PROBES`.
        speeds: by kind (`models/kinds.py`), a second.
        pace: the processor's seconds in a second of the clock, as both count.

    """

    macs_per_second: float
    speeds: dict[str, float]
    pace: float


def at_once(plan: ExecutionPlan = "reference", threads: int = 1, place: str = "cpu") -> Measured:
    """Return how fast this device trains, without measuring for long.

    It is what `told` found at an earlier start, however long ago; else a guess, by a few steps of one network.
    """
    name = _name(plan, threads, place)
    return _read(name, inf) or _once(_guessed(name), lambda: guessed(plan, place))


def is_known(plan: ExecutionPlan = "reference", threads: int = 1, place: str = "cpu") -> bool:
    """Return whether `told` has no need to measure."""
    return _read(_name(plan, threads, place)) is not None


def told(
    plan: ExecutionPlan = "reference", threads: int = 1, place: str = "cpu", stopped: Callable[[], bool] = never
) -> Measured:
    """Return how fast this device trains, as it was measured earlier if it was, in the last days.

    Agents of one user that start together do not disturb each other: one measures, the others read what it found.
    Raises `StoppedError` once `stopped`; the plans that were found by then are kept. What was measured in vain, because
    it ended the process that did it, is guessed.
    """
    try:
        return _once(_name(plan, threads, place), lambda: _measured_apart(plan, threads, place, stopped), stopped)
    except _VainError:
        return at_once(plan, threads, place)


def _measured_apart(plan: ExecutionPlan, threads: int, place: str, stopped: Callable[[], bool]) -> Measured:
    """Return what `measured` finds in a process of its own, where that can be. Raises `_VainError` if that ends early.

    What the networks, their kernels and the search for plans leave in memory, tens of megabytes, goes with it.
    """
    if place != "cpu" or not can_fork():
        return measured(plan, threads, place, stopped)
    text = apart(lambda told: _MEASURED.dump_json(measured(plan, threads, place, told)).decode(), stopped)
    found = _parsed(text)
    if found is None:
        raise _VainError
    return found


def _once(name: str, find: Callable[[], Measured], stopped: Callable[[], bool] = never) -> Measured:
    """Return what is kept under a name, or find it and keep it, one process at a time."""
    found = _read(name)
    if found is None:
        with cache.alone("speeds.lock", stopped):
            found = _read(name)
            if found is None:
                found = find()
                _keep(name, found)
    return found


def guessed(plan: ExecutionPlan = "reference", place: str = "cpu") -> Measured:
    """Return the speeds of a middling device, as much faster or slower as this one is in one network under no plan."""
    probe, first = PROBES[GUESSED_BY], PROBES[0]
    timed = _Timed(probe, "reference", 1, place)
    timed.run()
    slower = timed.busy[0] / _predicted(probe, GUESS["reference"])
    speeds = {kind: speed / slower for kind, speed in GUESS[plan].items()}
    return Measured(first.macs * first.batch / _predicted(first, speeds), speeds, 1.0)


def _predicted(probe: Probe, speeds: Mapping[str, float]) -> float:
    return sum(amount / speeds[kind] for kind, amount in probe.work.items())


def measured(
    plan: ExecutionPlan = "reference", threads: int = 1, place: str = "cpu", stopped: Callable[[], bool] = never
) -> Measured:
    """Return how fast this device trains, as it trains tasks; under "fast", a first call looks for each network's plan.

    What a network takes in comparison with the others is told by the processor's time, which pauses do not change, in
    the best of its turns, which neighbours disturb least. How fast the device is on the whole is told by the clock, and
    by the mean: a quota or a hot chip stops a device for tens of milliseconds at a time, and tasks wait for that as
    well.

    Args:
        plan: how tasks are trained.
        threads: that a plan may have.
        place: the type of the torch device: "cpu", "cuda" or "mps".
        stopped: asked before each network; `StoppedError` is raised once it says so.

    """
    timing = Timing(plan, threads, place, stopped)
    for _ in range(TURNS):
        timing.turn()
    return timing.found()


class Timing:
    """The networks, which take turns."""

    def __init__(
        self, plan: ExecutionPlan, threads: int = 1, place: str = "cpu", stopped: Callable[[], bool] = never
    ) -> None:
        """Prepare the networks; arguments as of `measured`."""
        self._plan, self._stopped = plan, stopped
        self._probes = [_Timed(probe, plan, threads, place) for probe in self._each(PROBES)]

    def turn(self) -> None:
        """Let each network take a turn."""
        for probe in self._each(self._probes):
            probe.run()

    def _each(self, things: Iterable[T]) -> Iterator[T]:
        for thing in things:
            if self._stopped():
                raise StoppedError("the device's speeds are measured later")
            yield thing

    def found(self) -> Measured:
        """Return what the turns so far tell."""
        best = [min(probe.busy) for probe in self._probes]
        pace = sum(best) / sum(fmean(probe.seconds) for probe in self._probes)
        found = explain([probe.work for probe in PROBES], best, GUESS[self._plan])
        macs = PROBES[0].macs * PROBES[0].batch / best[0]
        return Measured(macs * pace, {kind: speed * pace for kind, speed in found.items()}, pace)


def _name(plan: ExecutionPlan, threads: int, place: str) -> str:
    return cache.key(["speeds", str(VERSION), plan, str(threads), place, *KINDS, *map(str, PROBES)])


def _guessed(name: str) -> str:
    return f"{name}-guessed"


def _keep(name: str, found: Measured) -> None:
    cache.keep(name, _MEASURED.dump_json(found).decode())


def _read(name: str, most_seconds: float = VALID_SECONDS) -> Measured | None:
    return _parsed(cache.text(name, most_seconds))


def _parsed(text: str | bytes) -> Measured | None:
    try:
        found = _MEASURED.validate_json(text)
    except ValidationError:
        return None
    numbers = (found.macs_per_second, found.pace, *found.speeds.values())
    return found if all(number > 0 and isfinite(number) for number in numbers) else None


_MEASURED = TypeAdapter(Measured)


class _Timed:
    """A network that is trained again and again on one batch.

    Attributes:
        busy: the seconds of the processor that a step took, turn by turn, by the plan's threads.
        seconds: that a step took, turn by turn.

    """

    def __init__(self, probe: Probe, plan: ExecutionPlan, threads: int, place: str) -> None:
        spec, training, device = spec_of(1.0), TrainConfig(batch_size=probe.batch), torch.device(place)
        self.busy, self.seconds = list[float](), list[float]()
        self._plan = plan_for(plan, probe.model, spec, training, threads, place, room())
        self._place, self._batch = place, probe.batch
        self._module, batch = sample(probe.model, spec, training)
        if self._plan != REFERENCE:
            apply(self._module, self._plan)
        if place != "cpu":
            move_constants(self._module.to(device), device)
        if self._plan.channels_last:
            arrange(self._module)
        self._examples = Examples(batch.x.to(device), batch.y.to(device))
        self._clock = time.process_time if place == "cpu" else time.perf_counter
        # Not timed: the first step loads what the first task would otherwise load, a second or two.
        self._train(1)
        began = time.perf_counter()
        self._train(1)
        least, most = TURN_STEPS
        self._steps = min(most, max(least, ceil(TURN_SECONDS / (time.perf_counter() - began))))

    def run(self) -> None:
        """Take a turn."""
        began, busy = time.perf_counter(), self._clock()
        self._train(self._steps)
        threads = self._plan.threads if self._place == "cpu" else 1
        self.busy.append((self._clock() - busy) / self._steps / threads)
        self.seconds.append((time.perf_counter() - began) / self._steps)

    def _train(self, steps: int) -> None:
        training = TrainConfig(batch_size=self._batch, epochs=steps)
        with running(self._plan, self._place), torch.enable_grad():
            fit(self._module, self._examples, training, generator("speed"))
