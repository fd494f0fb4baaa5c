"""How far from the measured seconds of training the predicted ones are, for shapes that the predictions do not know."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil, exp, log

import torch

from diastole.benchmarks.row import Row
from diastole.client.adapting import adjusted, of_models
from diastole.client.choices import ExecutionPlan
from diastole.client.measured import Measured
from diastole.client.plans.apply import apply, arrange, running
from diastole.client.plans.plan import REFERENCE
from diastole.client.plans.planned import plan_for, sample
from diastole.client.speeds import of_probes, speeds_of
from diastole.client.timing import Timing
from diastole.models.methods.widths.width import spec_of, width_cost
from diastole.models.networks.config import ModelConfig
from diastole.models.seeds import generator, reference_plan
from diastole.models.training import TrainConfig, fit
from diastole.models.work import training_seconds

WIDTHS = (1.0, 0.5, 0.25)
BATCHES = (16, 32)
MOST = 0.25
TURNS = 4
TURN_SECONDS, TURN_STEPS = 0.03, (2, 12)


@dataclass(frozen=True, slots=True)
class Error:
    """How one prediction did: the predicted seconds over the measured ones.

    Attributes:
        network: what was trained.
        own: from the speeds of a device that has timed this network as well, at its own widths and batch.
        table: from the speeds of one that has not.
        speed: from the one speed that agents told before.

    """

    network: str
    own: float
    table: float
    speed: float


def networks() -> Iterator[tuple[str, ModelConfig]]:
    """Yield every kind of network that there is, in shapes that `client/speeds.py` does not time."""
    for size, channels, widths in ((8, 3, (16, 32)), (16, 3, (32, 64)), (28, 1, (16, 32)), (32, 3, (64, 128))):
        yield "cnn", ModelConfig("cnn", (channels, size, size), 10, widths)
    for size in (8, 16, 32):
        yield "resnet", ModelConfig("resnet", (3, size, size), 10, (32, 64), (1, 2))
    yield "cnn1d", ModelConfig("cnn", (9, 128), 6, (32, 64))
    yield "simple-cnn", ModelConfig("simple-cnn", (3, 32, 32), 10, (32, 64, 256))
    for kernel in (3, 5, 7):
        for size in (8, 16, 32):
            model = ModelConfig("mobilenet", (3, size, size), 10, (16, 24, 40), (1, 1, 1), kernel=kernel, expand=4.0)
            yield f"mobilenet{kernel}", model
    for mixer in ("depthwise", "partial"):
        for size in (16, 32):
            model = ModelConfig("convnext", (3, size, size), 10, (32, 64), (1, 2), group=8, expand=4.0, mixer=mixer)
            yield f"convnext-{mixer}", model
    # A quarter of its channels must be four groups.
    model = ModelConfig("convnext", (3, 16, 16), 10, (64, 128), (1, 1), group=4, expand=4.0, mixer="inception")
    yield "convnext-inception", model
    for size in (16, 32):
        yield "vit", ModelConfig("vit", (3, size, size), 10, (64,), (3,), group=16)
    yield "transformer", ModelConfig("transformer", (9, 128), 6, (128,), (2,), group=16)
    yield "tokens", ModelConfig("transformer", (48,), 6, (64,), (2,), group=16, vocabulary=500)


def errors(plan: ExecutionPlan = "reference") -> list[Error]:
    """Train every network at every width, and those that tell a device's speeds, in turns, and compare, on one thread.

    Times are the processor's, in the best of turns, so that a busy machine changes little. Each network has a batch of
    either size at one width or another.
    """
    trials = [
        [_Trial(name, model, BATCHES[(number + place) % 2], width, plan) for place, width in enumerate(WIDTHS)]
        for number, (name, model) in enumerate(networks())
    ]
    own = [Timing(of_models([model], plan)) for _, model in networks()]
    timing = Timing(of_probes(plan))
    for _ in range(TURNS):
        for group, timed in zip(trials, own, strict=True):
            for trial in group:
                trial.run()
            timed.turn()
        timing.turn()
    found = _alone(speeds_of(plan, timing))
    compared = []
    for group, timed in zip(trials, own, strict=True):
        closer = _alone(adjusted(found, timed))
        for trial in group:
            told = trial.predicted(closer), trial.predicted(found), trial.predicted(found, {})
            compared.append(Error(trial.name, *(each / min(trial.seconds) for each in told)))
    return compared


def _alone(found: Measured) -> Measured:
    """Return the processor's own speeds, as if nobody else computed."""
    macs, speeds = found.macs_per_second / found.pace, {kind: v / found.pace for kind, v in found.speeds.items()}
    return Measured(macs, speeds, 1.0)


