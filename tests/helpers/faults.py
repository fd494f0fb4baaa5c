"""A fleet over real sockets, of which half is honest; the others have every fault that a fleet has."""

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import torch
from cutting import Network
from scripted import ScriptedLink, examples

from diastole.client.connection import Connection
from diastole.client.offer import read_offer
from diastole.client.training import train
from diastole.experiments.experiment import Experiment
from diastole.experiments.run import make_run
from diastole.experiments.serving import Serving
from diastole.models.state import State
from diastole.models.task import Update
from diastole.proto.errors import DiastoleError
from diastole.proto.payload import Payload, decode, encode
from diastole.proto.profile import Profile

HONEST = ("honest", "replays", "cut")
DATA = examples(12)
LEASE_SECONDS = 5.0


def roles(count: int) -> list[str]:
    """Return what each of so many devices is: 30 % vanish, 10 % are slow, and every fault is there at least once."""
    faulty = {"vanishes": 0.3, "slow": 0.1, "nan": 0.05, "shape": 0.03, "replays": 0.01, "cut": 0.05}
    dealt = [role for role, share in faulty.items() for _ in range(max(1, round(share * count)))]
    return ["honest"] * (count - len(dealt)) + dealt


def document(rounds: int, deadline: float, devices: int) -> dict[str, Any]:
    """Return an experiment with a sub-model of some 40 kB, in which a round counts with a third of its devices."""
    return {
        "seed": 3,
        "method": "width",
        "model": {"widths": [32, 128]},
        "data": {"proxy": 0},
        "training": {"epochs": 1, "batch_size": 6},
        "rounds": {
            "count": rounds,
            "deadline": deadline,
            "quorum": 1 / 3,
            "patience": 600,
            "evaluate_every": rounds,
        },
        "tiers": {"test": {"devices": devices, "width": 0.5}},
    }


def names(count: int) -> list[str]:
    """Return the names of the devices of a fleet, which begin with their roles."""
    return [f"{role}-{number}" for number, role in enumerate(roles(count))]


def honest(count: int) -> list[str]:
    """Return the names of those whose updates count."""
    return [name for name in names(count) if name.split("-")[0] in HONEST]


def reference(described: dict[str, Any]) -> State:
    """Return what the honest updates alone come to, without a network and without a fault."""
    run, there = make_run(Experiment.parse(described, "test")), honest(described["tiers"]["test"]["devices"])
    return run.coordinator(ScriptedLink(there, model=run.model), devices=len(there)).run()


def coordinate(port: int, state: Path, described: dict[str, Any]) -> None:
    """Be the fleet's coordinator, in a process of its own, until the run is over."""
    torch.set_num_threads(1)
    run = make_run(Experiment.parse(described, "test"))
    with Serving(run, f"127.0.0.1:{port}", state, lease=LEASE_SECONDS, figures=()) as serving:
        serving.wait(600)


class Device(threading.Thread):
    """A device with a role, until the run is over.

    Attributes:
        answers: to its uploads, in their order.
        error: that ended it, if it was not the end of the run.

    """

    def __init__(self, port: int, name: str, draws: Random, over: threading.Event) -> None:
        super().__init__(daemon=True)
        self.role, self._over = name.split("-")[0], over
        if self.role == "cut":
            # Less than a third of an object, so that one connection is cut even if a kill breaks two others.
            self.network = Network(port, down=draws.randrange(6_000, 12_000), up=draws.randrange(6_000, 12_000))
        else:
            self.network = Network(port, delay=draws.uniform(0, 0.002))
        self._connection = Connection(
            f"127.0.0.1:{self.network.port}", name, Profile("test", len(DATA)), patience=600.0
        )
        self.answers: list[int] = []
        self.error: DiastoleError | None = None
        self._late: tuple[str, Payload, Update] | None = None
        self.start()

    def run(self) -> None:
        try:
            model = self._connection.join()
            for received in self._connection.tasks():
                self._do(model, received.task)
                if self.role == "vanishes":
                    break
        except DiastoleError as error:
            self.error = error
        finally:
            self._connection.close("")
            self.network.close()

    def _do(self, model: Any, wanted: Any) -> None:
        if self.role == "vanishes":
            self.network.close()
            return
        task, _ = read_offer(wanted, self._connection.name, model, DATA, None)
        data = self._connection.download(wanted.model)
        if data is None:
            return
        update = train(model, task, decode(data), DATA)
        update = replace(update, state=spoilt(self.role, update.state), report=replace(update.report, seconds=0.1))
        payload = Payload.of(encode(update.state))
        if self.role == "slow":
            # It is done when nobody waits for it any more.
            while not (self._over.wait(0.05) or self._connection.cancelled(task.task_id)):
                continue
        if self._late and self.role == "replays":
            self._deliver(*self._late)
        for _ in range(2 if self.role == "replays" else 1):
            self._deliver(task.task_id, payload, update)
        self._late = task.task_id, payload, update

    def _deliver(self, task_id: str, payload: Payload, update: Update) -> None:
        self.answers.append(self._connection.upload(task_id, payload, update.report))


def spoilt(role: str, state: State) -> State:
    """Return what a device of a role brings in the place of a state."""
    name = next(iter(state))
    if role == "nan":
        return state | {name: torch.full_like(state[name], torch.nan)}
    if role == "shape":
        return state | {name: state[name][:-1].clone()}
    return state


def fleet(port: int, seed: int, over: threading.Event, count: int) -> Sequence[Device]:
    """Start a device of each role."""
    return [Device(port, name, Random(f"{seed}-{name}"), over) for name in names(count)]
