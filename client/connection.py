"""The device's side of the wire: calls that survive a coordinator that is away for a while."""

import hashlib
import math
import queue
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from random import Random
from typing import Any, TypeVar

import grpc

from diastole.client.errors import LinkError, RefusedError
from diastole.models.hollow import hollow
from diastole.models.methods.registry import build
from diastole.models.networks.config import ModelConfig
from diastole.models.state import schema_hash
from diastole.models.task import Report
from diastole.proto.address import cause, channel_options
from diastole.proto.coding import known
from diastole.proto.errors import DiastoleError
from diastole.proto.payload import Payload, PayloadError
from diastole.proto.profile import Profile
from diastole.proto.words import PROTOCOL_VERSION, REASON_KEY, Reason
from diastole.v1 import common_pb2, device_pb2_grpc
from diastole.v1 import device_pb2 as pb

T = TypeVar("T")
FIRST_PAUSE = 0.1
LONGEST_PAUSE = 5.0
OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.keepalive_time_ms", 20_000),
)
TRANSIENT = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
# Certificates and keys that do not match, or no TLS at the other end: waiting does not heal that.
HOPELESS = re.compile(r"SSL_ERROR_SSL|[Vv]erification [Cc]heck failed|Failed to create security handshaker")
UPLOAD_TRIES = 3


@dataclass(frozen=True, slots=True)
class ReceivedTask:
    """A task as it came; `due` is the time of this machine's monotonic clock after which nobody needs the update."""

    task: pb.TrainTask
    due: float


