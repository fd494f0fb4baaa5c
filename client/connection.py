"""The device's side of the wire: calls that survive a coordinator that is away for a while."""

import math
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import grpc

from diastole.client.bounds import CALL_SECONDS, IDLE_TRIES, MESSAGE_PAUSE, check_name
from diastole.client.channel import TRANSIENT, reason_of
from diastole.client.enrolling import Enrolled
from diastole.client.errors import LinkError, MessageError, RefusedError
from diastole.client.heartbeats import Heartbeats
from diastole.client.inbox import Inbox, ReceivedTask
from diastole.client.line import Line
from diastole.client.measured import Measured
from diastole.client.offered import Offered
from diastole.client.pace import Pace
from diastole.client.transfer import Download, parts, result_of, watched
from diastole.client.tries import Tries
from diastole.models.allocator import keep_pages
from diastole.models.networks.config import ModelConfig
from diastole.models.task import Report
from diastole.models.training import never
from diastole.proto.about import start
from diastole.proto.address import Address
from diastole.proto.coding import known
from diastole.proto.errors import DiastoleError
from diastole.proto.payload import Bytes, Payload, PayloadError
from diastole.proto.profile import Profile
from diastole.proto.words import PROTOCOL_VERSION, Reason, plain
from diastole.v1 import common_pb2
from diastole.v1 import device_pb2 as pb

