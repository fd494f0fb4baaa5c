"""A real agent in a thread of the test's own process, against a coordinator on a real socket."""

import threading
from collections.abc import Callable

import torch

from diastole.client import agent
from diastole.client.connection import Connection
from diastole.client.sources.source import DataSource
from diastole.client.terms import Progress, Summary, Terms
from diastole.models.methods.widths.width import spec_of
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.family import initial_state
from diastole.models.spec import SubModelSpec
from diastole.models.state import State, schema_hash
from diastole.models.task import Task
from diastole.models.training import Examples, TrainConfig
from diastole.proto.errors import DiastoleError
from diastole.proto.profile import Profile
from diastole.server.wire.link import GrpcLink

MODEL = ModelConfig(name="cnn", input_shape=(1, 8, 8), classes=3, widths=(4, 8))
SPEC = spec_of(1.0)


def examples(count: int = 8, classes: int = 3) -> Examples:
    draws = torch.Generator().manual_seed(0)
    return Examples(torch.randn(count, 1, 8, 8, generator=draws), torch.arange(count) % classes)


def serve(port: int = 0, lease: float = 60.0, model: ModelConfig = MODEL, **more: object) -> GrpcLink:
    return GrpcLink(f"127.0.0.1:{port}", "run", model, schema_hash(initial_state(model, 0)), lease=lease, **more)


def task(number: int, device: str = "one") -> Task:
    return Task(f"r{number}-{device}", number, device, SPEC, TrainConfig(), 1)


def states() -> dict[SubModelSpec, State]:
    return {SPEC: initial_state(MODEL, 0)}


def end_round(link: GrpcLink) -> None:
    """Close the open round with what has come, as its deadline would."""
    link.enough()
    link._outcomes.put(None)


class Agent(threading.Thread):
    """A real agent; `error` is what it ended with, and `progress` what it told of itself."""

    def __init__(
        self,
        port: int,
        data: Examples | DataSource | None = None,
        *,
        tier: str = "test",
        patience: float = 10.0,
        memory: int | None = None,
        key: str = "",
        terms: Terms | None = None,
        watch: Callable[[Progress], None] = lambda progress: None,
    ) -> None:
        super().__init__(daemon=True)
        self.data = examples() if data is None else data
        me = Profile(tier, len(self.data), memory)
        self.connection = Connection(f"127.0.0.1:{port}", "one", me, patience=patience, key=key)
        self.error: DiastoleError | None = None
        self.summary: Summary | None = None
        self.progress: list[Progress] = []
        self._watch, self._terms = watch, terms or Terms()
        self.start()

    def run(self) -> None:
        try:
            self.summary = agent.run(self.connection, self.data, self.note, terms=self._terms)
        except DiastoleError as error:
            self.error = error

    def note(self, progress: Progress) -> None:
        self.progress.append(progress)
        self._watch(progress)

    def join(self, timeout: float | None = 60.0) -> None:
        super().join(timeout)
        assert not self.is_alive(), "the agent has not ended"
