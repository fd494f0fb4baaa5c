"""An agent under a real limit of memory: it trains what fits, refuses in words what does not, and lives on."""

import multiprocessing
import resource
import threading
from contextlib import closing
from multiprocessing.connection import Connection as Pipe
from typing import Any

import pytest
import torch

from diastole.client import agent, shift, walls
from diastole.client.connection import Connection
from diastole.client.profile import free_memory
from diastole.client.terms import Progress
from diastole.models.methods.registry import make_method
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.family import initial_state
from diastole.models.state import schema_hash
from diastole.models.training import Examples, TrainConfig
from diastole.proto.profile import Profile
from diastole.server.coordinator import Coordinator
from diastole.server.events import Event, RoundClosed, RoundStarted, TaskDeclined
from diastole.server.settings import RoundConfig, Settings
from diastole.server.wire.link import GrpcLink

LIMIT = 400 << 20
# The largest size takes about 490 MB, the smallest about 120.
MODEL = ModelConfig(name="cnn", input_shape=(3, 64, 64), classes=3, widths=(256, 64))
TRAINING = TrainConfig(batch_size=40)


def live(port: int, announced: int | None, blind: bool, pipe: Pipe) -> None:
    """Be an agent that may have 400 MB beyond what torch and this program take; `blind`, it does not see the limit."""
    torch.set_num_threads(1)
    examples = Examples(torch.randn(40, 3, 64, 64), torch.arange(40) % 3)
    used = walls._status()["VmData"]
    resource.setrlimit(resource.RLIMIT_DATA, (used + LIMIT, used + LIMIT))
    if blind:
        agent.room, shift.near = lambda: None, lambda reserve: False
    memory = free_memory() if announced is None else announced
    connection = Connection(
        f"127.0.0.1:{port}", "one", Profile("test", 40, memory, memory_free=announced is None), patience=60.0
    )

    def watch(progress: Progress) -> None:
        pipe.send((progress.spec, progress.outcome, progress.reason))

    # A search for a plan would stay within no limit either.
    agent.run(connection, examples, watch, "reference" if blind else "fast")


def federated(announced: int | None, rounds: int, blind: bool = False) -> tuple[list[Event], list[Any], int | None]:
    events, told = list[Event](), list[Any]()
    link = GrpcLink("127.0.0.1:0", "run", MODEL, schema_hash(initial_state(MODEL, 0)), lease=60.0)
    settings = Settings(MODEL, TRAINING, RoundConfig(count=rounds, patience=60.0), seed=1)
    method = make_method("width", MODEL, [1.0, 0.25], TRAINING)
    coordinator = Coordinator(settings, method, link, initial_state(MODEL, 0), observers=(events.append,))
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(["diastole.client.agent", "diastole.server.coordinator", "diastole.server.wire.link"])
    words, pipe = forks.Pipe(duplex=False)
    with closing(link):
        process = forks.Process(target=live, args=(link.port, announced, blind, pipe), daemon=True)
        process.start()
        pipe.close()
        running = threading.Thread(target=coordinator.run)
        running.start()
        running.join(120.0)
    process.join(120.0)
    while words.poll():
        try:
            told.append(words.recv())
        except EOFError:
            break
    return events, told, process.exitcode


@pytest.mark.slow
def test_an_agent_under_a_limit_trains_what_the_planner_gives_it() -> None:
    events, told, code = federated(None, 1)
    assert code == 0
    (started,) = [event for event in events if isinstance(event, RoundStarted)]
    assert started.specs == {"one": "width 0.25"}
    assert not [event for event in events if isinstance(event, TaskDeclined)]
    assert told == [("width 0.25", "", ""), ("width 0.25", "accepted", "")]


@pytest.mark.parametrize(
    ("blind", "reason"),
    [(False, "width 1 takes "), pytest.param(True, "there was no memory for another ", marks=pytest.mark.slow)],
)
def test_an_agent_that_is_given_too_large_a_size_refuses_in_words_and_lives_on(blind: bool, reason: str) -> None:
    events, told, code = federated(1 << 40, 2, blind)
    assert code == 0
    sizes = [event.specs["one"] for event in events if isinstance(event, RoundStarted)]
    assert sizes == ["width 1", "width 0.25"]
    (declined,) = [event for event in events if isinstance(event, TaskDeclined)]
    assert (declined.device, declined.why) == ("one", "memory")
    assert declined.reason.startswith(reason)
    assert [event.updates for event in events if isinstance(event, RoundClosed)] == [0, 1]
    assert told[-1] == ("width 0.25", "accepted", "")