def rows() -> list[Row]:
    """Compare predictions with those from one speed, on one thread.

    * `planning.NETWORK`: the mean factor between the predicted and the measured seconds of a step under the fast plan,
      1 at best, for a device that has timed the network at other batches.
    * `planning.within`: the share of all networks whose prediction is within 25 %; `planning.reference` likewise under
      the reference.
    * `planning.unknown`, `planning.unknown_reference`: of a device that has not timed the network.
    """
    fast, reference = errors("fast"), errors()
    compared = []
    for name in dict.fromkeys(each.network for each in fast):
        group = [each for each in fast if each.network == name]
        own, speed = _factor([each.own for each in group]), _factor([each.speed for each in group])
        compared.append(Row.of(f"planning.{name}", own, speed, "x", "lower"))
    for within, unknown, found in (
        ("within", "unknown", fast),
        ("reference", "unknown_reference", reference),
    ):
        speed = _within([each.speed for each in found])
        compared.append(Row.of(f"planning.{within}", _within([each.own for each in found]), speed, "%", "higher"))
        compared.append(Row.of(f"planning.{unknown}", _within([each.table for each in found]), speed, "%", "higher"))
    return compared


def _within(ratios: Sequence[float]) -> float:
    return 100 * sum(abs(ratio - 1) <= MOST for ratio in ratios) / len(ratios)


def _factor(ratios: Sequence[float]) -> float:
    return exp(sum(abs(log(ratio)) for ratio in ratios) / len(ratios))


class _Trial:
    """A network at a width, which is trained on one batch again and again."""

    def __init__(self, name: str, model: ModelConfig, batch: int, width: float, plan: ExecutionPlan) -> None:
        self.name, self.seconds = name, list[float]()
        self._training = TrainConfig(batch_size=batch)
        self._cost = width_cost(model, width, self._training)
        self._module, self._batch = sample(model, spec_of(width), self._training)
        self._plan = plan_for(plan, model, spec_of(width), self._training)
        if self._plan != REFERENCE:
            apply(self._module, self._plan)
        if self._plan.channels_last:
            arrange(self._module)

    def predicted(self, found: Measured, speeds: dict[str, float] | None = None) -> float:
        """Return the seconds of a step; with other `speeds` by kind than were found, if any are given."""
        known = found.speeds if speeds is None else speeds
        return training_seconds(self._cost, self._training, self._training.batch_size, found.macs_per_second, known)

    def run(self) -> None:
        """Take a turn."""
        # Other networks have filled the caches, that of compiled convolutions too; in training none comes between.
        self._steps(1)
        began = time.process_time()
        self._steps(1)
        least, most = TURN_STEPS
        steps = min(most, max(least, ceil(TURN_SECONDS / (time.process_time() - began))))
        began = time.process_time()
        self._steps(steps)
        self.seconds.append((time.process_time() - began) / steps)

    def _steps(self, count: int) -> None:
        training = TrainConfig(batch_size=self._training.batch_size, epochs=count)
        with reference_plan(), running(self._plan), torch.enable_grad():
            fit(self._module, self._batch, training, generator("planning"))
