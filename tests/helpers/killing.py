"""Agents in processes of their own that are killed, and started again, while a real coordinator goes on.

A process is forked from one that has imported everything, so that a start takes no second; from there on it is an agent
like any other, and SIGKILL is what ends it.
"""

import multiprocessing
import signal
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from random import Random
from typing import Any

import torch
from scripted import ScriptedLink, examples

from diastole.client import agent
from diastole.client.connection import Connection
from diastole.client.statefolder import StateFolder
from diastole.client.terms import Progress, Terms
from diastole.models.methods.registry import make_method
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.family import initial_state
from diastole.models.state import State, schema_hash
from diastole.models.training import TrainConfig
from diastole.proto.profile import Profile
from diastole.server.coordinator import Coordinator
from diastole.server.link import Link
from diastole.server.settings import RoundConfig, Settings
from diastole.server.wire.link import GrpcLink

# Two chunks on the wire, and steps of a few milliseconds.
MODEL = ModelConfig(name="cnn", input_shape=(1, 8, 8), classes=3, widths=(64, 768))
TRAINING = TrainConfig(epochs=2, batch_size=2)
PHASES = ("download", "train", "upload")
LEASE_SECONDS = 60.0

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "diastole.client.agent",
        "diastole.server.coordinator",
        "diastole.experiments.serving",
        "diastole.simulations.devices",
    ]
)


class Told(Connection):
    """A connection that says what it is about to do."""

    def __init__(self, pipe: Pipe, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.pipe = pipe

    def download(self, *arguments: Any, **more: Any) -> Any:
        self.pipe.send("download")
        return super().download(*arguments, **more)

    def upload(self, *arguments: Any, **more: Any) -> Any:
        self.pipe.send("upload")
        return super().upload(*arguments, **more)


def live(port: int, folder: Path, pipe: Pipe) -> None:
    """Be an agent that saves every step."""
    torch.set_num_threads(1)
    kept = StateFolder(folder)
    connection = Told(pipe, f"127.0.0.1:{port}", "one", Profile("test", len(examples())), patience=60.0, key=kept.key)

    def watch(progress: Progress) -> None:
        pipe.send(progress.outcome or "train")

    terms = Terms(folder=kept, save_seconds=0.0)
    agent.run(connection, examples(), watch, terms=terms)


def coordinator(link: Link, rounds: int) -> Coordinator:
    settings = Settings(MODEL, TRAINING, RoundConfig(count=rounds, patience=120.0), seed=3)
    return Coordinator(settings, make_method("width", MODEL, [1.0], TRAINING), link, initial_state(MODEL, 0))


def undisturbed(rounds: int) -> State:
    return coordinator(ScriptedLink(["one"], model=MODEL), rounds).run()


class Life:
    """A process of the agent, from its start to its end."""

    def __init__(self, port: int, folder: Path) -> None:
        self.words, pipe = FORKS.Pipe(duplex=False)
        self.process = FORKS.Process(target=live, args=(port, folder, pipe), daemon=True)
        self.process.start()
        pipe.close()

    def hear(self, seconds: float | None) -> str:
        """Return what it says next; nothing once it has ended, or after so many seconds."""
        try:
            return str(self.words.recv()) if self.words.poll(seconds) else ""
        except EOFError:
            return ""

    def kill_in(self, phase: str, lasted: dict[str, float], draws: Random) -> str:
        """Kill it at a random moment of a phase, and return what it was doing; nothing if it has ended before."""
        doing, since = "", time.monotonic()
        while word := self.hear(60.0):
            if doing in lasted:
                lasted[doing] = time.monotonic() - since
            doing, since = word, time.monotonic()
            if doing == phase:
                self.process.join(draws.uniform(0, lasted[phase]))
                self.process.kill()
                while word := self.hear(10.0):
                    doing = word
                break
        self.end()
        return doing

    def end(self) -> None:
        """Wait until it is gone."""
        self.process.join(60.0)
        assert self.process.exitcode in (0, -signal.SIGKILL)
        self.words.close()


def killed(rounds: int, phases: Sequence[str], seed: int, folder: Path) -> tuple[State, list[str]]:
    """Return the state after some rounds with a kill in each of `phases`, and what the agent was doing when it came.

    A kill comes at a random moment: as long after its phase began as the phase has lasted before, at most.
    """
    draws, hit, lasted = Random(seed), list[str](), dict.fromkeys(PHASES, 0.05)
    found: list[State] = []
    link = GrpcLink("127.0.0.1:0", "run", MODEL, schema_hash(initial_state(MODEL, 0)), lease=LEASE_SECONDS)
    with closing(link):
        running = threading.Thread(target=lambda: found.append(coordinator(link, rounds).run()))
        running.start()
        for phase in phases:
            hit.append(Life(link.port, folder).kill_in(phase, lasted, draws))
        last = Life(link.port, folder)
        running.join(120.0)
    # It may have come when the run was over, and find nobody to tell it.
    last.process.join(2.0)
    last.process.kill()
    last.end()
    return found[0], hit
