"""The agent's side of the wire, against a real coordinator that comes and goes."""

import queue
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest
import torch
from agents import Agent, end_round, examples, serve, states, task

from diastole.client.errors import DataError, LinkError, RefusedError
from diastole.client.terms import Progress
from diastole.models.training import Examples
from diastole.proto.words import Reason
from diastole.server.events import Change, DeviceJoined, DeviceLeft
from diastole.server.link import Failure, Update
from diastole.server.wire.link import GrpcLink
from diastole.server.wire.orders import message


@pytest.fixture
def link() -> Iterator[GrpcLink]:
    with closing(serve()) as link:
        yield link


def test_an_agent_trains_until_the_run_is_over(link: GrpcLink) -> None:
    device = Agent(link.port)
    assert link.wait(1, 60)
    for number in (1, 2):
        (update,) = link.dispatch([task(number)], states(), None)
        assert isinstance(update, Update)
        assert update.examples == 8
    link.close()
    device.join()
    assert device.error is None
    assert device.summary is not None
    assert device.summary.delivered == 2
    assert device.summary.seconds == sum(progress.seconds for progress in device.progress)
    assert [progress.outcome for progress in device.progress] == ["", "accepted"] * 2


def test_an_agent_on_the_coordinators_machine_goes_through_no_proxy(
    link: GrpcLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    device = Agent(link.port)
    assert link.wait(1, 60)
    link.close()
    device.join()
    assert device.error is None


def test_no_coordinator_is_one_line_after_the_patience() -> None:
    with closing(serve()) as link:
        port = link.port
    began = time.monotonic()
    device = Agent(port, patience=0.5)
    device.join()
    assert isinstance(device.error, LinkError)
    assert f"no coordinator at 127.0.0.1:{port} after 0.5 s" in str(device.error)
    assert "\n" not in str(device.error)
    assert time.monotonic() - began < 5


def test_an_agent_started_first_waits_for_its_coordinator() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        device = Agent(port)
        # The agent has come, and nobody answers.
        listener.accept()[0].close()
    with closing(serve(port)) as link:
        assert link.wait(1, 60)
    device.join()
    assert device.error is None


def test_an_agent_joins_again_when_its_coordinator_restarts() -> None:
    first = serve()
    port = first.port
    device = Agent(port)
    assert first.wait(1, 60)
    # Cut off without a farewell, as a crash would.
    first.close("")
    with closing(serve(port)) as second:
        assert second.wait(1, 60)
        (update,) = second.dispatch([task(1)], states(), None)
        assert isinstance(update, Update)
    device.join()
    assert device.error is None


def test_an_agent_whose_lease_lapsed_joins_again() -> None:
    events: queue.SimpleQueue[Change] = queue.SimpleQueue()
    with closing(serve(lease=1.0)) as link:
        # Nothing lapses by itself, however slow this machine is.
        link.sessions._clock = lambda: 0.0
        link.observe(events.put)
        device = Agent(link.port)
        assert link.wait(1, 60)
        assert events.get(timeout=60) == DeviceJoined("one", "test", 8)
        # As if the device had been suspended for longer than its lease; a heartbeat may come in between.
        session = link.sessions.all()["one"]
        while not session.lost:
            session.seen = -100.0
            time.sleep(0.01)
        assert events.get(timeout=60) == DeviceLeft("one", "not heard of for 1 s")
        assert events.get(timeout=60) == DeviceJoined("one", "test", 8)
        assert link.wait(1, 60)
        (update,) = link.dispatch([task(1)], states(), None)
        assert isinstance(update, Update)
    device.join()
    assert device.error is None


def test_an_agent_that_is_online_is_not_thrown_out_by_another_of_its_name(link: GrpcLink) -> None:
    first = Agent(link.port)
    assert link.wait(1, 60)
    second = Agent(link.port, patience=0.3)
    second.join()
    assert isinstance(second.error, RefusedError)
    assert second.error.reason == Reason.DEVICE_ONLINE
    assert "another agent is online as 'one'; give this one a name of its own" in str(second.error)
    (update,) = link.dispatch([task(1)], states(), None)
    assert isinstance(update, Update)
    link.close()
    first.join()
    assert first.error is None


def test_a_restarted_agent_takes_its_own_name_over_and_the_first_does_not_come_back(link: GrpcLink) -> None:
    first = Agent(link.port, key="secret")
    assert link.wait(1, 60)
    second = Agent(link.port, key="secret")
    first.join()
    assert isinstance(first.error, RefusedError)
    assert "another agent has joined as 'one'" in str(first.error)
    with pytest.raises(RefusedError):
        first.connection._join("anything")
    assert link.wait(1, 60)
    (update,) = link.dispatch([task(1)], states(), None)
    assert isinstance(update, Update)
    assert second.is_alive()
    link.close()
    second.join()
    assert second.error is None


def test_a_task_that_comes_again_is_trained_once(link: GrpcLink) -> None:
    begun, goes_on = threading.Event(), threading.Event()

    def hold(progress: Progress) -> None:
        begun.set()
        assert goes_on.wait(60)

    device = Agent(link.port, watch=hold)
    assert link.wait(1, 60)
    sending = threading.Thread(target=lambda: list(link.dispatch([task(1)], states(), None)))
    sending.start()
    assert begun.wait(60)
    # Handed out again, as after a stream that broke while the task is being trained.
    (owed,) = link._exchange.owed("one")
    stream = link.hub._service._streams["one"]
    link.hub._loop.call_soon_threadsafe(stream.put_nowait, message(owed, None, "", "run"))
    goes_on.set()
    sending.join(60)
    link.close()
    device.join()
    assert device.summary is not None
    assert device.summary.delivered == 1
    assert [progress.outcome for progress in device.progress] == ["", "accepted"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Examples(torch.zeros(3, 1, 9, 9), torch.zeros(3, dtype=torch.int64)), r"shape \[1, 9, 9\].*\[1, 8, 8\]"),
        (examples(8, 5), "label 4; the model has 3 classes"),
    ],
)
def test_examples_that_do_not_fit_the_model_are_one_line(link: GrpcLink, data: Examples, message: str) -> None:
    device = Agent(link.port, data)
    device.join()
    assert isinstance(device.error, DataError)
    with pytest.raises(DataError, match=message):
        raise device.error
    assert not link.devices()


