"""Who is let in, on real sockets: versions, names, schemas, tiers and sessions."""

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import Any

import grpc
import pytest
from refusals import refusal

from diastole.models.methods.registry import make_method
from diastole.models.methods.widths.width import spec_of
from diastole.models.moment import Moment
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.family import initial_state
from diastole.models.state import schema_hash
from diastole.models.task import Update
from diastole.models.training import TrainConfig
from diastole.proto.payload import encode
from diastole.proto.profile import Profile
from diastole.proto.words import PROTOCOL_VERSION, REASON_KEY, Reason
from diastole.server.planner import Limits, Planner
from diastole.server.sampler import Uniform
from diastole.server.store.attendance import Attendance
from diastole.server.store.sql import SqlStore
from diastole.server.tiers import Tiers
from diastole.server.wire import hub
from diastole.server.wire.link import GrpcLink
from diastole.v1 import device_pb2

MODEL = ModelConfig(name="cnn", input_shape=(1, 8, 8), classes=10, widths=(4, 8))
SCHEMA = schema_hash(initial_state(MODEL, 0))


def test_joining_is_refused_with_a_reason(link: GrpcLink, device: Any) -> None:
    code = grpc.StatusCode.FAILED_PRECONDITION
    assert refusal(lambda: device("one").join(schema="0" * 64)) == (code, Reason.MODEL_SCHEMA)
    assert refusal(lambda: device("one").join(version=PROTOCOL_VERSION - 1)) == (code, Reason.PROTOCOL_VERSION)
    for name in ("", "a/b", "../x", "x" * 65, "a b"):
        expected = (grpc.StatusCode.INVALID_ARGUMENT, Reason.DEVICE_NAME)
        assert refusal(lambda name=name: device(name).join()) == expected
    hello = device("one").connect().stub.Hello
    assert refusal(lambda: hello(device_pb2.HelloRequest(protocol_versions=[7, 8]))) == (code, Reason.PROTOCOL_VERSION)
    assert not link.devices()


def test_a_refusal_quotes_no_more_of_the_caller_than_a_line(link: GrpcLink, device: Any) -> None:
    stub = device("one").connect().stub
    calls = (
        lambda: stub.Hello(device_pb2.HelloRequest(protocol_versions=range(10, 100_000))),
        lambda: stub.Join(device_pb2.JoinRequest(name="\x1b" * 100_000)),
    )
    for call in calls:
        with pytest.raises(grpc.RpcError) as caught:
            call()
        assert len(caught.value.details()) <= 1000
        assert caught.value.details().isprintable()


def test_hello_says_what_is_trained(link: GrpcLink, device: Any, model: ModelConfig) -> None:
    reply = device("one").connect().stub.Hello(device_pb2.HelloRequest(protocol_versions=[1, PROTOCOL_VERSION, 9]))
    assert reply.protocol_version == PROTOCOL_VERSION
    assert ModelConfig.from_json(reply.model_json) == model
    assert reply.version == version("diastole")


def test_where_nothing_is_trained_hello_says_so(link: GrpcLink, device: Any) -> None:
    one = device("one").connect()
    link.hub.end("run")
    hello = device_pb2.HelloRequest(protocol_versions=[PROTOCOL_VERSION])
    assert refusal(lambda: one.stub.Hello(hello)) == (grpc.StatusCode.UNAVAILABLE, Reason.STARTING)


