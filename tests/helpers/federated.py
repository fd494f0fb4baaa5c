"""A whole federation in processes of its own, any of which may be killed: a coordinator and its agents.

A process is forked from one that has imported everything, so that a start takes no second; SIGKILL is what ends it.
"""

import multiprocessing
import signal
import threading
from pathlib import Path
from random import Random
from typing import Any

import torch

from diastole.client import agent
from diastole.client.connection import Connection
from diastole.client.statefolder import StateFolder
from diastole.client.terms import Terms
from diastole.experiments.experiment import Experiment
from diastole.experiments.run import make_run
from diastole.experiments.serving import Serving
from diastole.proto.profile import Profile
from diastole.server.events import Event, RoundStarted, UpdateAccepted
from diastole.simulations.devices import make_federation
from diastole.simulations.simulation import Simulation

ROUNDS = 24
DOCUMENT = {
    "seed": 3,
    "method": "width",
    "data": {"proxy": 40},
    "training": {"epochs": 3},
    "rounds": {"count": ROUNDS, "patience": 120, "evaluate_every": ROUNDS},
    "server": {"name": "fedadam", "learning_rate": 0.01},
    "tiers": {"large": {"devices": 1, "width": 0.5}, "small": {"devices": 2, "width": 0.25}},
}
LEASE_SECONDS = 60.0
ACCEPTED = "accepted"

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["diastole.client.agent", "diastole.experiments.serving", "diastole.simulations.devices"])


def coordinate(port: int, state: Path, *documents: dict[str, Any]) -> None:
    """Be the coordinator until the runs, side by side, are over; note updates, and how many rounds went on with."""
    torch.set_num_threads(1)

    def note(event: Event) -> None:
        if isinstance(event, UpdateAccepted):
            with (state / ACCEPTED).open("a") as file:
                file.write(f"{event.device}\n")
        if isinstance(event, RoundStarted) and event.kept:
            with (state / "kept").open("a") as file:
                file.write(f"{event.kept}\n")

    runs = [make_run(Experiment.parse(document, "test")) for document in documents]
    settings: dict[str, Any] = {"lease": LEASE_SECONDS, "figures": (), "side_by_side": len(runs)}
    with Serving(runs, f"127.0.0.1:{port}", state, observers=(note,), **settings) as serving:
        serving.wait(600)


def attend(name: str, port: int, folder: Path, document: dict[str, Any]) -> None:
    """Be a device that saves every step, until the run is over."""
    torch.set_num_threads(1)
    item = make_federation(Simulation.parse(document, "test")).devices[name]
    said = Profile(item.profile.tier, len(item.examples), memory=item.profile.memory)
    kept = StateFolder(folder / name)
    connection = Connection(f"127.0.0.1:{port}", name, said, patience=120.0, key=kept.key)
    terms = Terms(folder=kept, save_seconds=0.0)
    agent.run(connection, item.examples, terms=terms)


class Federation:
    """A coordinator and its devices, each a process that is started again as soon as it has been killed."""

    def __init__(self, names: list[str], port: int, folder: Path, *documents: dict[str, Any]) -> None:
        self._parts: dict[str, tuple[Any, tuple[Any, ...]]] = {
            "": (coordinate, (port, folder / "state", *documents)),
            **{name: (attend, (name, port, folder / "agents", documents[0])) for name in names},
        }
        self._living = {name: self._born(name) for name in self._parts}

    def kill(self, *names: str) -> None:
        """Kill some at once, and start them again; the coordinator has the empty name."""
        for name in names:
            self._living[name].kill()
        for name in names:
            self._living[name].join(60.0)
            assert self._living[name].exitcode in (0, -signal.SIGKILL)
            self._living[name] = self._born(name)

    def over(self, seconds: float) -> bool:
        """Wait at most so many seconds; return whether the coordinator has ended."""
        self._living[""].join(seconds)
        return self._living[""].exitcode is not None

    def end(self) -> list[int | None]:
        """End whoever is left, and return how each process ended by itself, the coordinator first."""
        for process in self._living.values():
            process.join(20.0)
        codes = [process.exitcode for process in self._living.values()]
        for process in self._living.values():
            process.kill()
            process.join(60.0)
        return codes

    def _born(self, name: str) -> Any:
        target, arguments = self._parts[name]
        process = _FORKS.Process(target=target, args=arguments, daemon=True)
        process.start()
        return process


def killed(
    port: int, folder: Path, seed: int, kills: int, document: dict[str, Any], *others: dict[str, Any]
) -> tuple[int, list[int | None]]:
    """Run a federation, and others over the same devices beside it.

    The coordinator is killed at random moments, each time some of its agents with it; every second time when it has
    just accepted an update, however long that takes.

    Return how often that was, and how each process ended.
    """
    draws, names = Random(seed), list(make_federation(Simulation.parse(document, "test")).devices)
    federation, done = Federation(names, port, folder, document, *others), 0
    path = folder / "state" / ACCEPTED
    try:
        # The first processes import for longer.
        threading.Event().wait(draws.uniform(0, 4))
        while done < kills and not (
            _accepted(federation, path) if done % 2 else federation.over(draws.uniform(0, 2.5))
        ):
            federation.kill("", *(name for name in names if draws.random() < 1 / 3))
            done += 1
        assert federation.over(400)
    finally:
        codes = federation.end()
    return done, codes


def _accepted(federation: Federation, path: Path) -> bool:
    """Wait until the coordinator has accepted one more update; return whether it has ended instead."""
    before = path.stat().st_size if path.exists() else 0
    while not path.exists() or path.stat().st_size == before:
        if federation.over(0.005):
            return True
    return False