T = TypeVar("T")
UPLOAD_TRIES = 3
FAREWELL_SECONDS = 2.0
KEPT_BYTES = (4 << 20, 8 << 20)
"""Pieces of transfers are smaller than the first, and find pages that earlier ones have used."""
CALL_ENDS_SECONDS = 5.0
"""That an agent which is stopped waits for the end of a call that opens its session, so that it can leave."""


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
        patience: float = math.inf,
        credentials: grpc.ChannelCredentials | None = None,
        key: str = "",
        enrolled: Enrolled | None = None,
        pace: Pace | None = None,
    ) -> None:
        """Prepare a session; nothing is sent before `join`.

        Args:
            address: of the coordinator, `host:port`.
            name: of the device.
            profile: what the device says of itself.
            patience: seconds for which the coordinator may be away.
            credentials: for TLS; None for plain text, or if the device is enrolled.
            key: the secret by which a restarted agent takes its own name over; by default one for this session.
            enrolled: who the device is to a coordinator that has certified it itself; None if none has.
            pace: learns how fast transfers are, which is announced from the next join on.

        """
        Address.parse(address)
        keep_pages(*KEPT_BYTES)
        self._address, self.name = address, name
        self._profile, self._pace = replace(profile, codecs=known()), pace or Pace()
        self._patience, self._key = patience, key or secrets.token_urlsafe(24)
        self._enrolled = enrolled
        if enrolled is not None:
            credentials = enrolled.identity.credentials()
        self._line = Line(address, credentials, enrolled=enrolled is not None)
        self._secure = credentials is not None
        self._session = ""
        self._heartbeats = Heartbeats()
        self._contact = 0.0
        self._joining = threading.Lock()
        self._closed = threading.Event()
        self._over = threading.Event()
        self.inbox = Inbox()
        self._joined = False
        self.offered = Offered()
        self.examples = 0
        self.failed = ""
        """Why the coordinator says that the run has failed; empty if it does not."""

    def join(self) -> ModelConfig | None:
        """Join, start the threads, and return the model that is trained first; None if nothing is trained yet.

        Raises `LinkError` if the coordinator cannot be reached, `RefusedError` if it refuses the device, and
        `DataError` if the device can serve none of its runs.
        """
        joined: Future[None] = Future()

        def join() -> None:
            try:
                joined.set_result(self._persist(lambda: self._join("")))
            except Exception as error:  # noqa: BLE001 (whatever it is, the agent's own thread must learn of it)
                joined.set_exception(error)

        # A signal interrupts this thread alone: by the answer to a call that has gone out, the device can still leave.
        start(join, "diastole-join")
        joined.result()
        for target in (self._beat, self._read_tasks, *([self._rotate] if self._enrolled else [])):
            start(target, f"diastole-{target.__name__}")
        return next(iter(self.offered.models.values()), None)

    def tasks(self, idle: Callable[[], None] = lambda: None) -> Iterator[ReceivedTask]:
        """Yield tasks until the run is over; `idle` is called when the next one does not come soon.

        Raises what `join` raises if the coordinator is lost for good.
        """
        while (received := self.inbox.take(idle)) is not None:
            yield received

    @property
    def memory(self) -> int | None:
        """The bytes that training may take, as this device has announced; None if it is not known."""
        return self._profile.memory

    @property
    def over(self) -> bool:
        """True once the coordinator has said that the run is over."""
        return self._over.is_set()

    def cancelled(self, task_id: str) -> bool:
        """Return whether the coordinator has said that it does not need the task any more."""
        return self.inbox.cancelled(task_id)

    def download(
        self, ref: common_pb2.ObjectRef, stopped: Callable[[], bool] = never, part: Path | None = None
    ) -> Bytes | None:
        """Return an object, resuming where a broken transfer stopped; None if its round is over, or once `stopped`.

        With a file `part`, the download goes on where that file ends, and leaves the whole object there.
        Raises `PayloadError` if the content does not have the digest, twice in a row, and `MessageError` if there is
        more of it than announced, or if it does not arrive.
        """
        arriving = Download(ref, part)
        # A part of an earlier start may be damaged; that is not the coordinator's fault.
        for _ in range(2 + arriving.resumed):

            def open_at(offset: int) -> Any:
                return self._line.moving.download(
                    pb.DownloadRequest(session=self._session, sha256=ref.sha256, offset=offset)
                )

            def fetch() -> bool:
                began, before = time.monotonic(), arriving.size
                try:
                    there = arriving.take(open_at, stopped)
                except grpc.RpcError:
                    if stopped():
                        return False
                    raise
                self._pace.moved("down", arriving.size - before, time.monotonic() - began)
                return there

            try:
                there = self._persist(fetch)
            except RefusedError as error:
                if error.reason == Reason.UNKNOWN_OBJECT:
                    return None
                raise
            if stopped():
                return None
            if there and arriving.whole:
                return arriving.data
            arriving.drop()
        raise PayloadError(f"object {ref.sha256[:12]}... arrived with another content, twice")

    def settled(self, task_id: str) -> bool:
        """Return whether the coordinator needs nothing more of a task. Raises what `join` raises."""
        return bool(self._persist(lambda: self._status(task_id, "")).complete)

    def upload(
        self, task_id: str, payload: Payload, report: Report, stopped: Callable[[], bool] = never
    ) -> pb.UploadReply.Outcome:
        """Deliver an update, resuming where a broken transfer stopped, and return how it was answered.

        Once `stopped`, the answer is that it is not needed. Raises `MessageError` if it does not go out.
        """
        stood = 0

        def send() -> Any:
            nonlocal stood
            status = self._status(task_id, payload.sha256)
            if status.complete:
                return status.outcome
            began, offset = time.monotonic(), min(status.offset, len(payload.data))
            with watched(stopped) as watch, self._line.upward(len(payload.data) - offset) as moving:
                header = self._header(task_id, payload, report, offset)
                watch.call = moving.upload.future(parts(header, payload, watch))
                try:
                    reply = result_of(watch.call)
                    self._pace.moved("up", len(payload.data) - offset, time.monotonic() - began)
                    return reply.outcome
                except grpc.RpcError:
                    stood += watch.idle
                    if stopped():
                        return pb.UploadReply.OUTCOME_NOT_NEEDED
                    if stood >= IDLE_TRIES:
                        raise MessageError(f"the update of {task_id} is not taken: {stood} tries stood still") from None
                    raise

        for last in (*[False] * (UPLOAD_TRIES - 1), True):
            try:
                answer: pb.UploadReply.Outcome = self._persist(send)
                return answer
            except RefusedError as error:
                # The end of a broken transfer may have come late, or damaged.
                if last or error.reason not in (Reason.UPLOAD_OFFSET, Reason.UPLOAD_DIGEST):
                    raise
        raise AssertionError("the last try returns or raises")

    def announce(self, memory: int | None, examples: int, class_counts: tuple[int, ...] = ()) -> None:
        """Say at the next join how many bytes training may take, if that is known, and on what examples."""
        self._profile = replace(self._profile, memory=memory, examples=examples, class_counts=class_counts)

    def tell(self, measured: Measured) -> bool:
        """Say at the next join how fast the device trains; return whether it is news."""
        old, speeds = self._profile, measured.speeds
        self._profile = replace(old, macs_per_second=measured.macs_per_second, speeds=speeds)
        return old.speeds != speeds

    def rejoin(self) -> None:
        """Join anew, with what is announced by now. Raises what `join` raises."""
        session = self._session
        self._persist(lambda: self._join(session))

    def decline(self, task_id: str, why: pb.DeclineRequest.Why, message: str) -> None:
        """Say that this device will not deliver a task, and why; it stays for the next one."""
        request = pb.DeclineRequest(session=self._session, task_id=task_id, why=why, message=message)
        try:
            self._line.stub.Decline(request, timeout=CALL_SECONDS)
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.UNIMPLEMENTED:
                # The lease of a task that nobody can decline ends with its round.
                return
            # An earlier version: there, a farewell gives the task up.
            with suppress(grpc.RpcError, RefusedError):
                farewell = pb.LeaveRequest(session=request.session, message=message)
                self._line.stub.Leave(farewell, timeout=FAREWELL_SECONDS)
                self._join(request.session)

    def close(self, message: str) -> None:
        """Leave, if the coordinator can still be told, and release the channel."""
        self._closed.set()
        self._heartbeats.end()
        if self._joining.acquire(timeout=CALL_ENDS_SECONDS):
            self._joining.release()
        if self._session:
            # If the coordinator is gone, the lease ends the session just the same.
            with suppress(grpc.RpcError):
                self._line.stub.Leave(pb.LeaveRequest(session=self._session, message=message), timeout=FAREWELL_SECONDS)
        self._line.close()

    def _status(self, task_id: str, sha256: str) -> Any:
        request = pb.UploadStatusRequest(session=self._session, task_id=task_id, sha256=sha256)
        return self._line.stub.UploadStatus(request, timeout=CALL_SECONDS)

    def _header(self, task_id: str, payload: Payload, report: Report, offset: int) -> pb.UploadHeader:
        found = report.scores
        return pb.UploadHeader(
            session=self._session,
            task_id=task_id,
            update=payload.ref(),
            offset=offset,
            examples=report.examples,
            loss=report.loss,
            train_seconds=report.seconds,
            scores=pb.DeviceScores(examples=found.examples, before=found.before, after=found.after) if found else None,
        )

    @property
    def announced(self) -> common_pb2.DeviceProfile:
        """What the device says of itself when it joins."""
        down, up = self._pace.down or self._profile.down, self._pace.up or self._profile.up
        return replace(self._profile, down=down, up=up).message(version("diastole"))

    def _join(self, stale: str) -> None:
        """Open a session, unless another thread has replaced the `stale` one in the meantime."""
        with self._joining:
            if self._closed.is_set():
                raise RefusedError(f"{self._address}: this agent has been closed or replaced", "REPLACED")
            if self._joined and self._session != stale:
                return
            hello = self._line.stub.Hello(pb.HelloRequest(protocol_versions=[PROTOCOL_VERSION]), timeout=CALL_SECONDS)
            request = self.offered.read(hello)
            if measured := self.offered.speeds(self.offered.models.values()):
                self.tell(measured)
            announced = self.announced
            request.MergeFrom(pb.JoinRequest(name=self.name, profile=announced, key=self._key))
            reply = self._line.stub.Join(request, timeout=CALL_SECONDS)
            self._session = check_name("session", reply.session)
            self._heartbeats.go_by(reply.lease_seconds)
            self._joined, self.examples = True, announced.examples

    def _persist(self, call: Callable[[], T]) -> T:
        """Return `call()`; repeat it while the coordinator is away, and join again if the session is unknown."""
        tries = Tries(self._address, self.name, self._patience, self._closed.wait, secure=self._secure)
        while True:
            session = self._session
            try:
                try:
                    result, self._contact = call(), time.monotonic()
                    return tries.done(result)
                except grpc.RpcError as error:
                    if reason_of(error) != Reason.UNKNOWN_SESSION:
                        raise
                    self._join(session)
            except grpc.RpcError as error:
                if reason_of(error) == Reason.FINISHED and self._joined:
                    self._over.set()
                elif self.over and error.code() in TRANSIENT:
                    raise RefusedError(f"{self._address}: the run is over", Reason.FINISHED) from None
                elif self._closed.is_set():
                    raise LinkError(f"{self._address}: this agent has been closed") from None
                tries.again(error, self._contact)

    def _beat(self) -> None:
        def beat(lease: float) -> float:
            request = pb.HeartbeatRequest(session=self._session, lease_seconds=lease)
            try:
                reply = self._line.stub.Heartbeat(request, timeout=min(lease, CALL_SECONDS))
            except grpc.RpcError as error:
                if reason_of(error) == Reason.UNKNOWN_SESSION:
                    # If that fails, the task stream is broken too, and its thread is the one that gives up.
                    with suppress(grpc.RpcError, DiastoleError):
                        self._join(request.session)
                return 0.0
            self._contact = time.monotonic()
            return float(reply.lease_seconds)

        self._heartbeats.run(beat)

    def _rotate(self) -> None:
        """Renew the certificate in time, and go on with the new one."""
        while self._enrolled and not self._closed.wait(self._enrolled.pause()):
            if self._enrolled.renew(self._line.stub):
                self._line.move(self._enrolled.identity.credentials(), self._session)

    def _read_tasks(self) -> None:
        """Put every message of the task stream into the inbox; open it again whenever it breaks."""

        def read() -> bool:
            session = self._session
            for message in self._line.tasks(session):
                self._contact = time.monotonic()
                if message.HasField("finish"):
                    self.failed = plain(message.finish.message or "it says no more") if message.finish.failed else ""
                    self._over.set()
                if self.over:
                    self.inbox.end()
                    return True
                if message.HasField("changed"):
                    # The stream of the new session takes the place of this one.
                    self.rejoin()
                elif message.HasField("cancel"):
                    self.inbox.cancel(message.cancel.task_id)
                elif message.HasField("train"):
                    seconds = message.train.deadline_seconds or math.inf
                    self.inbox.put(ReceivedTask(message.train, time.monotonic() + seconds))
                self._closed.wait(MESSAGE_PAUSE)
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
                self.inbox.end(error)
                return
