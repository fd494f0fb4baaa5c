"""Codecs that remember what went before, when agents and the coordinator are killed: the bits of a run that was not."""

import signal
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

import pytest
import torch
from killing import FORKS
from ports import free_port

from diastole.client import agent
from diastole.client.connection import Connection
from diastole.client.statefolder import StateFolder
from diastole.client.terms import Terms
from diastole.experiments.serving import Serving
from diastole.proto.payload import decode, encode
from diastole.proto.profile import Profile
from diastole.server.events import Event, UpdateAccepted
from diastole.simulations.devices import Federation, make_federation
from diastole.simulations.simulate import simulate
from diastole.simulations.simulation import Simulation

Document = dict[str, Any]


def federation(document: Document) -> Federation:
    return make_federation(Simulation.parse(document, "test"))


def live(document: Document, name: str, port: int, folder: Path, tell: Callable[[Any], None]) -> None:
    """Be an agent that saves every step, and tell of each round in which it trains."""
    item = federation(document).devices[name]
    said = Profile(item.profile.tier, len(item.examples), memory=item.profile.memory)
    kept = StateFolder(folder)
    connection = Connection(f"127.0.0.1:{port}", name, said, patience=60.0, key=kept.key)
    terms = Terms(folder=kept, save_seconds=0.0)
    agent.run(connection, item.examples, lambda done: None if done.outcome else tell(done.round), terms=terms)


def lives(document: Document, name: str, port: int, folder: Path, pipe: Pipe) -> None:
    torch.set_num_threads(1)
    live(document, name, port, folder, pipe.send)


def serves(document: Document, port: int, folder: Path, pipe: Pipe) -> None:
    """Be a coordinator that tells of each round in which it takes an update, and writes the state that it ends with."""
    torch.set_num_threads(1)

    def tell(event: Event) -> None:
        if isinstance(event, UpdateAccepted):
            pipe.send(event.round)

    with Serving(federation(document).run, f"127.0.0.1:{port}", folder, observers=(tell,), figures=()) as serving:
        (folder / "state").write_bytes(encode(serving.wait(60).state))


class Life:
    """A process that is killed, and started again."""

    def __init__(self, target: Callable[..., None], *arguments: Any) -> None:
        self._target, self._arguments = target, arguments
        self._start()

    def _start(self) -> None:
        self._words, pipe = FORKS.Pipe(duplex=False)
        self._process = FORKS.Process(target=self._target, args=(*self._arguments, pipe), daemon=True)
        self._process.start()
        pipe.close()

    def end(self) -> None:
        self._process.kill()
        self._process.join(10)
        self._words.close()

    def wait(self) -> None:
        """Wait until it has ended by itself."""
        self._process.join(60)

    def kill_in(self, number: int) -> None:
        """Kill it when it tells of a round, and start another."""
        while self._words.poll(60) and self._words.recv() != number:
            pass
        self.end()
        assert self._process.exitcode == -signal.SIGKILL
        self._start()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("up", "down", "rounds", "kills"),
    [
        ("top-k:0.1", "delta:int8", 3, [("agent", 2), ("coordinator", 2)]),
        ("top-k:0.1", "delta:int8", 5, [("coordinator", n) for n in range(1, 5)]),
        ("top-k:0.1", "delta:int8", 5, [("agent", n) for n in range(1, 5)]),
        ("int4", "delta:top-k:0.2", 4, [(who, n) for n in range(1, 4) for who in ("coordinator", "agent")]),
        ("top-k:0.1", "int8", 4, [(who, n) for n in range(1, 4) for who in ("agent", "coordinator")]),
    ],
)
def test_kills_change_no_bit(up: str, down: str, rounds: int, kills: list[tuple[str, int]], tmp_path: Path) -> None:
    document = {
        "seed": 7,
        "model": {"widths": [4, 8], "group": 2},
        "data": {"proxy": 0},
        # Nobody is killed in the last one: it may be over before a device calls again.
        "rounds": {"count": rounds, "patience": 60},
        "codecs": {"up": up, "down": down},
        "tiers": {"large": {"devices": 1, "width": 1.0}, "small": {"devices": 1, "width": 0.5}},
    }
    errors, port = list[BaseException](), free_port()

    def stays() -> None:
        try:
            live(document, "device-00", port, tmp_path / "device-00", lambda number: None)
        except BaseException as error:  # noqa: BLE001 (told below)
            errors.append(error)

    thread = threading.Thread(target=stays, daemon=True)
    thread.start()
    coordinator = Life(serves, document, port, tmp_path)
    device = Life(lives, document, "device-01", port, tmp_path / "device-01")
    try:
        for who, number in kills:
            (coordinator if who == "coordinator" else device).kill_in(number)
        thread.join(60)
        coordinator.wait()
    finally:
        for each in (device, coordinator):
            each.end()
    assert errors == []
    expected, found = simulate(federation(document)).state, decode((tmp_path / "state").read_bytes())
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
