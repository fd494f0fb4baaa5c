"""What a round takes of a coordinator's memory, however many devices report."""

from contextlib import closing

from diastole.benchmarks import needsall
from diastole.benchmarks.devices import Listener, crowd, sharing
from diastole.benchmarks.errors import BenchmarkError
from diastole.benchmarks.models import MEDIUM_CNN
from diastole.benchmarks.peers import FULL, HOST
from diastole.benchmarks.row import Row
from diastole.client.walls import Peak, resident
from diastole.models.accumulator import Accumulator
from diastole.models.methods.registry import make_method
from diastole.models.moment import Moment
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.family import initial_state
from diastole.models.state import State, schema_hash, tensor_bytes
from diastole.models.task import Task
from diastole.models.training import TrainConfig
from diastole.server.link import Failure
from diastole.server.wire.link import GrpcLink
from diastole.server.wire.many import hold_many

DEVICES, FEW = 1_000, 2
ROUND_SECONDS = 600.0


def rows(scale: float = 0.1, model: ModelConfig = MEDIUM_CNN, devices: int = DEVICES) -> list[Row]:
    """Measure `memory.flat`: peak megabytes (10^6 bytes) of this process in a round of `scale` times 1,000 devices.

    It sends out a global model, and folds whole updates exactly as they come. Baseline: a round of two of these devices
    before, in the same process, which then has torch, the model, its sums, and every device's connection. Linux only.
    Raises `BenchmarkError` if a device brings no update.

    `memory.needs_all`: peak megabytes without a file in a round under FedConv, which looks at all updates at once, with
    as many of them (`needsall.py`). Baseline: with two.
    """
    count, state = max(10, round(scale * devices)), initial_state(model, 0)
    hold_many()
    link, shared = GrpcLink(f"{HOST}:0", "benchmark", model, schema_hash(state)), sharing(count)
    schema = schema_hash(state)
    try:
        with crowd(link, Listener(), 0, count, shared, schema):
            few, many = (_peak(link, *each, model, state) for each in ((1, FEW), (2, count)))
    finally:
        link.close()
    note = f"{count} devices; the global model has {tensor_bytes(state) / 1e6:.1f} MB"
    # The first imports what is imported then.
    _, (least, _), (most, size) = (needsall.peak(model, each) for each in (FEW, FEW, count))
    return [
        Row.of("memory.flat", many / 1e6, few / 1e6, "MB", "lower", [note]),
        Row.of("memory.needs_all", most / 1e6, least / 1e6, "MB", "lower", [f"{count} updates of {size / 1e6:.0f} MB"]),
    ]


def _peak(link: GrpcLink, number: int, count: int, model: ModelConfig, state: State) -> int:
    """Return the most bytes that this process has in a round of the first `count` devices."""
    method = make_method("width", model, (1.0,), TrainConfig())
    sums = Accumulator(method.prepare(state, None, Moment()))
    before, peak, left = resident() or 0, Peak(), count
    names = [f"device-{index}" for index in range(count)]
    tasks = [Task(f"r{number}-{name}", number, name, FULL, TrainConfig(), 0) for name in names]
    with closing(link.dispatch(tasks, {FULL: state}, ROUND_SECONDS)) as outcomes:
        for outcome in outcomes:
            if isinstance(outcome, Failure):
                raise BenchmarkError(f"device {outcome.device}: {outcome.reason}")
            sums.fold(method.dilate(outcome.state, FULL), 1.0)
            left -= 1
    if left:
        raise BenchmarkError(f"{left} of {count} devices brought no update in {ROUND_SECONDS:g} s; all must")
    return before + peak.grown()