class Connection:
    """A session with one coordinator.

    While the coordinator is away, a call is repeated for `patience` seconds, with growing pauses. If the coordinator
    does not know the session, the device joins again before it repeats the call. A thread renews the lease, and another
    reads the task stream.
    """

    def __init__(
        self,
        address: str,
        name: str,
        profile: Profile,
        *,
        patience: float = 30.0,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        """Prepare a session; nothing is sent before `join`. `address` is `host:port`, `patience` in seconds."""
        self._address = address
        self.name = name
        self._profile = replace(profile, codecs=known())
        self._patience = patience
        options = (*OPTIONS, *channel_options(address))
        if credentials is None:
            self._channel = grpc.insecure_channel(address, options=options)
        else:
            self._channel = grpc.secure_channel(address, credentials, options=options)
        self._plain = credentials is None
        self._stub: Any = device_pb2_grpc.DeviceServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._session = ""
        self._lease = 0.0
        self._contact = 0.0
        self._joining = threading.Lock()
        self._closed = threading.Event()
        self._over = threading.Event()
        self._messages: queue.SimpleQueue[ReceivedTask | Exception | None] = queue.SimpleQueue()
        self._cancelled: set[str] = set()
        self._seen: set[str] = set()
        self.run_id = ""
        self.model: ModelConfig | None = None

    def join(self) -> ModelConfig:
        """Join, start the threads, and return the model that is trained.

        Raises `LinkError` if the coordinator cannot be reached, `RefusedError` if it refuses the device.
        """
        model = self._persist(lambda: self._join(""))
        for target in (self._renew, self._read_tasks):
            threading.Thread(target=target, daemon=True, name=f"diastole-{target.__name__}").start()
        return model

    def tasks(self) -> Iterator[ReceivedTask]:
        """Yield tasks until the run is over. Raises what `join` raises if the coordinator is lost for good."""
        while True:
            message = self._messages.get()
            if self.over:
                return
            if isinstance(message, Exception):
                raise message
            if message is not None and message.task.task_id not in self._cancelled:
                yield message

    @property
    def over(self) -> bool:
        """True once the coordinator has said that the run is over."""
        return self._over.is_set()

    def cancelled(self, task_id: str) -> bool:
        """Return whether the coordinator has said that it does not need the task any more."""
        return task_id in self._cancelled

    def download(self, ref: common_pb2.ObjectRef) -> bytes | None:
        """Return an object, resuming where a broken transfer stopped; None if its round is over.

        Raises `PayloadError` if the content does not have the digest, twice in a row.
        """
        for _ in range(2):
            data = bytearray()

            def fetch(data: bytearray = data) -> bytes | None:
                request = pb.DownloadRequest(session=self._session, sha256=ref.sha256, offset=len(data))
                for chunk in self._stub.Download(request):
                    data.extend(chunk.data)
                return bytes(data)

            try:
                content = self._persist(fetch)
            except RefusedError as error:
                if error.reason == Reason.UNKNOWN_OBJECT:
                    return None
                raise
            if content is None or hashlib.sha256(content).hexdigest() == ref.sha256:
                return content
        raise PayloadError(f"object {ref.sha256[:12]}... arrived with another content, twice")

    def upload(self, task_id: str, payload: Payload, report: Report) -> pb.UploadReply.Outcome:
        """Deliver an update, resuming where a broken transfer stopped, and return how it was answered."""

        def send() -> Any:
            status = self._stub.UploadStatus(
                pb.UploadStatusRequest(session=self._session, task_id=task_id, sha256=payload.sha256)
            )
            if status.complete:
                return status.outcome
            return self._stub.Upload(self._parts(task_id, payload, report, status.offset)).outcome

        for last in (*[False] * (UPLOAD_TRIES - 1), True):
            try:
                answer: pb.UploadReply.Outcome = self._persist(send)
                return answer
            except RefusedError as error:
                # The end of a broken transfer may have come late, or damaged.
                if last or error.reason not in (Reason.UPLOAD_OFFSET, Reason.UPLOAD_DIGEST):
                    raise
        raise AssertionError("the last try returns or raises")

    def close(self, message: str) -> None:
        """Leave, if the coordinator can still be told, and release the channel."""
        self._closed.set()
        if self._session:
            # If the coordinator is gone, the lease ends the session just the same.
            with suppress(grpc.RpcError):
                self._stub.Leave(pb.LeaveRequest(session=self._session, message=message), timeout=2.0)
        self._channel.close()

    def _parts(self, task_id: str, payload: Payload, report: Report, offset: int) -> Iterator[pb.UploadRequest]:
        yield pb.UploadRequest(
            header=pb.UploadHeader(
                session=self._session,
                task_id=task_id,
                update=payload.ref(),
                offset=offset,
                examples=report.examples,
                loss=report.loss,
                train_seconds=report.seconds,
            )
        )
        for data in payload.chunks(offset):
            yield pb.UploadRequest(data=data)

    def _join(self, stale: str) -> ModelConfig:
        """Open a session, unless another thread has replaced the `stale` one in the meantime."""
        with self._joining:
            if self._closed.is_set():
                raise RefusedError(f"{self._address}: this agent has been closed or replaced", "REPLACED")
            if self.model is not None and self._session != stale:
                return self.model
            hello = self._stub.Hello(pb.HelloRequest(protocol_versions=[PROTOCOL_VERSION]))
            model = ModelConfig.from_json(hello.model_json)
            with hollow():
                schema = schema_hash(dict(build(model).named_parameters()))
            reply = self._stub.Join(
                pb.JoinRequest(
                    protocol_version=hello.protocol_version,
                    name=self.name,
                    profile=self._profile.message(version("diastole")),
                    model_schema=schema,
                )
            )
            self._session, self._lease = reply.session, reply.lease_seconds
            self.run_id, self.model = hello.run_id, model
            return model

    def _persist(self, call: Callable[[], T]) -> T:
        """Return `call()`; repeat it while the coordinator is away, and join again if the session is unknown."""
        pauses = Random(self.name)  # noqa: S311 (spreads devices out; nothing secret)
        began, pause = time.monotonic(), FIRST_PAUSE
        while True:
            session = self._session
            try:
                try:
                    result = call()
                    self._contact = time.monotonic()
                    return result
                except grpc.RpcError as error:
                    if _reason(error) != Reason.UNKNOWN_SESSION:
                        raise
                    self._join(session)
            except grpc.RpcError as error:
                if _reason(error) == Reason.FINISHED and self.model is not None:
                    self._over.set()
                if error.code() not in TRANSIENT or _reason(error) == Reason.FINISHED:
                    raise RefusedError(f"{self._address}: {error.details()}", _reason(error)) from None
                why = self._cause(error)
                if HOPELESS.search(why):
                    raise LinkError(f"no secure connection to {self._address}: {why}") from None
                if self._contact > began:
                    began, pause = self._contact, FIRST_PAUSE
                if self.over:
                    raise RefusedError(f"{self._address}: the run is over", Reason.FINISHED) from None
                if time.monotonic() - began > self._patience or self._closed.is_set():
                    raise LinkError(f"no coordinator at {self._address} after {self._patience:g} s ({why})") from None
                self._closed.wait(pause * pauses.uniform(0.5, 1.0))
                pause = min(2 * pause, LONGEST_PAUSE)

    def _cause(self, error: grpc.RpcError) -> str:
        why = cause(self._address, error.details() or error.code().name)
        if "Socket closed" not in why:
            return why
        if self._plain:
            return f"{why}; if the coordinator speaks TLS, give its authority"
        return f"{why}; if the coordinator asks for certificates, give this device's and its key"

    def _renew(self) -> None:
        while not self._closed.wait(self._lease / 3):
            session = self._session
            try:
                self._stub.Heartbeat(pb.HeartbeatRequest(session=session), timeout=self._lease)
                self._contact = time.monotonic()
            except grpc.RpcError as error:
                if _reason(error) == Reason.UNKNOWN_SESSION:
                    # If that fails, the task stream is broken too, and its thread is the one that gives up.
                    with suppress(grpc.RpcError, DiastoleError):
                        self._join(session)

    def _read_tasks(self) -> None:
        """Put every message of the task stream into the queue; open it again whenever it breaks."""

        def read() -> bool:
            session = self._session
            for message in self._stub.Tasks(pb.TasksRequest(session=session)):
                self._contact = time.monotonic()
                if message.HasField("cancel"):
                    self._cancelled.add(message.cancel.task_id)
                    continue
                if message.HasField("finish"):
                    self._over.set()
                elif message.train.task_id in self._seen:
                    # Handed out again because the stream had broken; it is queued already.
                    continue
                if self.over:
                    self._messages.put(None)
                    return True
                self._seen.add(message.train.task_id)
                seconds = message.train.deadline_seconds or math.inf
                self._messages.put(ReceivedTask(message.train, time.monotonic() + seconds))
            # A stream ends without a finish only when the name has joined again: this agent, or another one.
            with self._joining:
                if self._session == session:
                    # From here on nothing may join again, or the two agents would go on replacing each other.
                    self._closed.set()
                    raise RefusedError(f"{self._address}: another agent has joined as {self.name!r}", "REPLACED")
            return False

        while not self._closed.is_set():
            try:
                if self._persist(read):
                    return
            except Exception as error:  # noqa: BLE001 (whatever it is, the agent's own thread must learn of it)
                self._messages.put(error)
                return


def _reason(error: grpc.RpcError) -> str:
    """Return the stable reason word beside a status, or an empty string."""
    metadata: Any = error.trailing_metadata() or ()
    return next((str(value) for key, value in metadata if key == REASON_KEY), "")
