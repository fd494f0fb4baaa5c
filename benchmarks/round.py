"""What a round costs beside the training in it."""

from itertools import count

from diastole.benchmarks.models import MEDIUM_CNN
from diastole.benchmarks.peers import FULL, PROFILE, finish, one_example, serving
from diastole.benchmarks.row import Row, compare
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.family import initial_state
from diastole.models.seeds import derive_seed, reference_plan
from diastole.models.task import Task
from diastole.models.training import TrainConfig
from diastole.server.link import Link
from diastole.simulations.devices import Device
from diastole.simulations.engines.loop import LoopLink


def rows(model: ModelConfig = MEDIUM_CNN, devices: int = 10, repeats: int = 7) -> list[Row]:
    """Measure `round.overhead`: seconds a round takes over gRPC when there is next to nothing to train.

    `devices` agents, threads with a connection each in one other process, train `model` for one step on one
    example. Time runs from dispatching the tasks to the last update; every round has a state of its own, so
    every device downloads it. The baseline trains the same tasks in this process by `LoopLink`, one after
    another. All training is on one thread a device.

    Raises `BenchmarkError` if a device fails.
    """
    training = TrainConfig(batch_size=1)
    initial = initial_state(model, 0)
    names = [f"device-{number}" for number in range(devices)]
    simulated = LoopLink(model, {name: Device(PROFILE, one_example(model)) for name in names})

    def a_round(link: Link, number: int) -> None:
        state = {name: tensor + 1e-3 * number for name, tensor in initial.items()}
        finish(
            link,
            [Task(f"r{number}-{name}", number, name, FULL, training, derive_seed(number, name)) for name in names],
            state,
        )

    with (
        reference_plan(),
        serving(model, initial, devices, model.to_json(), *names) as link,
    ):
        real, simulation = count(1), count(1)
        value, baseline = compare(
            lambda: a_round(link, next(real)), lambda: a_round(simulated, next(simulation)), repeats
        )
    return [Row.of("round.overhead", value, baseline, "s", "lower")]
