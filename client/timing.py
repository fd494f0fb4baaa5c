"""Networks that are timed in turns, as a device trains them."""

import time
from collections.abc import Callable, Iterable, Iterator
from math import ceil
from statistics import fmean
from typing import TypeVar

import torch

from diastole.client.choices import ExecutionPlan
from diastole.client.plans.apply import apply, arrange, running
from diastole.client.plans.plan import REFERENCE
from diastole.client.plans.planned import plan_for, sample
from diastole.models.errors import StoppedError
from diastole.models.kinds import Work
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.custom.made import move_constants
from diastole.models.seeds import generator
from diastole.models.spec import SubModelSpec
from diastole.models.training import Examples, TrainConfig, fit, never

T = TypeVar("T")

TURN_SECONDS, TURN_STEPS = 0.025, (3, 12)
"""How long a turn is meant to last, and the fewest and the most steps that it has."""

LONG_SECONDS = 0.3
"""A step that takes longer is a turn alone."""


class Timed:
    """A sub-model that is trained again and again on one batch.

    Attributes:
        work: of a step, by kind.
        busy: the seconds of the processor that a step took, turn by turn, by the plan's threads.
        seconds: that a step took, turn by turn.

    """

    def __init__(
        self,
        model: ModelConfig,
        spec: SubModelSpec,
        training: TrainConfig,
        work: Work,
        plan: ExecutionPlan,
        threads: int,
        place: str,
        memory: int | None = None,
    ) -> None:
        """Prepare it; a search for its plan may take `memory` bytes."""
        device = torch.device(place)
        self.work, self.busy, self.seconds = work, list[float](), list[float]()
        self._plan = plan_for(plan, model, spec, training, threads, place, memory)
        self._place, self._batch = place, training.batch_size
        self._module, batch = sample(model, spec, training)
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
        taken = time.perf_counter() - began
        least, most = TURN_STEPS
        self._steps = 1 if taken > LONG_SECONDS else min(most, max(least, ceil(TURN_SECONDS / taken)))

    def run(self) -> None:
        """Take a turn."""
        # Not timed: the others have filled the caches; in training nothing comes between steps.
        self._train(1)
        began, busy = time.perf_counter(), self._clock()
        self._train(self._steps)
        threads = self._plan.threads if self._place == "cpu" else 1
        self.busy.append((self._clock() - busy) / self._steps / threads)
        self.seconds.append((time.perf_counter() - began) / self._steps)

    def _train(self, steps: int) -> None:
        training = TrainConfig(batch_size=self._batch, epochs=steps)
        with running(self._plan, self._place), torch.enable_grad():
            fit(self._module, self._examples, training, generator("speed"))


class Timing:
    """Sub-models that take turns, so that a device's hot or busy moment meets them all."""

    def __init__(self, timed: Iterable[Timed], stopped: Callable[[], bool] = never) -> None:
        """Wait until all are ready. Raises `StoppedError` once `stopped`, as each turn does."""
        self._stopped = stopped
        self._timed = list(self._each(timed))

    def turn(self) -> None:
        """Let each take a turn."""
        for one in self._each(self._timed):
            one.run()

    @property
    def works(self) -> list[Work]:
        """The work of a step of each."""
        return [one.work for one in self._timed]

    @property
    def best(self) -> list[float]:
        """The processor's seconds that a step of each took in its best turn, which neighbours disturbed least."""
        return [min(one.busy) for one in self._timed]

    @property
    def pace(self) -> float:
        """The processor's seconds in a second of the clock: a quota or a hot chip stops a device now and then."""
        return sum(self.best) / sum(fmean(one.seconds) for one in self._timed)

    def _each(self, things: Iterable[T]) -> Iterator[T]:
        for thing in things:
            if self._stopped():
                raise StoppedError("the device's speeds are measured later")
            yield thing
