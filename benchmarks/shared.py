"""What many downloads of one object take of a coordinator's memory."""

from collections.abc import Sequence
from contextlib import closing

from diastole.benchmarks.crowd import READ
from diastole.benchmarks.devices import Listener, crowd
from diastole.benchmarks.errors import BenchmarkError
from diastole.benchmarks.models import WIDE_CNN
from diastole.benchmarks.peers import FULL, HOST, ROUND_SECONDS
from diastole.benchmarks.row import Row
from diastole.client.walls import Peak, resident
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.family import initial_state
from diastole.models.state import State, schema_hash
from diastole.models.task import Task
from diastole.models.training import TrainConfig
from diastole.server.link import Failure
from diastole.server.wire.link import GrpcLink


def row(model: ModelConfig = WIDE_CNN, devices: int = 16) -> Row:
    """Measure `transport.shared`: peak megabytes (10^6 bytes) of this process while devices read one object at once.

    The object is the state of `model`; each device has a connection of its own.
    Baseline: the same with one device, in the same process before. Linux only. Raises `BenchmarkError` if a device
    has not got all of it.
    """
    state = initial_state(model, 0)
    schema = schema_hash(state)
    link = GrpcLink(f"{HOST}:0", "benchmark", model, schema)
    try:
        with crowd(link, Listener(), 0, devices + 2, 1, schema, processes=1, what=READ):
            # The first opens what stays open. All are of one round, of which the coordinator keeps the object.
            _, one, many = (_peak(link, state, range(*each)) for each in ((0, 1), (1, 2), (2, devices + 2)))
    finally:
        link.close()
    note = f"{devices} devices take {(many - one) / 1e6:.0f} MB more than one"
    return Row.of("transport.shared", many / 1e6, one / 1e6, "MB", "lower", [note])


def _peak(link: GrpcLink, state: State, devices: Sequence[int]) -> int:
    """Return the most bytes that this process has while these devices read a state."""
    tasks = [Task(f"r1-device-{each}", 1, f"device-{each}", FULL, TrainConfig(), 0) for each in devices]
    size = len(link.outgoing.send(FULL, state, 1).offer.whole.data)
    before, peak = resident() or 0, Peak()
    with closing(link.dispatch(tasks, {FULL: state}, ROUND_SECONDS)) as outcomes:
        read = [outcome.reason for outcome in outcomes if isinstance(outcome, Failure)]
    if read != [f"{size}"] * len(devices):
        raise BenchmarkError(f"{len(devices)} devices read {read} bytes; each must read {size}")
    return before + peak.grown()
