"""How fast this device trains, kind of work by kind: a handful of small networks, timed for about half a second."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from diastole.client.plans.apply import apply, arrange, running
from diastole.client.plans.plan import REFERENCE, ExecutionPlan
from diastole.client.plans.planned import plan_for, sample
from diastole.client.probes import PROBES, Probe
from diastole.models.methods.widths.width import spec_of
from diastole.models.networks.custom.made import move_constants
from diastole.models.seeds import generator
from diastole.models.training import Examples, TrainConfig, fit
from diastole.models.work import explain

SECONDS = 0.5
"""That the timed steps of all networks take together, at least."""

ROUNDS = 3
"""The networks take turns so often, so that a device's hot or busy moment meets them all."""

# A middling x86 core's; only what the networks above cannot tell apart stays near these ratios.
GUESS = {
    "dense": 2e10,
    "ragged": 6e10,
    "depthwise3": 3e9,
    "depthwise5": 1.2e9,
    "depthwise7": 1.2e9,
    "matrix": 4e10,
    "memory": 6e9,
    "pooling": 2.5e9,
    "convolutions": 2.5e3,
    "calls": 1.7e4,
}


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


def measured(plan: ExecutionPlan = "reference", threads: int = 1, place: str = "cpu") -> Measured:
    """Return how fast this device trains, as it trains tasks; under "fast", a first call looks for each network's plan.

    What a network takes in comparison with the others is told by the processor's time, which neighbours and pauses do
    not change. How fast the device is on the whole is told by the clock, and by the mean, not by the best: a quota or a
    hot chip stops a device for tens of milliseconds at a time, and tasks wait for that as well.

    Args:
        plan: how tasks are trained.
        threads: that a plan may have.
        place: the type of the torch device: "cpu", "cuda" or "mps".

    """
    probes = [_Timed(probe, plan, threads, place) for probe in PROBES]
    for _ in range(ROUNDS):
        for probe in probes:
            probe.run(SECONDS / ROUNDS / len(probes))
    pace = sum(probe.busy for probe in probes) / sum(probe.seconds for probe in probes)
    found = explain([probe.work for probe in PROBES], [probe.busy / probe.steps for probe in probes], GUESS)
    first = probes[0]
    macs = PROBES[0].macs * PROBES[0].batch * first.steps / first.busy
    return Measured(macs * pace, {kind: speed * pace for kind, speed in found.items()}, pace)


class _Timed:
    """A network that is trained again and again on one batch.

    Attributes:
        steps: so far.
        busy: seconds of the processor that they took.
        seconds: that they took.

    """

    def __init__(self, probe: Probe, plan: ExecutionPlan, threads: int, place: str) -> None:
        model, training = probe.model, TrainConfig(batch_size=probe.batch)
        spec, device = spec_of(1.0), torch.device(place)
        self.steps, self.busy, self.seconds = 0, 0.0, 0.0
        self._place = place
        self._plan = plan_for(plan, model, spec, training, threads, place)
        module, batch = sample(model, spec, training)
        if self._plan != REFERENCE:
            apply(module, self._plan)
        if place != "cpu":
            move_constants(module.to(device), device)
        if self._plan.channels_last:
            arrange(module)
        self._fit: Callable[[], float] = lambda: fit(
            module, Examples(batch.x.to(device), batch.y.to(device)), training, generator("speed")
        )
        self._clock = time.process_time if place == "cpu" else time.perf_counter
        # Not timed: it loads what the first task would otherwise load, a second or two.
        self.run(0)
        self.steps, self.busy, self.seconds = 0, 0.0, 0.0

    def run(self, seconds: float) -> None:
        """Take steps for that long, one at least."""
        with running(self._plan, self._place), torch.enable_grad():
            began, busy, taken = time.perf_counter(), self._clock(), 0.0
            while not taken or taken < seconds:
                self._fit()
                self.steps += 1
                taken = time.perf_counter() - began
            self.busy += self._clock() - busy
            self.seconds += taken
