"""How fast this device trains the networks that it is offered, which it times itself."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from math import inf

from diastole.client.choices import ExecutionPlan
from diastole.client.measured import TURNS, Measured
from diastole.client.timing import Timed, Timing
from diastole.client.walls import growth, room
from diastole.models.cost import Cost, standing
from diastole.models.errors import brief
from diastole.models.hollow import hollow
from diastole.models.methods.registry import build, cost_of
from diastole.models.methods.widths.width import spec_of
from diastole.models.networks.config import ModelConfig
from diastole.models.spec import SubModelSpec
from diastole.models.training import TrainConfig, never
from diastole.models.work import explain

LOG = logging.getLogger(__name__)

WIDTHS = (1.0, 0.25, 0.5)
"""At these a device times each model that it is offered, in this order."""

MODELS, SECONDS = 4, 20.0
"""Of so many models, and as long as so many seconds are not over."""

SPREAD = 0.8
"""By how much, in logarithms, speeds at these may be off what other networks tell: the closer look counts for more."""


def adapted(
    found: Measured,
    models: Sequence[ModelConfig],
    plan: ExecutionPlan = "reference",
    threads: int = 1,
    place: str = "cpu",
    stopped: Callable[[], bool] = never,
    memory: int | None = None,
) -> Measured:
    """Return the speeds that explain best how long models take, and differ little from those that were `found`.

    Kinds of work are fewer than ways to be slow: a layer's speed depends on its shape, its plan, and on what else is in
    the cache. Of the models that a device is to train nothing of this needs to be guessed. Arguments as of `told`.
    """
    timing = Timing(of_models(models, plan, threads, place, memory), stopped)
    if not timing.works:
        return found
    for _ in range(TURNS):
        timing.turn()
    return adjusted(found, timing)


def adjusted(found: Measured, timing: Timing) -> Measured:
    """Return the speeds that explain best how long models took, and differ little from those that were `found`."""
    pace = timing.pace
    guess = {kind: speed / found.pace for kind, speed in found.speeds.items()}
    speeds = explain(timing.works, timing.best, guess, SPREAD)
    return Measured(found.macs_per_second, {kind: speed * pace for kind, speed in speeds.items()}, pace)


def of_models(
    models: Sequence[ModelConfig], plan: ExecutionPlan, threads: int = 1, place: str = "cpu", memory: int | None = None
) -> Iterator[Timed]:
    """Yield models at each of `WIDTHS`, each once it is ready to be timed; those alone that `memory` allows."""
    training, began = TrainConfig(), time.monotonic()
    for width, model in product(WIDTHS, models):
        if time.monotonic() - began > SECONDS:
            return
        spec = spec_of(width)
        try:
            cost = _affordable(model, spec, training, memory)
            if cost is None:
                continue
            limit = None if memory is None else memory + cost.passing
            timed = Timed(model, spec, training, cost.work, plan, threads, place, growth(limit))
        except Exception as error:  # noqa: BLE001 (a user's model may raise anything, or have no such width)
            LOG.info("%s of the model is not timed: %s", spec.label, brief(error))
            continue
        if memory is not None:
            memory -= cost.bytes_down
        yield timed


def _affordable(model: ModelConfig, spec: SubModelSpec, training: TrainConfig, memory: int | None) -> Cost | None:
    """Return what training costs; None if it takes more memory."""
    most = inf if memory is None else memory
    with hollow():
        weights = standing(build(model, spec), training)
    # The step that measures the rest takes memory itself.
    if weights > most:
        return None
    cost, left = cost_of(model, spec, training), room()
    fits = cost.memory <= most and (left is None or cost.memory + cost.passing <= left)
    return cost if fits else None
