"""A coordinator's link on a real socket, and devices that say exactly what a test wants."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest

from diastole.models.methods.widths.width import spec_of
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.family import initial_state
from diastole.models.state import State, schema_hash
from diastole.models.task import Task
from diastole.models.training import TrainConfig
from diastole.proto.payload import decode, encode
from diastole.proto.profile import Profile
from diastole.proto.words import PROTOCOL_VERSION
from diastole.server.wire.link import GrpcLink
from diastole.v1 import common_pb2, device_pb2, device_pb2_grpc

MODEL = ModelConfig(name="cnn", input_shape=(1, 8, 8), classes=10, widths=(4, 8))
SCHEMA = schema_hash(initial_state(MODEL, 0))


@dataclass
class RawDevice:
    """A device on raw stubs: no retries, no threads, no manners."""

    address: str
    name: str
    examples: int = 10
    tier: str = "test"
    key: str | None = None
    session: str = ""
    channel: Any = None
    stub: Any = None
    stream: Any = None
    sent: list[device_pb2.Task] = field(default_factory=list)

    def connect(self) -> "RawDevice":
        self.channel = grpc.insecure_channel(self.address)
        self.stub = device_pb2_grpc.DeviceServiceStub(self.channel)
        return self

    def join(self, schema: str = SCHEMA, version: int = PROTOCOL_VERSION) -> "RawDevice":
        self.connect()
        reply = self.stub.Join(
            device_pb2.JoinRequest(
                protocol_version=version,
                name=self.name,
                profile=Profile(self.tier, self.examples).message("0"),
                model_schema=schema,
                key=f"key of {self.name}" if self.key is None else self.key,
            )
        )
        self.session = reply.session
        self.stream = self.stub.Tasks(device_pb2.TasksRequest(session=self.session))
        return self

    def close(self) -> None:
        """Leave, so that nobody waits for it, and let go of the channel."""
        if self.session:
            with suppress(grpc.RpcError, ValueError):
                self.stub.Leave(device_pb2.LeaveRequest(session=self.session), timeout=1.0)
        if self.channel:
            self.channel.close()

    def task(self) -> device_pb2.TrainTask:
        message = next(self.stream)
        assert message.HasField("train"), message
        return message.train

    def download(self, task: device_pb2.TrainTask, offset: int = 0) -> bytes:
        request = device_pb2.DownloadRequest(session=self.session, sha256=task.model.sha256, offset=offset)
        return b"".join(chunk.data for chunk in self.stub.Download(request))

    def state(self, task: device_pb2.TrainTask) -> State:
        return decode(self.download(task))

    def upload(self, task_id: str, data: bytes, **header: Any) -> int:
        parts = [data[k : k + (1 << 20)] for k in range(header.get("offset", 0), len(data), 1 << 20)]
        return int(self.stub.Upload(self.requests(task_id, data, parts, **header)).outcome)

    def requests(
        self, task_id: str, data: bytes, parts: list[bytes], **header: Any
    ) -> Iterator[device_pb2.UploadRequest]:
        fields = {
            "session": self.session,
            "task_id": task_id,
            "update": common_pb2.ObjectRef(sha256=hashlib.sha256(data).hexdigest(), size=len(data)),
            "examples": self.examples,
            "loss": 1.0,
            "train_seconds": 0.1,
        }
        yield device_pb2.UploadRequest(header=device_pb2.UploadHeader(**(fields | header)))
        for part in parts:
            yield device_pb2.UploadRequest(data=part)

    def deliver(self) -> State:
        """Take the next task and send back its state, a little changed."""
        task = self.task()
        state = {name: tensor + 0.01 for name, tensor in self.state(task).items()}
        assert self.upload(task.task_id, encode(state)) == device_pb2.UploadReply.OUTCOME_ACCEPTED
        return state


@pytest.fixture
def link() -> Iterator[GrpcLink]:
    link = GrpcLink("127.0.0.1:0", "run", MODEL, SCHEMA, lease=60.0)
    yield link
    link.close()


@pytest.fixture
def silent_link() -> Iterator[GrpcLink]:
    """A link whose clock stands: a device is lost soon after the test has put its last call back."""
    link = GrpcLink("127.0.0.1:0", "run", MODEL, SCHEMA, lease=1.5)
    link.sessions._clock = lambda: 0.0
    yield link
    link.close()


@pytest.fixture
def device(link: GrpcLink) -> Iterator[Callable[..., RawDevice]]:
    """Make devices by name; their channels are closed at the end."""
    with ExitStack() as stack:

        def make(name: str, **fields: Any) -> RawDevice:
            made = RawDevice(**({"address": f"127.0.0.1:{link.port}", "name": name} | fields))
            stack.callback(made.close)
            return made

        yield make


@pytest.fixture
def task() -> Callable[..., Task]:
    """Make the task of a device."""

    def make(device: str, number: int = 1, width: float = 1.0) -> Task:
        return Task(f"r{number}-{device}", number, device, spec_of(width), TrainConfig(), 1)

    return make


@pytest.fixture
def model() -> ModelConfig:
    return MODEL
