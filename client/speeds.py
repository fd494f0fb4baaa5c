"""How fast this device trains, kind of work by kind: a handful of small networks, and its own, timed for seconds."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from math import inf, isfinite

from pydantic import TypeAdapter, ValidationError

from diastole.client.adapting import MODELS, adapted
from diastole.client.apart import apart, can_fork
from diastole.client.choices import ExecutionPlan
from diastole.client.measured import TURNS, Measured
from diastole.client.plans import cache
from diastole.client.probes import PROBES, Probe
from diastole.client.timing import Timed, Timing
from diastole.client.walls import room
from diastole.models.kinds import KINDS
from diastole.models.methods.widths.width import spec_of
from diastole.models.networks.config import ModelConfig
from diastole.models.training import TrainConfig, never
from diastole.models.work import explain

VALID_SECONDS = 7 * 86400
"""What was measured before that is measured anew: a device ages, is cooled better, or has other neighbours."""

GUESSED_BY = 2
"""Of `PROBES`, the network by which speeds are guessed before they are measured."""

VERSION = 3
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


def at_once(plan: ExecutionPlan = "reference", threads: int = 1, place: str = "cpu") -> Measured:
    """Return how fast this device trains, without measuring for long.

    It is what `told` found at an earlier start, however long ago; else a guess, by a few steps of one network.
    """
    name = _name(plan, threads, place)
    return _read(name, inf) or _once(_guessed(name), lambda: guessed(plan, place))


def known(
    plan: ExecutionPlan = "reference", threads: int = 1, place: str = "cpu", models: Iterable[ModelConfig] = ()
) -> Measured | None:
    """Return what `told` would find without measuring; None if it would measure."""
    return _read(_name(plan, threads, place, models))


def told(
    plan: ExecutionPlan = "reference",
    threads: int = 1,
    place: str = "cpu",
    stopped: Callable[[], bool] = never,
    models: Iterable[ModelConfig] = (),
    memory: int | None = None,
) -> Measured:
    """Return how fast this device trains, as it was measured earlier if it was, in the last days.

    Agents of one user that start together do not disturb each other: one measures, the others read what it found.
    Raises `StoppedError` once `stopped`; what was found by then is kept. What was measured in vain, because it ended
    the process that did it, is guessed, or is what other networks tell.

    Args:
        plan: how tasks are trained.
        threads: that a plan may have.
        place: the type of the torch device: "cpu", "cuda" or "mps".
        stopped: asked all the time.
        models: that the device is offered. It times these as well, at a few widths: the speeds are then those that
            explain their times best, and differ as little as possible from what other networks tell.
        memory: bytes that tensors of training may take; None for no limit.

    """
    where = (plan, threads, place)
    try:
        found = _once(_name(*where), lambda: _apart(lambda ask: measured(*where, ask), place, stopped), stopped)
    except _VainError:
        return at_once(*where)
    few = sorted(models, key=ModelConfig.to_json)[:MODELS]
    if not few:
        return found
    try:
        return _once(
            _name(*where, few),
            lambda: _apart(lambda ask: adapted(found, few, *where, ask, memory), place, stopped),
            stopped,
        )
    except _VainError:
        return found


def _apart(measure: Callable[[Callable[[], bool]], Measured], place: str, stopped: Callable[[], bool]) -> Measured:
    """Return what is measured in a process of its own, where that can be. Raises `_VainError` if that ends early.

    What the networks, their kernels and the search for plans leave in memory, tens of megabytes, goes with it.
    """
    if place != "cpu" or not can_fork():
        return measure(stopped)
    found = _parsed(apart(lambda ask: _MEASURED.dump_json(measure(ask)).decode(), stopped))
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
    timed = Timed(probe.model, spec_of(1.0), TrainConfig(batch_size=probe.batch), probe.work, "reference", 1, place)
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
    timing = Timing(of_probes(plan, threads, place), stopped)
    for _ in range(TURNS):
        timing.turn()
    return speeds_of(plan, timing)


def speeds_of(plan: ExecutionPlan, timing: Timing) -> Measured:
    """Return what the times of `PROBES` tell."""
    best, pace = timing.best, timing.pace
    macs = PROBES[0].macs * PROBES[0].batch / best[0]
    speeds = explain([probe.work for probe in PROBES], best, GUESS[plan])
    return Measured(macs * pace, {kind: speed * pace for kind, speed in speeds.items()}, pace)


def of_probes(plan: ExecutionPlan, threads: int = 1, place: str = "cpu") -> Iterator[Timed]:
    """Yield `PROBES`, each once it is ready to be timed."""
    for probe in PROBES:
        training = TrainConfig(batch_size=probe.batch)
        yield Timed(probe.model, spec_of(1.0), training, probe.work, plan, threads, place, room())


def _name(plan: ExecutionPlan, threads: int, place: str, models: Iterable[ModelConfig] = ()) -> str:
    own = sorted(model.to_json() for model in models)[:MODELS]
    return cache.key(["speeds", str(VERSION), plan, str(threads), place, *KINDS, *map(str, PROBES), *own])


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
