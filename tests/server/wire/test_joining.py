"""Who is let in, on real sockets: versions, names, schemas, tiers and sessions."""

from typing import Any

import grpc
from refusals import refusal

from diastole.models.networks.config import ModelConfig
from diastole.models.networks.family import initial_state
from diastole.models.state import schema_hash
from diastole.proto.profile import Profile
from diastole.proto.words import PROTOCOL_VERSION, Reason
from diastole.server.wire.link import GrpcLink
from diastole.v1 import device_pb2


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


def test_hello_says_what_is_trained(link: GrpcLink, device: Any, model: ModelConfig) -> None:
    reply = device("one").connect().stub.Hello(device_pb2.HelloRequest(protocol_versions=[1, PROTOCOL_VERSION, 9]))
    assert reply.protocol_version == PROTOCOL_VERSION
    assert ModelConfig.from_json(reply.model_json) == model


def test_every_call_needs_a_session(link: GrpcLink, device: Any) -> None:
    one = device("one").connect()
    expected = (grpc.StatusCode.UNAUTHENTICATED, Reason.UNKNOWN_SESSION)
    assert refusal(lambda: next(one.stub.Tasks(device_pb2.TasksRequest(session="x")))) == expected
    assert refusal(lambda: next(one.stub.Download(device_pb2.DownloadRequest(session="x")))) == expected
    assert refusal(lambda: one.stub.Heartbeat(device_pb2.HeartbeatRequest(session="x"))) == expected
    assert refusal(lambda: one.stub.UploadStatus(device_pb2.UploadStatusRequest(session="x"))) == expected
    one.stub.Leave(device_pb2.LeaveRequest(session="x"))


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
