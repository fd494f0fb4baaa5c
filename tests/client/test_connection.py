"""The agent's side of the wire, against a real coordinator that comes and goes."""

import threading
import time
from collections.abc import Iterator
from contextlib import closing

import grpc
import pytest
import torch

from diastole.client import agent
from diastole.client.connection import Connection
from diastole.client.errors import DataError, LinkError, RefusedError
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.family import initial_state
from diastole.models.spec import SubModelSpec
from diastole.models.training import Examples, TrainConfig
from diastole.proto.profile import Profile
from diastole.server.link import Failure, Task, Update
from diastole.server.wire.link import GrpcLink

MODEL = ModelConfig(name="cnn", input_shape=(1, 8, 8), classes=3, widths=(4, 8))


def examples(count: int = 8, classes: int = 3) -> Examples:
    draws = torch.Generator().manual_seed(0)
    return Examples(torch.randn(count, 1, 8, 8, generator=draws), torch.arange(count) % classes)


def serve(port: int = 0, lease: float = 5.0, model: ModelConfig = MODEL) -> GrpcLink:
    return GrpcLink(f"127.0.0.1:{port}", "run", model, initial_state(model, 0), lease=lease)


def task(number: int, device: str = "one") -> Task:
    return Task(f"r{number}-{device}", number, device, SubModelSpec("width"), initial_state(MODEL, 0), TrainConfig(), 1)


class Agent(threading.Thread):
    """A real agent in a thread; `error` is what it ended with."""

    def __init__(self, port: int, data: Examples | None = None, patience: float = 10.0) -> None:
        super().__init__(daemon=True)
        self.data = data or examples()
        self.connection = Connection(f"127.0.0.1:{port}", "one", Profile("test", len(self.data)), patience=patience)
        self.error: Exception | None = None
        self.summary: agent.Summary | None = None
        self.start()

    def run(self) -> None:
        try:
            self.summary = agent.run(self.connection, self.data)
        except (DataError, LinkError, RefusedError) as error:
            self.error = error


class Seen(set[str]):
    """The tasks that an agent has seen; `some` is set with the first one."""

    def __init__(self) -> None:
        super().__init__()
        self.some = threading.Event()

    def add(self, task_id: str) -> None:
        super().add(task_id)
        self.some.set()


@pytest.fixture
def link() -> Iterator[GrpcLink]:
    with closing(serve()) as link:
        yield link


def test_an_agent_trains_until_the_run_is_over(link: GrpcLink) -> None:
    device = Agent(link.port)
    assert link.wait(1, 10)
    for number in (1, 2):
        (update,) = link.dispatch([task(number)], None)
        assert isinstance(update, Update)
        assert update.examples == 8
    link.close()
    device.join(10)
    assert device.error is None
    assert device.summary is not None
    assert device.summary.delivered == 2


def test_no_coordinator_is_one_line_after_the_patience() -> None:
    with closing(serve()) as link:
        port = link.port
    began = time.monotonic()
    device = Agent(port, patience=0.5)
    device.join(10)
    assert isinstance(device.error, LinkError)
    assert f"no coordinator at 127.0.0.1:{port} after 0.5 s" in str(device.error)
    assert "\n" not in str(device.error)
    assert time.monotonic() - began < 5


def test_an_agent_started_first_waits_for_its_coordinator() -> None:
    with closing(serve()) as link:
        port = link.port
    device = Agent(port)
    tried = threading.Event()
    refused = grpc.ChannelConnectivity.TRANSIENT_FAILURE
    device.connection._channel.subscribe(lambda state: state is refused and tried.set())
    assert tried.wait(10)
    with closing(serve(port)) as link:
        assert link.wait(1, 10)
    device.join(10)
    assert device.error is None


def test_an_agent_joins_again_when_its_coordinator_restarts() -> None:
    first = serve()
    port = first.port
    device = Agent(port)
    assert first.wait(1, 10)
    # Cut off without a farewell, as a crash would.
    first._call(first._server.stop(None))
    first._end_thread()
    with closing(serve(port)) as second:
        assert second.wait(1, 10)
        (update,) = second.dispatch([task(1)], None)
        assert isinstance(update, Update)
    device.join(10)
    assert device.error is None


def test_an_agent_whose_lease_lapsed_joins_again() -> None:
    with closing(serve(lease=1.0)) as link:
        device = Agent(link.port)
        assert link.wait(1, 10)
        session = link.sessions.all()["one"]
        # As if the device had been suspended for longer than its lease.
        session.seen -= 100
        link.sessions.wait(2, 10, lambda: link.sessions.all()["one"] is not session)
        assert link.sessions.all()["one"] is not session
        assert link.wait(1, 10)
        (update,) = link.dispatch([task(1)], None)
        assert isinstance(update, Update)
    device.join(10)
    assert device.error is None


def test_a_second_agent_of_the_same_name_replaces_the_first(link: GrpcLink) -> None:
    first = Agent(link.port)
    assert link.wait(1, 10)
    second = Agent(link.port)
    first.join(10)
    assert isinstance(first.error, RefusedError)
    assert "another agent has joined as 'one'" in str(first.error)
    assert link.wait(1, 10)
    link.close()
    second.join(10)
    assert second.error is None


def test_a_replaced_agent_does_not_come_back(link: GrpcLink) -> None:
    first = Agent(link.port)
    assert link.wait(1, 10)
    second = Agent(link.port)
    first.join(10)
    with pytest.raises(RefusedError):
        first.connection._join("anything")
    (update,) = link.dispatch([task(1)], None)
    assert isinstance(update, Update)
    assert second.is_alive()
    link.close()
    second.join(10)
    assert second.error is None


def test_a_task_that_comes_again_is_trained_once(link: GrpcLink) -> None:
    device = Agent(link.port, examples(3000))
    assert link.wait(1, 10)
    seen = device.connection._seen = Seen()
    outcomes = link.dispatch([task(1)], None)
    sending = threading.Thread(target=lambda: list(outcomes))
    sending.start()
    assert seen.some.wait(5)
    # The stream breaks while the task is being trained.
    link._loop.call_soon_threadsafe(
        link._service._streams["one"].put_nowait, link._service._message(task(1), link._exchange.owed("one")[0][1])
    )
    sending.join(20)
    link.close()
    device.join(20)
    assert device.summary is not None
    assert device.summary.delivered == 1


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Examples(torch.zeros(3, 1, 9, 9), torch.zeros(3, dtype=torch.int64)), r"shape \[1, 9, 9\].*\[1, 8, 8\]"),
        (examples(8, 5), "label 4; the model has 3 classes"),
    ],
)
def test_examples_that_do_not_fit_the_model_are_one_line(link: GrpcLink, data: Examples, message: str) -> None:
    device = Agent(link.port, data)
    device.join(10)
    assert isinstance(device.error, DataError)
    with pytest.raises(DataError, match=message):
        raise device.error
    assert not link.devices()


def test_a_cancelled_task_is_not_uploaded(link: GrpcLink) -> None:
    device = Agent(link.port, examples(3000))
    assert link.wait(1, 10)
    assert list(link.dispatch([task(1)], 0.05)) == []
    (update,) = link.dispatch([task(2)], None)
    assert not isinstance(update, Failure)
    link.close()
    device.join(20)
    assert device.summary is not None
    assert device.summary.delivered == 1
