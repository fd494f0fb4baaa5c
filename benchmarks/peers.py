"""The other end of a measured connection: devices in a process of their own.

Run as `python -m diastole.benchmarks.peers COORDINATOR MODEL NAME...`.
"""

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager

import torch

from diastole.benchmarks.errors import BenchmarkError
from diastole.client import agent
from diastole.client.connection import Connection
from diastole.models.allocator import keep_pages
from diastole.models.methods.widths.width import spec_of
from diastole.models.networks.config import ModelConfig
from diastole.models.state import State, schema_hash
from diastole.models.task import Task, Update
from diastole.models.training import Examples
from diastole.proto.profile import Profile
from diastole.server.link import Failure, Link
from diastole.server.wire.link import GrpcLink

HOST = "127.0.0.1"
PROFILE = Profile("benchmark", examples=1)
FULL = spec_of(1.0)
PATIENCE_SECONDS = 2.0
START_SECONDS = 60.0
ROUND_SECONDS = 60.0
FAREWELL_SECONDS = 10.0


@contextmanager
def serving(model: ModelConfig, state: State, devices: int, *arguments: str) -> Iterator[GrpcLink]:
    """Open a link on loopback, start this module with `arguments` in another process, and wait for its devices.

    Leaving closes the link, which ends the process too, and removes what was spooled. Raises `BenchmarkError` if
    fewer than `devices` have joined when the process ends or a minute is over.
    """
    link = GrpcLink(f"{HOST}:0", "benchmark", model, schema_hash(state))
    command = [sys.executable, "-m", "diastole.benchmarks.peers", f"{HOST}:{link.port}", *arguments]
    with joined(link, devices, command):
        yield link


@contextmanager
def joined(
    link: GrpcLink, devices: int, command: Sequence[str], stdout: int = subprocess.DEVNULL
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a process, wait for its devices on a link, and yield the process.

    Leaving closes the link, which ends the process too. Raises `BenchmarkError` if fewer than `devices` have joined
    when the process ends or a minute is over.
    """
    try:
        # In a session of its own, so that an interrupt from the keyboard reaches this process alone.
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stdout, start_new_session=True)
        try:
            until = time.monotonic() + START_SECONDS
            while not link.wait(devices, 0.2):
                if process.poll() is not None or time.monotonic() > until:
                    raise BenchmarkError(f"{len(link.devices())} of {devices} devices joined; all of them must")
            yield process
        finally:
            link.close()
            try:
                process.wait(FAREWELL_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()
    finally:
        link.close()


def finish(link: Link, tasks: Sequence[Task], state: State) -> list[Update]:
    """Dispatch tasks of the full size and return the update of each. Raises `BenchmarkError` if one brings none."""
    updates = []
    with closing(link.dispatch(tasks, {FULL: state}, ROUND_SECONDS)) as outcomes:
        for outcome in outcomes:
            if isinstance(outcome, Failure):
                raise BenchmarkError(f"device {outcome.device}: {outcome.reason}")
            updates.append(outcome)
    if len(updates) < len(tasks):
        raise BenchmarkError(f"{len(updates)} of {len(tasks)} devices answered in {ROUND_SECONDS:g} s; all must")
    return updates


def one_example(model: ModelConfig) -> Examples:
    """Return what each device trains on."""
    return Examples(torch.ones(1, *model.input_shape), torch.zeros(1, dtype=torch.int64))


def train(coordinator: str, model: ModelConfig, names: Sequence[str]) -> None:
    """Run one device agent a name, each in a thread with a connection of its own."""
    examples = one_example(model)

    def run(name: str) -> None:
        agent.run(Connection(coordinator, name, PROFILE, patience=PATIENCE_SECONDS), examples)

    with ThreadPoolExecutor(len(names)) as pool:
        list(pool.map(run, names))


def main(arguments: Sequence[str]) -> None:
    """Be the devices that the arguments describe, until the coordinator says that the run is over."""
    torch.set_num_threads(1)
    # As agents do under their default plan.
    keep_pages()
    coordinator, model, *names = arguments
    train(coordinator, ModelConfig.from_json(model), names)


if __name__ == "__main__":
    main(sys.argv[1:])
