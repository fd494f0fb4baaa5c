"""How fast devices are simulated."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, repeat

import torch

from diastole.benchmarks import fast
from diastole.benchmarks.bare import helpers, side_by_side
from diastole.benchmarks.errors import BenchmarkError
from diastole.benchmarks.row import Row, compare
from diastole.client.choices import ExecutionPlan
from diastole.models.methods.registry import make_method
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.family import initial_state
from diastole.models.seeds import generator
from diastole.models.training import Examples, TrainConfig
from diastole.proto.profile import Profile
from diastole.server.coordinator import Coordinator
from diastole.server.link import Link
from diastole.server.settings import RoundConfig, Settings
from diastole.simulations.devices import Device
from diastole.simulations.engines.flower.errors import installed
from diastole.simulations.engines.loop import LoopLink
from diastole.simulations.engines.processes import ProcessLink

WORKERS = 2
STOCK = "import sys; from diastole.simulations.engines.flower.stock import main; main(sys.argv[1:])"


@dataclass(frozen=True, slots=True)
class Workload:
    """A federation of devices that all train the full model.

    Attributes:
        model: what they train.
        devices: how many there are.
        cohort: devices a round.
        examples: each of them holds, of random numbers.
        batch: examples a step; one epoch a round, plain SGD.
        rate: of SGD.
        rounds: in one measurement.

    """

    model: ModelConfig
    devices: int
    cohort: int
    examples: int
    batch: int
    rate: float
    rounds: int

    @property
    def trainings(self) -> int:
        """Device trainings in one measurement."""
        return self.cohort * self.rounds

    @property
    def training(self) -> TrainConfig:
        """How each device trains."""
        return TrainConfig(batch_size=self.batch, learning_rate=self.rate, momentum=0.0)

    def held(self) -> dict[str, Device]:
        """Return the devices."""
        draws = generator("benchmark")
        x = torch.randn(self.devices, self.examples, *self.model.input_shape, generator=draws)
        y = torch.randint(self.model.classes, (self.devices, self.examples), generator=draws)
        profile = Profile("benchmark", self.examples)
        return {f"device-{k:05d}": Device(profile, Examples(x[k], y[k])) for k in range(self.devices)}

    def arguments(self) -> list[str]:
        """Return what a helper process is told: examples a device, examples a step, learning rate."""
        return [str(self.examples), str(self.batch), str(self.rate)]


SMALL = Workload(ModelConfig("cnn", (1, 28, 28), 10, (4, 8)), 20, 20, 64, 16, 0.05, rounds=50)
"""Four steps of batch 16 on a CNN of two convolutions, about as costly as the LeNet of Flower's own tutorial."""

PFL = Workload(ModelConfig("cnn", (3, 32, 32), 10, (32, 64)), 1000, 50, 50, 10, 0.1, rounds=3)
"""The CIFAR-10 benchmark of pfl-research (Granqvist et al., NeurIPS 2024): its users, cohort, batches and rate."""


def rows(
    small: Workload = SMALL, pfl: Workload = PFL, repeats: int = 3, cases: Sequence[fast.Case] = fast.CASES
) -> list[Row]:
    """Measure whole rounds of the processes engine: planning, sending, training, checking, folding, closing.

    * `simulation.flower`: device trainings a second, with two workers and the `fast` plan, on `small`. Baseline: the
      same network, examples and steps in a plain Flower app (`simulations/engines/flower/stock.py`) on Flower's own Ray
      simulation with one core a client. Left out if flwr or ray is not installed.
    * `simulation.overhead`: milliseconds a training, two workers, `reference` plan, on `pfl`. Baseline: as many
      trainings in two bare loops, side by side in a process each. The ratio is what all but the SGD steps costs.
    * `simulation.pfl`: trainings a second on `pfl` with two workers and the `fast` plan. Baseline: the loop engine.
    * `simulation.fast.EXAMPLE.WIDTH`: trainings of `cases` alone (`benchmarks/fast.py`).

    No start-up is in any figure: engines, helper processes and Flower's actors are up, and have trained a few rounds,
    before the clock runs. Measured apart, on two cores: 2 s until the processes engine has done its first round,
    9 s for Flower.

    Raises `BenchmarkError` if a device fails or a helper process ends.
    """
    measured = [_overhead(pfl, repeats), _pfl(pfl, repeats), *fast.rows(cases)]
    return [_flower(small, max(1, repeats - 1)), *measured] if installed() else measured


def _flower(workload: Workload, repeats: int) -> Row:
    command = ["-c", STOCK, workload.model.to_json(), str(workload.devices), *workload.arguments()]
    # The first call only warms up; it need not be long.
    units = chain([2], repeat(workload.rounds))
    with closing(_processes(workload, workload.held(), "fast")) as link, helpers(1, command) as stock:
        value, baseline = compare(_rounds(workload, link), lambda: side_by_side(stock, next(units)), repeats)
    return _rate("simulation.flower", workload, value, baseline)


def _overhead(workload: Workload, repeats: int) -> Row:
    command = ["-m", "diastole.benchmarks.bare", workload.model.to_json(), *workload.arguments()]
    with closing(_processes(workload, workload.held(), "reference")) as link, helpers(WORKERS, command) as bare:
        value, baseline = compare(_rounds(workload, link), lambda: side_by_side(bare, workload.trainings), repeats)
    return Row.of(
        "simulation.overhead", 1e3 * value / workload.trainings, 1e3 * baseline / workload.trainings, "ms", "lower"
    )


def _pfl(workload: Workload, repeats: int) -> Row:
    devices = workload.held()
    loop = LoopLink(workload.model, devices)
    with closing(_processes(workload, devices, "fast")) as link:
        value, baseline = compare(_rounds(workload, link), _rounds(workload, loop), repeats)
    return _rate("simulation.pfl", workload, value, baseline)


def _processes(workload: Workload, devices: Mapping[str, Device], plan: ExecutionPlan) -> ProcessLink:
    sizes = make_method("width", workload.model, (1.0,), workload.training).offers()
    return ProcessLink(workload.model, devices, sizes, workload.training, workers=WORKERS, plan=plan)


def _rounds(workload: Workload, link: Link) -> Callable[[], None]:
    """Return a call that runs the workload's rounds over `link`."""
    settings = Settings(
        workload.model, workload.training, RoundConfig(count=workload.rounds, cohort=workload.cohort), seed=0
    )

    def run() -> None:
        method = make_method("width", workload.model, (1.0,), workload.training)
        coordinator = Coordinator(settings, method, link, initial_state(workload.model, 0))
        coordinator.run()
        _complete(workload, [closed.updates for closed in coordinator.closed])

    return run


def _complete(workload: Workload, updates: Sequence[int]) -> None:
    if sum(updates) != workload.trainings:
        raise BenchmarkError(f"{sum(updates)} of {workload.trainings} trainings came to an update; all must")


def _rate(name: str, workload: Workload, value: float, baseline: float) -> Row:
    return Row.of(name, workload.trainings / value, workload.trainings / baseline, "trainings/s", "higher")
