"""How many devices a coordinator holds: what they take of its memory, and how long they wait for an answer."""

import json
import math
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from diastole.benchmarks.crowd import DELIVER
from diastole.benchmarks.errors import BenchmarkError
from diastole.benchmarks.models import TINY_CNN
from diastole.benchmarks.peers import FULL, HOST, finish
from diastole.benchmarks.row import Row
from diastole.models.networks.family import initial_state
from diastole.models.state import schema_hash
from diastole.models.task import Task
from diastole.models.training import TrainConfig
from diastole.server.wire.bounds import TransferBounds, most_connections, raise_descriptors
from diastole.server.wire.link import GrpcLink
from diastole.server.wire.many import hold_many

DEVICES, UPLOADING = 20_000, 1_000
LEASE = 30.0
"""Seconds, as `diastole serve` has it."""
MODULE = "diastole.benchmarks.crowd"
PROCESSES = 2
JOIN_SECONDS = 600.0
CALLS_A_CONNECTION = 20
"""Devices that share a connection where a process may not have one for each."""


class Listener:
    """Reads what crowds print of their heartbeats."""

    def __init__(self) -> None:
        self._took: list[float] = []

    def read(self, lines: Iterator[bytes]) -> None:
        """Read a crowd's lines until it ends."""
        for line in lines:
            self._took += json.loads(line)

    def take(self) -> list[float]:
        """Return the seconds of every heartbeat since the last call."""
        took, self._took = self._took, []
        return took


def rows(
    scale: float = 0.1, watch: float = 15.0, devices: int = DEVICES, uploading: int = UPLOADING, lease: float = LEASE
) -> list[Row]:
    """Measure `scale` times 20,000 idle devices that heartbeat as agents do, three times a lease.

    * `devices.idle`: 99th percentile of the milliseconds that a heartbeat takes. Baseline: the same with a hundredth of
      the devices.
    * `devices.busy`: the same while `scale` times 1,000 more download and upload, round after round. Same baseline.
    * `devices.memory`: megabytes (10^6 bytes) that the coordinator has. Baseline: before the first device.

    Each figure is of `watch` seconds. The devices are in two other processes on this machine, whose time counts too; if
    there are more than a process may have connections, they share them. Linux only. Raises `BenchmarkError` if they do
    not join.
    """
    count, busy = max(100, round(scale * devices)), max(10, round(scale * uploading))
    state = initial_state(TINY_CNN, 0)
    hold_many()
    link = GrpcLink(f"{HOST}:0", "benchmark", TINY_CNN, schema_hash(state), lease=lease)
    shared, schema = sharing(count), schema_hash(state)
    listener = Listener()
    try:
        before, few = _resident(), max(10, count // 100)
        with crowd(link, listener, 0, few, shared, schema):
            baseline = _watched(listener, watch)
            with crowd(link, listener, few, count - few, shared, schema):
                idle, memory = _watched(listener, watch), _resident()
                # In a process of their own: what the others wait for is the coordinator.
                with crowd(link, Listener(), count, busy, shared, schema, processes=1):
                    listener.take()
                    rounds = _rounds(link, [f"device-{count + number}" for number in range(busy)], watch)
                    loaded = _percentile(listener.take())
    finally:
        link.close()
    note = f"{count} devices on {math.ceil(count / shared)} connections; {busy} more were busy in {rounds} rounds"
    return [
        Row.of("devices.idle", 1e3 * idle, 1e3 * baseline, "ms", "lower", [note]),
        Row.of("devices.busy", 1e3 * loaded, 1e3 * baseline, "ms", "lower"),
        Row.of("devices.memory", memory / 1e6, before / 1e6, "MB", "lower"),
    ]


def _rounds(link: GrpcLink, names: Sequence[str], seconds: float) -> int:
    """Keep devices busy for so long, and return in how many rounds."""
    number, until, state = 0, time.monotonic() + seconds, initial_state(TINY_CNN, 0)
    while time.monotonic() < until:
        number += 1
        finish(link, [Task(f"r{number}-{name}", number, name, FULL, TrainConfig(), 0) for name in names], state)
    return number


def sharing(count: int) -> int:
    """Return how many of so many devices must share a connection, after this process has raised its limits."""
    most = most_connections(raise_descriptors(), TransferBounds().places)
    return 1 if count <= most else CALLS_A_CONNECTION


@contextmanager
def crowd(
    link: GrpcLink,
    listener: Listener,
    first: int,
    count: int,
    shared: int,
    schema: str,
    processes: int = PROCESSES,
    what: str = DELIVER,
) -> Iterator[None]:
    """Let `count` more devices join that do `what` with their tasks; they leave when the link is closed."""
    there = len(link.devices())
    each = math.ceil(count / processes)
    parts = [(first + start, min(each, count - start)) for start in range(0, count, each)]
    started = [_start(link, listener, *part, shared, schema, what) for part in parts]
    try:
        until = time.monotonic() + JOIN_SECONDS
        while not link.wait(there + count, 0.5):
            if any(process.poll() is not None for process in started) or time.monotonic() > until:
                raise BenchmarkError(f"{len(link.devices())} of {there + count} devices joined; all of them must")
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


def _start(
    link: GrpcLink, listener: Listener, first: int, count: int, shared: int, schema: str, what: str
) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", MODULE, f"{HOST}:{link.port}", str(first), str(count), str(shared), schema, what]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True)
    if process.stdout is not None:
        threading.Thread(target=listener.read, args=(process.stdout,), daemon=True).start()
    return process


def _watched(listener: Listener, seconds: float) -> float:
    """Return the 99th percentile of the heartbeats of so many seconds from now on."""
    listener.take()
    time.sleep(seconds)
    return _percentile(listener.take())


def _percentile(took: Sequence[float]) -> float:
    if not took:
        raise BenchmarkError("no device has had an answer to a heartbeat")
    return sorted(took)[math.ceil(0.99 * len(took)) - 1]


def _resident() -> int:
    """Return the bytes that this process has."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096
