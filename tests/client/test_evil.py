"""A coordinator that is broken or hostile: everything it says is bounded before it is believed."""

import json
import math
import resource
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from importlib import metadata
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
import torch
from agents import MODEL, SPEC, Agent, examples
from evil import MODEL_DATA, Evil, order
from torch import Tensor

from diastole.client import agent, transfer
from diastole.client import inbox as inboxes
from diastole.client.bounds import MESSAGE_PAUSE, SHORTEST_LEASE
from diastole.client.connection import Connection
from diastole.client.errors import DataError, MessageError
from diastole.client.heartbeats import BEATS
from diastole.client.inbox import MOST_REMEMBERED, Inbox, ReceivedTask
from diastole.client.terms import Progress
from diastole.models.errors import ModelError
from diastole.models.methods.registry import cost_of
from diastole.models.networks.config import ModelConfig
from diastole.models.training import Examples, TrainConfig
from diastole.proto.profile import Profile
from diastole.proto.words import REASON_KEY, Reason
from diastole.v1 import common_pb2
from diastole.v1 import device_pb2 as pb

WORDS = ModelConfig("transformer", (16,), 3, (8,), blocks=(1,), vocabulary=50)


@pytest.fixture
def evil() -> Iterator[Evil]:
    with closing(Evil()) as evil:
        yield evil


def sent(evil: Evil, *orders: pb.TrainTask) -> Iterator[pb.Task]:
    """Send orders, each when the one before has been delivered or declined, and then the end of the run."""
    for each in orders:
        yield pb.Task(train=each)
        assert evil.answer.acquire(timeout=60)


def meet(evil: Evil, *orders: pb.TrainTask, memory: int | None = None) -> list[Progress]:
    """Let an agent meet orders, and an honest one after them, which it must do; return what it says of the others."""
    evil.messages = sent(evil, *orders, order("honest"))
    device = Agent(evil.port, memory=memory)
    device.join()
    assert device.error is None
    assert evil.uploads[-1] == "honest"
    return [progress for progress in device.progress if progress.outcome][:-1]


def spec(**changes: object) -> str:
    return json.dumps(json.loads(SPEC.to_json()) | changes)


def training(**changes: object) -> str:
    return json.dumps(json.loads(TrainConfig().to_json()) | changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"task_id": ""}, "task ''; 1 to 256 printable"),
        ({"task_id": "x" * 1_000_000}, "task 'xxx"),
        ({"task_id": "\x1b[2Jr1"}, r"task '\\x1b\[2Jr1'"),
        ({"codec": "c" * 1_000_000}, "name of 1000000 characters"),
        ({"progress": math.nan}, "progress is nan; a share from 0 to 1"),
        ({"progress": -0.5}, "progress is -0.5"),
        ({"deadline_seconds": math.nan}, "deadline_seconds is nan"),
        ({"deadline_seconds": -1.0}, "deadline_seconds is -1"),
        ({"model": common_pb2.ObjectRef(sha256="../etc/passwd", size=9)}, "SHA-256"),
        ({"model": common_pb2.ObjectRef(sha256=MODEL_DATA.sha256)}, "announced with 0 bytes"),
        ({"model": common_pb2.ObjectRef(sha256=MODEL_DATA.sha256, size=1 << 60)}, f"announced with {1 << 60} bytes"),
        (
            {"untrained": common_pb2.ObjectRef(sha256="0" * 64, size=1 << 63)},
            f"announced with {1 << 63} bytes",
        ),
        ({"spec_json": " " * 3_000_000}, "spec of 3000000 characters"),
        ({"spec_json": "{}"}, "sub-model spec"),
        ({"spec_json": "[" * 60_000}, "sub-model spec"),
        ({"spec_json": spec(label="a\x1b[31m")}, "printable"),
        ({"spec_json": spec(options={"width": 1e300})}, "width"),
        ({"training_json": training(epochs=10**12)}, "epochs"),
        ({"training_json": training(batch_size=10**12)}, "batch_size"),
        ({"training_json": training(learning_rate=1e300)}, "learning_rate"),
        ({"training_json": " " * 3_000_000}, "training of 3000000 characters"),
    ],
)
def test_a_task_that_makes_no_sense_is_declined_in_one_line(evil: Evil, changes: dict[str, Any], words: str) -> None:
    (declined,) = meet(evil, order(**changes))
    assert declined.outcome == "declined"
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(declined.reason)
    assert declined.reason.isprintable()
    assert len(declined.reason) <= 300
    assert evil.declined[0].message == declined.reason
    assert evil.declined[0].why == pb.DeclineRequest.WHY_UNSPECIFIED
    assert evil.downloads == 1