def test_the_end_waits_for_a_device_that_joins_anew_just_then(
    link: GrpcLink, device: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would wait for ever for a coordinator that has ended without a word to it."""
    monkeypatch.setattr(hub, "BETWEEN_CALLS_SECONDS", 0.0)
    # However slow this machine is; what ends the wait is that the device has been told.
    monkeypatch.setattr(hub, "UNTOLD_SECONDS", 60.0)
    monkeypatch.setattr(hub, "FAREWELL_SECONDS", 60.0)
    device("one").join()
    # Until its stream is open, it has not listened.
    assert link.wait(1, 60)
    again = device("one").connect()
    joined = again.stub.Join(
        device_pb2.JoinRequest(protocol_version=PROTOCOL_VERSION, name="one", model_schema=SCHEMA, key="key of one")
    )
    ending = threading.Thread(target=link.close)
    ending.start()
    while refusal(lambda: again.stub.Join(device_pb2.JoinRequest()))[1] != Reason.FINISHED:
        continue
    stream = again.stub.Tasks(device_pb2.TasksRequest(session=joined.session))
    assert [message.HasField("finish") for message in stream] == [True]
    ending.join(10)


def test_every_call_needs_a_session(link: GrpcLink, device: Any) -> None:
    one = device("one").connect()
    expected = (grpc.StatusCode.UNAUTHENTICATED, Reason.UNKNOWN_SESSION)
    assert refusal(lambda: next(one.stub.Tasks(device_pb2.TasksRequest(session="x")))) == expected
    assert refusal(lambda: next(one.stub.Download(device_pb2.DownloadRequest(session="x")))) == expected
    assert refusal(lambda: one.stub.Heartbeat(device_pb2.HeartbeatRequest(session="x"))) == expected
    assert refusal(lambda: one.stub.UploadStatus(device_pb2.UploadStatusRequest(session="x"))) == expected
    one.stub.Leave(device_pb2.LeaveRequest(session="x"))


@pytest.mark.parametrize("key", ["", "guessed"])
def test_a_name_that_is_online_is_not_taken_over_by_a_stranger(
    link: GrpcLink, device: Any, task: Any, key: str
) -> None:
    honest = device("one").join()
    assert link.wait(1, 60)
    expected = (grpc.StatusCode.ALREADY_EXISTS, Reason.DEVICE_ONLINE)
    for _ in range(3):
        assert refusal(lambda: device("one", key=key).join()) == expected
    sending = link.dispatch([task("one")], {spec_of(1.0): initial_state(MODEL, 0)}, None)
    waiting = threading.Thread(target=honest.deliver)
    waiting.start()
    assert isinstance(next(sending), Update)
    waiting.join(10)
    sending.close()
    # With its own key it comes back at once, and with any once it has left.
    again = device("one").join()
    again.stub.Leave(device_pb2.LeaveRequest(session=again.session))
    assert device("one", key=key).join().session


def test_a_device_that_gave_no_key_is_replaced_by_nobody(link: GrpcLink, device: Any) -> None:
    device("one", key="").join()
    assert refusal(lambda: device("one", key="").join())[1] == Reason.DEVICE_ONLINE


def test_a_device_reads_what_it_was_given_and_nothing_else(link: GrpcLink, device: Any, task: Any) -> None:
    one, two = device("one").join(), device("two").join()
    assert link.wait(2, 60)
    states = {spec_of(width): initial_state(MODEL, seed) for seed, width in enumerate((0.5, 1.0))}
    outcomes: list[Any] = []
    orders = [task("one"), task("two", width=0.5)]
    sending = threading.Thread(target=lambda: outcomes.extend(link.dispatch(orders, states, None)))
    sending.start()
    given = one.task()
    request = device_pb2.DownloadRequest(session=two.session, sha256=given.model.sha256)
    assert refusal(lambda: next(two.stub.Download(request))) == (grpc.StatusCode.NOT_FOUND, Reason.UNKNOWN_OBJECT)
    for each, order in ((one, given), (two, two.task())):
        assert each.upload(order.task_id, encode(each.state(order))) == device_pb2.UploadReply.OUTCOME_ACCEPTED
    sending.join(10)
    assert [type(outcome) for outcome in outcomes] == [Update, Update]


def test_what_a_device_says_of_itself_is_bounded(link: GrpcLink, device: Any) -> None:
    one = device("one")
    one.connect()
    schema = schema_hash(initial_state(ModelConfig.from_json(hello(one).model_json), 0))
    for tier in ("x" * 65, "two\nlines", "\x1b[31m"):
        profile = Profile(tier, 1).message("0")
        request = device_pb2.JoinRequest(
            protocol_version=PROTOCOL_VERSION, name="one", profile=profile, model_schema=schema
        )
        expected = (grpc.StatusCode.INVALID_ARGUMENT, Reason.DEVICE_PROFILE)
        assert refusal(lambda request=request: one.stub.Join(request)) == expected


def hello(device: Any) -> device_pb2.HelloReply:
    reply: device_pb2.HelloReply = device.stub.Hello(device_pb2.HelloRequest(protocol_versions=[PROTOCOL_VERSION]))
    return reply


@pytest.fixture
def tiered() -> Iterator[GrpcLink]:
    """A coordinator with a tier for named devices, one for all, and one for those that are named as weak."""
    tiers = Tiers({"large": ["big-*"], "small": [], "tiny": ["weak-*"]})
    with closing(GrpcLink("127.0.0.1:0", "run", MODEL, SCHEMA, tiers=tiers)) as link:
        yield link


def refused(call: Callable[[], Any]) -> str:
    """Return the line with which a device is not let into a tier."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    error: Any = caught.value
    assert error.code() is grpc.StatusCode.PERMISSION_DENIED
    assert dict(error.trailing_metadata())[REASON_KEY] == Reason.DEVICE_TIER
    return str(error.details())


def test_an_operators_tiers_bind_devices(tiered: GrpcLink, device: Any) -> None:
    def join(name: str, tier: str) -> Any:
        return device(name, address=f"127.0.0.1:{tiered.port}", tier=tier).join()

    assert refused(lambda: join("pi", "huge")) == "there is no tier 'huge'; device 'pi' may be in: small"
    assert refused(lambda: join("pi", "large")) == "device 'pi' may not be in tier 'large'; it may be in: small"
    # One that a pattern names may be in its tier or a smaller one, not in a wider one that is open to others.
    assert refused(lambda: join("weak-1", "small")) == "device 'weak-1' may not be in tier 'small'; it may be in: tiny"
    assert not tiered.devices()
    asked = {"big-1": "large", "big-2": "small", "big-3": "", "pi": "", "weak-1": ""}
    joined = [join(name, tier) for name, tier in asked.items()]
    assert tiered.wait(len(joined), 10)
    given = {name: profile.tier for name, profile in tiered.devices().items()}
    # Who asks for none has the smallest that it may be in.
    assert given == {"big-1": "large", "big-2": "small", "big-3": "small", "pi": "small", "weak-1": "tiny"}


def test_the_limits_of_the_tier_that_a_device_is_given_apply_to_it(tiered: GrpcLink, device: Any) -> None:
    sizes = make_method("width", MODEL, [1.0, 0.5], TrainConfig()).offers()
    limits = {"small": Limits(training_macs=sizes[0].cost.training_macs)}
    planner = Planner(sizes, TrainConfig(), limits=limits)
    for name, tier in {"big-1": "large", "big-2": "small", "pi": ""}.items():
        device(name, address=f"127.0.0.1:{tiered.port}", tier=tier).join()
    assert tiered.wait(3, 60)
    planned = planner.plan(Moment(), tiered.devices(), Uniform(1))
    assert {item.device: item.size for item in planned} == {"big-1": sizes[1], "big-2": sizes[0], "pi": sizes[0]}


def test_without_tiers_a_device_is_taken_at_its_word(link: GrpcLink, device: Any) -> None:
    device("one", tier="whatever").join()
    assert link.wait(1, 60)
    assert link.devices()["one"].tier == "whatever"


@pytest.mark.parametrize("key", ["", "guessed"])
def test_after_a_restart_a_name_is_still_not_taken_over_by_a_stranger(device: Any, tmp_path: Path, key: str) -> None:
    store = SqlStore(f"sqlite:///{tmp_path / 'test.sqlite'}")

    def serve(port: int = 0) -> GrpcLink:
        attendance = Attendance(store, "place")
        return GrpcLink(f"127.0.0.1:{port}", "run", MODEL, SCHEMA, lease=60.0, attendance=attendance)

    noted: queue.SimpleQueue[object] = queue.SimpleQueue()
    with closing(store):
        with closing(serve()) as before:
            before.observe(noted.put)
            address = f"127.0.0.1:{before.port}"
            device("one", address=address).join()
            noted.get(timeout=10)
            before.close("")
        with closing(serve(before.port)):
            expected = (grpc.StatusCode.ALREADY_EXISTS, Reason.DEVICE_ONLINE)
            assert refusal(lambda: device("one", key=key, address=address).join()) == expected
            assert device("one", address=address).join().session
            assert refusal(lambda: device("one", key=key, address=address).join()) == expected
