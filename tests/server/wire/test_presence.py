"""Observers hear of devices that come and go, on real sockets."""

import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from agents import MODEL, serve

from diastole.models.methods.registry import make_method
from diastole.models.networks.family import initial_state
from diastole.models.training import TrainConfig
from diastole.server.coordinator import Coordinator
from diastole.server.events import Change, DeviceJoined, DeviceLeft, Event
from diastole.server.settings import RoundConfig, Settings
from diastole.server.wire import sessions
from diastole.server.wire.link import GrpcLink
from diastole.v1 import device_pb2

AGENT = "import sys; from agents import Agent; Agent(int(sys.argv[1])).join()"


def observed(link: GrpcLink) -> "queue.SimpleQueue[Event]":
    """Return what a coordinator's observers are told."""
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    settings = Settings(MODEL, TrainConfig(), RoundConfig(count=1), seed=1)
    method = make_method("width", MODEL, [1.0], TrainConfig())
    Coordinator(settings, method, link, initial_state(MODEL, 0), observers=(events.put,))
    return events


@pytest.fixture
def patient() -> Iterator[GrpcLink]:
    with closing(serve(lease=1.0)) as link:
        yield link


def test_a_device_that_joins_and_leaves_is_told(link: GrpcLink, device: Callable[..., Any]) -> None:
    events = observed(link)
    one = device("one", tier="small", examples=7).join()
    assert events.get(timeout=60) == DeviceJoined("one", "small", 7)
    one.stub.Leave(device_pb2.LeaveRequest(session=one.session, message="battery"))
    assert events.get(timeout=60) == DeviceLeft("one", "battery")
    # What has left cannot leave again.
    one.stub.Leave(device_pb2.LeaveRequest(session=one.session, message="battery"))
    two = device("two").join()
    assert events.get(timeout=60) == DeviceJoined("two", "test", 10)
    two.stub.Leave(device_pb2.LeaveRequest(session=two.session))
    assert events.get(timeout=60) == DeviceLeft("two", "left")


def test_who_joined_before_anybody_observed_is_told_too(link: GrpcLink, device: Callable[..., Any]) -> None:
    one = device("one").join()
    one.stub.Leave(device_pb2.LeaveRequest(session=one.session, message="battery"))
    device("two").join()
    events = observed(link)
    assert [events.get(timeout=60) for _ in range(3)] == [
        DeviceJoined("one", "test", 10),
        DeviceLeft("one", "battery"),
        DeviceJoined("two", "test", 10),
    ]


def test_an_observer_that_takes_its_time_holds_nobody_up(link: GrpcLink, device: Callable[..., Any]) -> None:
    told, goes_on = queue.SimpleQueue[Event](), threading.Event()

    def slow(event: Change) -> None:
        told.put(event)
        assert goes_on.wait(60)

    link.observe(slow)
    one = device("one").join()
    assert told.get(timeout=60) == DeviceJoined("one", "test", 10)
    device("two").join()
    one.stub.Heartbeat(device_pb2.HeartbeatRequest(session=one.session), timeout=60)
    assert link.wait(2, 60)
    assert told.empty()
    goes_on.set()
    assert told.get(timeout=60) == DeviceJoined("two", "test", 10)


def test_a_device_that_comes_back_joins_again(link: GrpcLink, device: Callable[..., Any]) -> None:
    events = observed(link)
    for _ in range(2):
        device("one").join()
        assert events.get(timeout=60) == DeviceJoined("one", "test", 10)
    assert events.empty()


def test_what_a_device_says_when_it_leaves_is_one_short_line(link: GrpcLink, device: Callable[..., Any]) -> None:
    events = observed(link)
    one = device("one").join()
    events.get(timeout=60)
    one.stub.Leave(device_pb2.LeaveRequest(session=one.session, message="a\nb\x1b[31m" * 1000))
    left = events.get(timeout=60)
    assert isinstance(left, DeviceLeft)
    assert left.reason.isprintable()
    assert len(left.reason) == 300


def test_a_device_whose_lease_lapses_has_left(silent_link: GrpcLink, device: Callable[..., Any]) -> None:
    events = observed(silent_link)
    device("one", address=f"127.0.0.1:{silent_link.port}").join()
    assert events.get(timeout=60) == DeviceJoined("one", "test", 10)
    assert silent_link.wait(1, 60)
    silent_link.sessions.all()["one"].seen -= 100
    assert events.get(timeout=60) == DeviceLeft("one", "not heard of for 1.5 s")


def test_a_device_is_told_of_a_longer_lease_when_others_come(
    link: GrpcLink, device: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "HEARTBEATS", 0.01)
    one = device("one").join()
    request = device_pb2.HeartbeatRequest(session=one.session, lease_seconds=300)
    assert one.stub.Heartbeat(request).lease_seconds == link.sessions.all()["one"].lease == 300
    device("two").join()
    assert one.stub.Heartbeat(request).lease_seconds == link.sessions.all()["one"].lease == 600


@pytest.mark.slow
def test_an_agent_that_is_killed_has_left_when_its_lease_lapses(patient: GrpcLink) -> None:
    events = observed(patient)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with subprocess.Popen([sys.executable, "-c", AGENT, str(patient.port)], env=environment) as agent:
        try:
            assert events.get(timeout=60) == DeviceJoined("one", "test", 8)
        finally:
            agent.kill()
    assert events.get(timeout=60) == DeviceLeft("one", "not heard of for 1 s")
    assert not patient.devices()
    assert set(patient.seen()) == {"one"}