def give_up(link: GrpcLink, begun: threading.Event) -> None:
    """Hand out a task, and close its round without an update when its device has begun it."""
    outcomes: list[object] = []
    sending = threading.Thread(target=lambda: outcomes.extend(link.dispatch([task(1)], states(), None)))
    sending.start()
    assert begun.wait(60)
    end_round(link)
    sending.join()
    assert outcomes == []


def test_a_cancelled_task_is_not_uploaded(link: GrpcLink) -> None:
    begun = threading.Event()

    def hold(progress: Progress) -> None:
        if progress.round == 1:
            begun.set()
            assert device.connection.inbox.unwanted.wait(60)

    device = Agent(link.port, watch=hold)
    assert link.wait(1, 60)
    give_up(link, begun)
    (update,) = link.dispatch([task(2)], states(), None)
    assert not isinstance(update, Failure)
    link.close()
    device.join()
    assert device.summary is not None
    assert device.summary.delivered == 1
    assert [progress.outcome for progress in device.progress] == ["", "not needed", "", "accepted"]


def test_a_task_that_was_given_up_and_is_handed_out_again_is_done(link: GrpcLink) -> None:
    begun = threading.Event()

    def hold(progress: Progress) -> None:
        if len(device.progress) == 1:
            begun.set()
            assert device.connection.inbox.unwanted.wait(60)

    device = Agent(link.port, watch=hold)
    assert link.wait(1, 60)
    give_up(link, begun)
    # As by a coordinator that was killed before it could keep that it does not need the task.
    (update,) = link.dispatch([task(1)], states(), 60)
    assert isinstance(update, Update)
    link.close()
    device.join()
    assert [progress.outcome for progress in device.progress] == ["", "not needed", "", "accepted"]
