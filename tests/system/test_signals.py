"""Signals to a coordinator in a process of its own: the round stays open, whatever the process is doing."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from diastole.cli.serve import GRACE_SECONDS
from diastole.client import agent
from diastole.client.connection import Connection
from diastole.client.model_file import ModelFile
from diastole.client.terms import Progress
from diastole.proto.profile import Profile
from diastole.simulations.devices import make_federation
from diastole.simulations.simulate import simulate
from diastole.simulations.simulation import Simulation

pytestmark = pytest.mark.slow

TEXT = """
seed = 3
method = "width"
metrics = ["held:held"]
[rounds]
count = 2
patience = 60
[tiers]
small = {devices = 1, width = 0.25}
"""
# A metric is computed by the server, which is therefore at work of its own for as long as it lasts.
HELD = """
import os
import threading
from pathlib import Path

def held(outputs, targets):
    if mark := os.environ.get("AT_WORK"):
        from diastole.cli import serve

        serve.GRACE_SECONDS = float(os.environ["GRACE"])
        Path(mark).touch()
        threading.Event().wait()
    return (outputs.argmax(1) == targets).float()
"""
SCRIPT = """
import sys
import diastole

with diastole.serve(sys.argv[1], f"127.0.0.1:{sys.argv[2]}", sys.argv[3]) as run:
    run.wait()
"""


class Place:
    """An experiment's file, and the port and the folder of its coordinators, of which each is a process."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path, self.state = folder, folder / "run.toml", folder / "state"
        self.path.write_text(TEXT)
        (folder / "held.py").write_text(HELD)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]

    @contextmanager
    def command(self, *, held: str = "", grace: float = GRACE_SECONDS) -> Iterator[subprocess.Popen[str]]:
        """Start `diastole serve`; its first evaluation makes the file `held`, and does not end but by that grace."""
        addresses = ("--listen", f"127.0.0.1:{self.port}", "--admin", "127.0.0.1:0")
        with self._process(
            ["-m", "diastole.cli.main", "serve", str(self.path), *addresses, "--state", str(self.state)], held, grace
        ) as process:
            yield process

    @contextmanager
    def script(self) -> Iterator[subprocess.Popen[str]]:
        """Start a program of Python that serves."""
        with self._process(["-c", SCRIPT, str(self.path), str(self.port), str(self.state)], "") as process:
            yield process

    @contextmanager
    def _process(self, command: list[str], held: str, grace: float = GRACE_SECONDS) -> Iterator[subprocess.Popen[str]]:
        paths = f"{self.folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
        environment = os.environ | {"PYTHONPATH": paths, "AT_WORK": held, "GRACE": str(grace)}
        process = subprocess.Popen(
            [sys.executable, *command], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        try:
            yield process
        finally:
            process.kill()
            process.communicate(timeout=60)

    @contextmanager
    def agent(self, go: threading.Event, training: threading.Event) -> Iterator[Future[agent.Summary]]:
        """Have the experiment's device, which sets `training` at its first step and then waits for `go`."""
        ((name, item),) = make_federation(Simulation.load(self.path)).devices.items()

        def watch(progress: Progress) -> None:
            if not progress.outcome:
                training.set()
                assert go.wait(120)

        said = Profile(item.profile.tier, len(item.examples), memory=item.profile.memory)
        connection = Connection(f"127.0.0.1:{self.port}", name, said, patience=120.0)
        with ThreadPoolExecutor(1) as pool:
            yield pool.submit(agent.run, connection, item.examples, watch)
            go.set()

    def check(self) -> None:
        """Compare the result with a run that nobody disturbed."""
        expected = simulate(make_federation(Simulation.load(self.path)))
        found = ModelFile.read(self.state / "latest" / "model.safetensors").state
        assert all(torch.equal(tensor, expected.state[name]) for name, tensor in found.items())


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.syspath_prepend(str(tmp_path))
    return Place(tmp_path)


def at_work(mark: Path) -> None:
    until = time.monotonic() + 60
    while not mark.exists():
        assert time.monotonic() < until
        threading.Event().wait(0.02)


def test_a_coordinator_at_work_of_its_own_ends_after_its_grace_and_at_once_when_told_twice(place: Place) -> None:
    go, mark, again = threading.Event(), place.folder / "mark", place.folder / "again"
    go.set()
    with place.agent(go, threading.Event()) as device:
        with place.command(held=str(mark)) as first:
            at_work(mark)
            first.send_signal(signal.SIGTERM)
            told = time.monotonic()
            assert first.wait(60) == 128 + signal.SIGTERM
            assert time.monotonic() - told >= GRACE_SECONDS
        with place.command(held=str(again), grace=600) as second:
            at_work(again)
            second.send_signal(signal.SIGTERM)
            # Signals that come together are one.
            threading.Event().wait(0.5)
            second.send_signal(signal.SIGINT)
            assert second.wait(60) == 128 + signal.SIGINT
            assert second.stdout is not None
            assert "round 1 goes on; 1 of 1 updates are here" in second.stdout.read()
        with place.command() as third:
            assert third.wait(120) == 0
        assert device.result(60).delivered == 2
    place.check()


def test_ctrl_c_in_a_program_that_serves_leaves_the_round_open(place: Place) -> None:
    go, training = threading.Event(), threading.Event()
    with place.agent(go, training) as device:
        with place.script() as first:
            assert training.wait(60)
            first.send_signal(signal.SIGINT)
            assert first.wait(30) == -signal.SIGINT
            assert first.stdout is not None
            assert first.stdout.read().endswith("KeyboardInterrupt\n")
        # Nobody has told the device anything: it trains on.
        assert not device.done()
        with place.script() as second:
            go.set()
            assert second.wait(120) == 0
        assert device.result(60).delivered == 2
    place.check()
