"""How far from the measured seconds of training the predicted ones are, for shapes that the predictions do not know."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import exp, log
from statistics import median

import torch

from diastole.benchmarks.row import Row
from diastole.client.plans.planned import sample
from diastole.client.speeds import measured
from diastole.models.methods.widths.width import spec_of, width_cost
from diastole.models.networks.config import ModelConfig
from diastole.models.seeds import generator, reference_plan
from diastole.models.training import TrainConfig, fit
from diastole.models.work import training_seconds

WIDTHS = (1.0, 0.5, 0.25)
MOST = 0.25
TURNS = 5
TURN_SECONDS = 0.03


@dataclass(frozen=True, slots=True)
class Error:
    """How one prediction did: the predicted seconds over the measured ones, from the table and from the one speed."""

    network: str
    table: float
    speed: float


def networks() -> Iterator[tuple[str, ModelConfig, int]]:
    """Yield networks with the size of a batch, none of which `client/speeds.py` times."""
    for size, widths, batch in ((8, (16, 32), 32), (16, (32, 64), 64), (28, (16, 32), 8), (32, (64, 128), 16)):
        yield "cnn", ModelConfig("cnn", (1 if size == 28 else 3, size, size), 10, widths), batch
        blocks = ModelConfig("resnet", (3, size, size), 10, (32, 64), (1, 2))
        yield "resnet", blocks, min(batch, 32)
    yield "cnn1d", ModelConfig("cnn", (9, 128), 6, (32, 64)), 32
    yield "simple-cnn", ModelConfig("simple-cnn", (3, 32, 32), 10, (32, 64, 256)), 16
    for kernel in (3, 5, 7):
        for size, batch in ((8, 32), (16, 8), (32, 16)):
            yield (
                f"mobilenet{kernel}",
                ModelConfig("mobilenet", (3, size, size), 10, (16, 24, 40), (1, 1, 1), kernel=kernel, expand=4.0),
                batch,
            )
    for size, batch in ((16, 32), (32, 8)):
        yield "vit", ModelConfig("vit", (3, size, size), 10, (64,), (3,), group=16), batch
    yield "transformer", ModelConfig("transformer", (9, 128), 6, (128,), (2,), group=16), 8
    yield "tokens", ModelConfig("transformer", (48,), 6, (64,), (2,), group=16, vocabulary=500), 32


def errors() -> list[Error]:
    """Measure this device's speeds, then train every network at every width in turns, and compare.

    Times are the processor's, in medians over turns, so that a busy machine changes little.
    """
    trials = [_Trial(name, model, batch, width) for name, model, batch in networks() for width in WIDTHS]
    found = measured()
    with reference_plan(), torch.enable_grad():
        for _ in range(TURNS):
            for trial in trials:
                trial.run()
    after = measured()
    # The machine may have become slower or faster meanwhile.
    pace = (found.pace * after.pace) ** 0.5
    speeds = {kind: (speed * after.speeds[kind]) ** 0.5 / pace for kind, speed in found.speeds.items()}
    macs = (found.macs_per_second * after.macs_per_second) ** 0.5 / pace
    pairs = [(trial, median(trial.seconds)) for trial in trials]
    table = [trial.predicted(macs, speeds) / seconds for trial, seconds in pairs]
    speed = [trial.predicted(macs, {}) / seconds for trial, seconds in pairs]
    return [Error(trial.name, *each) for trial, *each in zip(trials, table, speed, strict=True)]


def rows() -> list[Row]:
    """Compare predictions from the table of speeds with those from the one speed, on one thread.

    * `planning.NETWORK`: the mean factor between the predicted and the measured seconds of a step, 1 at best.
    * `planning.within`: the share of all networks whose prediction is within 25 %.
    """
    found = errors()
    names = dict.fromkeys(each.network for each in found)
    groups = {f"planning.{name}": [each for each in found if each.network == name] for name in names}
    compared = []
    for name, group in groups.items():
        table, speed = map(_factor, _columns(group))
        compared.append(Row.of(name, table, speed, "x", "lower"))
    table, speed = map(_within, _columns(found))
    return [*compared, Row.of("planning.within", table, speed, "%", "higher")]


def _columns(found: Sequence[Error]) -> tuple[list[float], list[float]]:
    return [each.table for each in found], [each.speed for each in found]


def _within(ratios: Sequence[float]) -> float:
    return 100 * sum(abs(ratio - 1) <= MOST for ratio in ratios) / len(ratios)


def _factor(ratios: Sequence[float]) -> float:
    return exp(sum(abs(log(ratio)) for ratio in ratios) / len(ratios))


class _Trial:
    """A network at a width, which is trained on one batch again and again."""

    def __init__(self, name: str, model: ModelConfig, batch: int, width: float) -> None:
        self.name, self.seconds = name, list[float]()
        self._training = TrainConfig(batch_size=batch)
        self._cost = width_cost(model, width, self._training)
        self._module, self._batch = sample(model, spec_of(width), self._training)
        self._step()

    def predicted(self, macs_per_second: float, speeds: dict[str, float]) -> float:
        """Return the seconds of a step."""
        return training_seconds(self._cost, self._training, self._training.batch_size, macs_per_second, speeds)

    def run(self) -> None:
        """Take a turn."""
        began, steps, ends = time.process_time(), 0, time.perf_counter() + TURN_SECONDS
        while not steps or time.perf_counter() < ends:
            self._step()
            steps += 1
        self.seconds.append((time.process_time() - began) / steps)

    def _step(self) -> None:
        fit(self._module, self._batch, self._training, generator("planning"))