def endless(request: Any, context: Any) -> Iterator[pb.Chunk]:
    data = bytes(1 << 20)
    while context.is_active():
        yield pb.Chunk(data=data)


def test_a_download_ends_at_its_announced_size(evil: Evil) -> None:
    evil.chunks = endless
    evil.messages = sent(evil, order("one"), order("two"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    device = Agent(evil.port)
    device.join()
    assert device.error is None
    reason = f"object {MODEL_DATA.sha256[:12]}... goes on beyond the {len(MODEL_DATA.data)} bytes announced"
    assert [progress.reason for progress in device.progress] == [reason, reason]
    # KiB; both ends are in this process.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


def test_a_download_of_nothing_for_ever_ends(evil: Evil, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(request: Any, context: Any) -> Iterator[pb.Chunk]:
        while evil.downloads <= 3 and context.is_active():
            yield pb.Chunk()
        yield from (pb.Chunk(data=bytes(data)) for data in MODEL_DATA.chunks())

    monkeypatch.setattr(transfer, "IDLE_SECONDS", 0.1)
    evil.chunks = nothing
    (declined,) = meet(evil, order())
    assert declined.reason == f"object {MODEL_DATA.sha256[:12]}... does not arrive: not a byte in 3 tries"


def test_other_content_twice_is_declined_and_the_next_round_is_trained(evil: Evil) -> None:
    def other(request: Any, context: Any) -> Iterator[pb.Chunk]:
        yield pb.Chunk(data=MODEL_DATA.data if evil.downloads > 2 else bytes(len(MODEL_DATA.data)))

    evil.chunks = other
    (declined,) = meet(evil, order())
    assert declined.reason.endswith("arrived with another content, twice")


def test_a_download_stops_when_its_task_is_cancelled(evil: Evil) -> None:
    begun = threading.Event()

    def waits(request: Any, context: Any) -> Iterator[pb.Chunk]:
        begun.set()
        while context.is_active():
            yield pb.Chunk()

    def messages() -> Iterator[pb.Task]:
        yield pb.Task(train=order())
        assert begun.wait(60)
        yield pb.Task(cancel=pb.Cancel(task_id="r1-one"))
        evil.chunks = None
        yield from sent(evil, order("honest"))

    evil.chunks, evil.messages = waits, messages()
    device = Agent(evil.port)
    device.join()
    assert device.error is None
    assert [progress.outcome for progress in device.progress] == ["not needed", "", "accepted"]


@pytest.mark.parametrize("over", [False, True])
def test_an_upload_stops_when_its_task_is_not_needed_any_more(
    evil: Evil, monkeypatch: pytest.MonkeyPatch, over: bool
) -> None:
    monkeypatch.setattr(transfer, "ANSWER_SECONDS", 0.1)
    begun, ended = threading.Event(), threading.Event()

    def stands(task_id: str, context: Any) -> None:
        if task_id != "honest":
            context.add_callback(ended.set)
            begun.set()
            assert ended.wait(60)

    def messages() -> Iterator[pb.Task]:
        yield pb.Task(train=order())
        assert begun.wait(60)
        if not over:
            yield pb.Task(cancel=pb.Cancel(task_id="r1-one"))
            yield from sent(evil, order("honest"))

    evil.takes, evil.messages = stands, messages()
    device = Agent(evil.port)
    device.join()
    assert ended.is_set()
    assert device.error is None
    rest = [] if over else ["", "accepted"]
    assert [progress.outcome for progress in device.progress] == ["", "not needed", *rest]


def test_an_answer_that_comes_behind_the_end_of_the_run_counts(evil: Evil) -> None:
    begun = threading.Event()

    def takes(task_id: str, context: Any) -> None:
        begun.set()
        assert device.connection._over.wait(60)
        threading.Event().wait(2 * transfer.LOOK_SECONDS)

    def messages() -> Iterator[pb.Task]:
        yield pb.Task(train=order())
        assert begun.wait(60)

    evil.takes, evil.messages = takes, messages()
    device = Agent(evil.port)
    device.join()
    assert device.summary is not None
    assert device.summary.delivered == 1


def test_an_upload_that_is_not_taken_ends(evil: Evil, monkeypatch: pytest.MonkeyPatch) -> None:
    def stands(task_id: str, context: Any) -> None:
        ended = threading.Event()
        if task_id != "honest" and context.add_callback(ended.set):
            assert ended.wait(60)

    monkeypatch.setattr(transfer, "IDLE_SECONDS", 0.1)
    evil.takes = stands
    (declined,) = meet(evil, order())
    assert declined.reason == "the update of r1-one is not taken: 3 tries stood still"


def test_of_tasks_without_end_only_the_newest_waits_and_the_stream_is_read_slowly(evil: Evil) -> None:
    def messages() -> Iterator[pb.Task]:
        for number in range(50):
            yield pb.Task(train=order(f"r{number}-one"))
            yield pb.Task(cancel=pb.Cancel(task_id=f"r{number}" + "c" * 10_000))

    evil.messages = messages()
    began = time.monotonic()
    device = Agent(evil.port, watch=lambda progress: device.connection._over.wait(60) and None)
    device.join()
    assert device.error is None
    assert [progress.outcome for progress in device.progress] == ["", "not needed"]
    assert time.monotonic() - began >= 100 * MESSAGE_PAUSE


def test_an_inbox_does_not_grow() -> None:
    inbox, name = Inbox(), "x" * 5_000
    for number in range(2 * MOST_REMEMBERED):
        inbox.put(ReceivedTask(order(f"{number}{name}"), math.inf))
        inbox.cancel(f"{number + 1}{name}")
    assert len(inbox._known) == MOST_REMEMBERED
    assert max(map(len, inbox._known)) == 32
    last = inbox.take()
    assert last is not None
    assert last.task.task_id == f"{2 * MOST_REMEMBERED - 1}{name}"


def test_a_device_is_idle_only_if_the_next_task_does_not_come_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    inbox, idle = Inbox(), []
    inbox.put(ReceivedTask(order("one"), math.inf))
    assert inbox.take(lambda: idle.append("one")) is not None
    monkeypatch.setattr(inboxes, "SOON_SECONDS", 0.01)

    def waits() -> None:
        idle.append("two")
        inbox.put(ReceivedTask(order("two"), math.inf))

    assert inbox.take(waits) is not None
    assert idle == ["two"]


def test_a_task_that_comes_again_waits_again_and_is_known() -> None:
    inbox = Inbox()

    def take() -> tuple[str, bool]:
        received = inbox.take()
        assert received is not None
        return received.task.task_id, received.again

    def put(name: str = "it") -> None:
        inbox.put(ReceivedTask(order(name), math.inf))

    put()
    put()
    assert take() == ("it", False)
    assert inbox._waiting is None
    # While it is being worked on, and once it is done.
    put()
    inbox.cancel("it")
    assert inbox._waiting is None
    put()
    assert take() == ("it", True)
    put("next")
    assert take() == ("next", False)
    put()
    assert take() == ("it", True)


@pytest.mark.parametrize("lease", [0.0, -1.0, math.nan, 1e300])
def test_a_lease_that_makes_no_sense_is_no_storm_and_no_traceback(evil: Evil, lease: float) -> None:
    evil.lease, began = lease, time.monotonic()
    assert meet(evil) == []
    assert evil.heartbeats <= 1 + (time.monotonic() - began) * BEATS / SHORTEST_LEASE


def test_an_agent_goes_by_the_lease_that_it_is_told_last(evil: Evil) -> None:
    evil.lease = 0.5

    def messages() -> Iterator[pb.Task]:
        assert evil.kept.get(timeout=60) == 0.5
        evil.lease = 0.75
        while evil.kept.get(timeout=60) != 0.75:
            pass
        yield from ()

    evil.messages = messages()
    assert meet(evil) == []


def test_a_cancelled_task_of_a_billion_epochs_stops(evil: Evil) -> None:
    trains = threading.Event()

    def messages() -> Iterator[pb.Task]:
        yield pb.Task(train=order(training_json=training(epochs=10**9)))
        assert trains.wait(60)
        yield pb.Task(cancel=pb.Cancel(task_id="r1-one"))
        yield from sent(evil, order("two"))

    evil.messages = messages()
    device = Agent(evil.port, watch=lambda progress: trains.set())
    device.join()
    assert device.error is None
    assert [progress.outcome for progress in device.progress] == ["", "not needed", "", "accepted"]


def test_a_task_whose_deadline_has_passed_stops(evil: Evil, monkeypatch: pytest.MonkeyPatch) -> None:
    passed = [0.0]

    def watch(progress: Progress) -> None:
        passed[0] = 100.0
        if progress.outcome:
            done.set()

    def messages() -> Iterator[pb.Task]:
        yield pb.Task(train=order(training_json=training(epochs=10**9), deadline_seconds=100))
        assert done.wait(60)

    done = threading.Event()
    evil.messages = messages()
    monkeypatch.setattr(agent, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + passed[0]))
    device = Agent(evil.port, watch=watch)
    device.join()
    assert device.error is None
    assert [progress.outcome for progress in device.progress] == ["", "too late"]


def test_a_task_of_more_than_the_devices_memory_is_declined_before_it_is_downloaded(evil: Evil) -> None:
    needed = cost_of(MODEL, SPEC, replace(TrainConfig(), batch_size=8)).memory
    evil.messages = sent(evil, order())
    device = Agent(evil.port, memory=needed - 1)
    device.join()
    (declined,) = device.progress
    assert declined.reason == f"{SPEC.label} takes {needed} bytes to train; this device offers {needed - 1}"
    assert evil.declined[0].why == pb.DeclineRequest.WHY_MEMORY
    assert evil.downloads == 0
    evil.messages = sent(evil, order())
    assert meet(evil, memory=needed) == []


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"widths": [2**40]}, "widths"),
        ({"name": "resnet", "blocks": [200_000], "widths": [4]}, "blocks"),
        ({"input_shape": [2**24, 2**24, 2**24]}, "input_shape"),
        ({"classes": 2**62}, "classes"),
        ({"name": "custom", "factory": "os:getcwd"}, "os:getcwd"),
    ],
)
def test_a_model_that_cannot_be_is_one_line(evil: Evil, model: dict[str, object], words: str) -> None:
    evil.model_json = json.dumps(json.loads(MODEL.to_json()) | model)
    device = Agent(evil.port)
    device.join()
    assert isinstance(device.error, ModelError)
    assert words in str(device.error)
    assert len(str(device.error).splitlines()) == 1


