"""Twenty devices over real sockets, of which half are honest; the others have every fault that a fleet has."""

import threading
from collections.abc import Sequence
from dataclasses import replace
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
from diastole.models.state import State
from diastole.models.task import Update
from diastole.proto.errors import DiastoleError
from diastole.proto.payload import Payload, decode, encode
from diastole.proto.profile import Profile

ROLES = (*["honest"] * 8, "replays", "cut", *["vanishes"] * 6, *["slow"] * 2, "nan", "shape")
HONEST = ("honest", "replays", "cut")
DATA = examples(12)


def document(rounds: int, deadline: float) -> dict[str, Any]:
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
            "patience": 60,
            "evaluate_every": rounds,
        },
        "tiers": {"test": {"devices": len(ROLES), "width": 0.5}},
    }


def name_of(number: int) -> str:
    return f"{ROLES[number]}-{number}"


def reference(described: dict[str, Any]) -> State:
    """Return what the honest updates alone come to, without a network and without a fault."""
    run = make_run(Experiment.parse(described, "test"))
    names = [name_of(number) for number, role in enumerate(ROLES) if role in HONEST]
    return run.coordinator(ScriptedLink(names, model=run.model), devices=len(names)).run()


class Device(threading.Thread):
    """A device with a role, until the run is over.

    Attributes:
        answers: to its uploads, in their order.
        error: that ended it, if it was not the end of the run.

    """

    def __init__(self, port: int, number: int, draws: Random, over: threading.Event) -> None:
        super().__init__(daemon=True)
        self.role, self._over = ROLES[number], over
        if self.role == "cut":
            self.network = Network(port, down=draws.randrange(12_000, 24_000), up=draws.randrange(12_000, 24_000))
        else:
            self.network = Network(port, delay=draws.uniform(0, 0.002))
        self._connection = Connection(
            f"127.0.0.1:{self.network.port}", name_of(number), Profile("test", len(DATA)), patience=60.0
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


def fleet(port: int, seed: int, over: threading.Event) -> Sequence[Device]:
    """Start a device of each role."""
    return [Device(port, number, Random(f"{seed}-{number}"), over) for number in range(len(ROLES))]