@pytest.mark.parametrize(
    ("version", "words"), [("9.1", "the coordinator has diastole 9.1"), ("", "the coordinator has an earlier diastole")]
)
def test_a_model_of_another_version_is_called_so(evil: Evil, version: str, words: str) -> None:
    evil.model_json, evil.version = json.dumps(json.loads(MODEL.to_json()) | {"new": 1}), version
    device = Agent(evil.port)
    device.join()
    assert isinstance(device.error, ModelError)
    assert f"{words}, this agent {metadata.version('diastole')}; install the same" in str(device.error)


def test_a_coordinator_that_trains_nothing_now_is_waited_for(evil: Evil) -> None:
    """As one is, for a moment, whose last run is over."""
    evil.model_json, asked = "", threading.Event()

    def joins(request: Any, context: Any) -> pb.JoinReply:
        evil.model_json = MODEL.to_json()
        if not asked.is_set():
            asked.set()
            context.set_trailing_metadata(((REASON_KEY, Reason.STARTING),))
            context.abort(grpc.StatusCode.UNAVAILABLE, "nothing is trained here now")
        return pb.JoinReply(session="secret", lease_seconds=5.0)

    evil.joins = joins
    device = Agent(evil.port)
    device.join()
    assert device.error is None
    assert asked.is_set()


@pytest.mark.parametrize("what", ["session", "run_id"])
def test_names_of_any_length_are_not_believed(evil: Evil, what: str) -> None:
    setattr(evil, what, "s" * 100_000)
    device = Agent(evil.port)
    device.join()
    assert isinstance(device.error, MessageError)
    assert len(str(device.error)) < 200


def test_a_text_of_the_coordinator_cannot_fool_a_terminal(evil: Evil) -> None:
    def refuses(request: Any, context: Any) -> Iterator[pb.Chunk]:
        if evil.downloads > 1:
            yield from (pb.Chunk(data=bytes(data)) for data in MODEL_DATA.chunks())
            return
        context.abort(grpc.StatusCode.INTERNAL, "\x1b[2J\x1b]0;mine\x07" + "x" * 5000)

    evil.chunks = refuses
    (declined,) = meet(evil, order())
    assert declined.reason.isprintable()
    assert len(declined.reason) <= 300


def test_an_agent_that_is_told_to_stop_while_it_joins_leaves(evil: Evil) -> None:
    def joins(request: Any, context: Any) -> pb.JoinReply:
        # Told to the main thread, as a process is: another thread that gets it does not wake that one.
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
        assert interrupted.wait(60)
        return pb.JoinReply(session="secret", lease_seconds=5.0)

    def stop(number: int, frame: object) -> None:
        interrupted.set()
        raise KeyboardInterrupt

    interrupted = threading.Event()
    evil.joins = joins
    before = signal.signal(signal.SIGTERM, stop)
    try:
        with pytest.raises(KeyboardInterrupt):
            agent.run(Connection(f"127.0.0.1:{evil.port}", "one", Profile("", 8)), examples())
    finally:
        signal.signal(signal.SIGTERM, before)
    assert evil.left == ["stopped on the device"]


@pytest.mark.parametrize(
    ("model", "x", "says"),
    [
        (
            replace(MODEL, input_shape=(3, 8, 9)),
            torch.zeros(3, 8, 9, 3),
            "channels seem to be last: numpy.moveaxis",
        ),
        (replace(MODEL, input_shape=(3, 64)), torch.zeros(3, 64, 3), "channels seem to be last: numpy.moveaxis"),
        (MODEL, torch.zeros(3, 8, 8), "the one channel seems to be left out: x[:, None]"),
        (WORDS, torch.full((3, 16), 50.0), "examples: a token is 50; whole numbers from 0 to 49"),
        (WORDS, torch.full((3, 16), 0.5), "examples: a token is 0.5; whole numbers from 0 to 49"),
    ],
)
def test_examples_that_are_not_the_models_are_told_so(evil: Evil, model: ModelConfig, x: Tensor, says: str) -> None:
    evil.model_json = model.to_json()
    device = Agent(evil.port, Examples(x, torch.zeros(3, dtype=torch.int64)))
    device.join()
    assert isinstance(device.error, DataError)
    assert says in str(device.error)
    assert "\n" not in str(device.error)
