"""The gRPC service that devices call; proto/diastole/v1/device.proto is its contract."""

import asyncio
import math
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import replace
from typing import NoReturn

import grpc

from diastole.models.networks.config import ModelConfig
from diastole.models.task import Report, Scores, Task
from diastole.proto.coding import PLAIN, Coding
from diastole.proto.profile import Profile
from diastole.proto.words import PROTOCOL_VERSION, Reason, plain
from diastole.server.errors import TierError
from diastole.server.events import DeviceJoined, DeviceLeft
from diastole.server.link import Declined, Failure
from diastole.server.tiers import Tiers
from diastole.server.wire.bounds import ALL_FAULTS, FAULTS, TransferBounds
from diastole.server.wire.exchange import Answer, Exchange, OwedTask, UploadError
from diastole.server.wire.identity import Gate, StrangerError
from diastole.server.wire.orders import message
from diastole.server.wire.refusal import LONGEST_MESSAGE, Context, refuse
from diastole.server.wire.renewal import renewal
from diastole.server.wire.sessions import CrowdedError, Session, Sessions
from diastole.server.wire.transfers import StalledError, Transfers
from diastole.v1 import device_pb2 as pb
from diastole.v1 import device_pb2_grpc

LONGEST_LABEL = 64
STATUS_SECONDS = 1.0
MOST_EXAMPLES = 1 << 40
NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")

DECLINED = {pb.DeclineRequest.WHY_MEMORY: Declined.MEMORY, pb.DeclineRequest.WHY_PAUSED: Declined.PAUSED}
ANSWERS = {
    Answer.ACCEPTED: pb.UploadReply.OUTCOME_ACCEPTED,
    Answer.NOT_NEEDED: pb.UploadReply.OUTCOME_NOT_NEEDED,
    Answer.UNKNOWN_TASK: pb.UploadReply.OUTCOME_UNKNOWN_TASK,
}


class DeviceService(device_pb2_grpc.DeviceServiceServicer):
    """Answers devices from `sessions` and `exchange`, and tells the round loop what it must know."""

    def __init__(
        self,
        run_id: str,
        model: ModelConfig,
        model_schema: str,
        sessions: Sessions,
        exchange: Exchange,
        tiers: Tiers | None,
        coding: Coding,
        fail: Callable[[Failure], None],
        tell: Callable[[DeviceJoined | DeviceLeft], None],
        work: Executor,
        metric: str = "",
        gate: Gate = Gate(),  # noqa: B008 (has no state)
        bounds: TransferBounds | None = None,
    ) -> None:
        """Serve a run.

        Args:
            run_id: of the run.
            model: the global model.
            model_schema: hash of its tensors' names, shapes and dtypes.
            sessions: of the devices.
            exchange: tasks owed, objects and uploads.
            tiers: which tier a device belongs to; None takes every device at its word.
            coding: how payloads are encoded, for devices that know how.
            fail: told of whatever went wrong with a task.
            tell: told of every device that joins or leaves.
            work: does what touches the disk, or hashes.
            metric: what the run is judged by first; devices may score themselves by it.
            gate: holds callers' certificates against their names.
            bounds: of transfers.

        """
        self._run_id = run_id
        self._model_json = model.to_json()
        self._model_schema = model_schema
        self._sessions = sessions
        self._exchange = exchange
        self._tiers, self._coding, self._metric = tiers, coding, metric
        self._fail, self._tell = fail, tell
        self._gate = gate
        self._deadline: float | None = None
        self._transfers = Transfers(sessions, exchange, work, bounds or TransferBounds())
        self._faults: Counter[str] = Counter()
        self._unlisted = 0
        self._finished, self._failed = "", False
        self._streams: dict[str, asyncio.Queue[pb.Task | None]] = {}

    def push(self, orders: list[OwedTask], deadline: float | None) -> None:
        """Send tasks down their devices' streams. `deadline` is a time of this event loop."""
        self._deadline = deadline
        self._faults.clear()
        if self._unlisted:
            more, self._unlisted = self._unlisted, 0
            self._fail(
                Failure(
                    "unknown", f"{more} more faults of devices since the last round began", faulty=True, final=False
                )
            )
        for order in orders:
            stream = self._streams.get(order.task.device)
            if stream is not None:
                stream.put_nowait(self._message(order))

    def cancel(self, tasks: list[Task]) -> None:
        """Tell devices that tasks are not needed any more."""
        for task in tasks:
            stream = self._streams.get(task.device)
            if stream is not None:
                stream.put_nowait(pb.Task(cancel=pb.Cancel(task_id=task.task_id)))

    def finish(self, text: str, failed: bool = False) -> None:
        """Tell every device that the run is over, or has failed, and refuse those that still come."""
        self._finished, self._failed = text, failed
        finish = pb.Finish(message=plain(text, LONGEST_MESSAGE), failed=failed)
        for stream in self._streams.values():
            stream.put_nowait(pb.Task(finish=finish))
            stream.put_nowait(None)

    def dismiss(self, name: str, reason: str) -> None:
        """End a device's session and stream; what it owes is given up."""
        session = self._sessions.named(name)
        if session is None or not session.alive:
            return
        self._sessions.leave(session)
        self._exchange.give_up(name, reason)
        self._tell(DeviceLeft(name, reason))
        if name in self._streams:
            self._streams[name].put_nowait(None)

    async def Hello(self, request: pb.HelloRequest, context: Context) -> pb.HelloReply:  # noqa: N802
        """Say what is trained here."""
        if PROTOCOL_VERSION not in request.protocol_versions:
            await refuse(
                context,
                grpc.StatusCode.FAILED_PRECONDITION,
                Reason.PROTOCOL_VERSION,
                f"protocol versions {list(request.protocol_versions)}; this coordinator speaks {PROTOCOL_VERSION}",
            )
        return pb.HelloReply(protocol_version=PROTOCOL_VERSION, run_id=self._run_id, model_json=self._model_json)

    async def Join(self, request: pb.JoinRequest, context: Context) -> pb.JoinReply:  # noqa: N802
        """Open a session."""
        if self._finished:
            await refuse(context, grpc.StatusCode.UNAVAILABLE, Reason.FINISHED, self._finished)
        if not NAME.fullmatch(request.name):
            await refuse(
                context,
                grpc.StatusCode.INVALID_ARGUMENT,
                Reason.DEVICE_NAME,
                f"device name {request.name!r}; use 1 to 64 characters of A-Z a-z 0-9 . _ -",
            )
        proved = await self._proved(request.name, context)
        if request.protocol_version != PROTOCOL_VERSION:
            await refuse(
                context,
                grpc.StatusCode.FAILED_PRECONDITION,
                Reason.PROTOCOL_VERSION,
                f"protocol version {request.protocol_version}; this coordinator speaks {PROTOCOL_VERSION}",
            )
        if request.model_schema != self._model_schema:
            await refuse(
                context,
                grpc.StatusCode.FAILED_PRECONDITION,
                Reason.MODEL_SCHEMA,
                f"the agent builds a model with schema {request.model_schema[:12] or '(none)'}..., the coordinator "
                f"one with {self._model_schema[:12]}...; install the same version of diastole on both",
            )
        labels = (request.profile.tier, request.profile.agent_version)
        if max(map(len, labels)) > LONGEST_LABEL or not all(map(str.isprintable, labels)):
            await refuse(
                context,
                grpc.StatusCode.INVALID_ARGUMENT,
                Reason.DEVICE_PROFILE,
                f"tier and version must be at most {LONGEST_LABEL} printable characters",
            )
        profile = Profile.from_message(request.profile)
        try:
            tier = profile.tier if self._tiers is None else self._tiers.place(request.name, profile.tier)
        except TierError as error:
            await refuse(context, grpc.StatusCode.PERMISSION_DENIED, Reason.DEVICE_TIER, str(error))
        profile = replace(profile, tier=tier)
        if not proved and not self._sessions.may_join(request.name, request.key):
            await refuse(
                context,
                grpc.StatusCode.ALREADY_EXISTS,
                Reason.DEVICE_ONLINE,
                f"another agent is online as {request.name!r}; give this one a name of its own, or wait for it to go",
            )
        try:
            session = self._sessions.join(request.name, profile, request.profile.agent_version, request.key)
        except CrowdedError as error:
            await refuse(context, grpc.StatusCode.UNAVAILABLE, Reason.CROWDED, str(error))
        earlier = self._streams.pop(request.name, None)
        if earlier is not None:
            earlier.put_nowait(None)
        lacks = ", ".join(sorted(self._coding.needs.difference(profile.codecs, PLAIN.needs)))
        self._tell(DeviceJoined(request.name, profile.tier, profile.examples, lacks))
        return pb.JoinReply(session=session.token, lease_seconds=self._sessions.lease)

    async def Tasks(self, request: pb.TasksRequest, context: Context) -> AsyncIterator[pb.Task]:  # noqa: N802
        """Hand out tasks until the device goes away or the run ends."""
        session = await self._session(request.session, context)
        stream: asyncio.Queue[pb.Task | None] = asyncio.Queue()
        earlier = self._streams.get(session.name)
        if earlier is not None:
            earlier.put_nowait(None)
        self._streams[session.name] = stream
        for order in self._exchange.owed(session.name):
            stream.put_nowait(self._message(order))
        if self._finished:
            self.finish(self._finished, self._failed)
        self._sessions.connect(session, stream)
        try:
            while (told := await stream.get()) is not None:
                yield told
            # One that was dismissed learns why.
            await self._proved(session.name, context)
        finally:
            if self._streams.get(session.name) is stream:
                del self._streams[session.name]
            if session.stream is stream:
                self._sessions.connect(session, None)

    async def Download(self, request: pb.DownloadRequest, context: Context) -> None:  # noqa: N802
        """Send an object from an offset on."""
        session = await self._session(request.session, context)
        payload = self._exchange.find(session.name, request.sha256)
        if payload is None and self._exchange.coming:
            await self._wait(context)
        if payload is None:
            await refuse(
                context,
                grpc.StatusCode.NOT_FOUND,
                Reason.UNKNOWN_OBJECT,
                f"no object {request.sha256[:12]!r}...; its round is over",
            )
        if request.offset > len(payload.data):
            await refuse(
                context,
                grpc.StatusCode.OUT_OF_RANGE,
                Reason.DOWNLOAD_OFFSET,
                f"offset {request.offset}; the object has {len(payload.data)} bytes",
            )
        try:
            await self._transfers.send(session, payload, request.offset, context)
        except CrowdedError as error:
            await refuse(context, grpc.StatusCode.UNAVAILABLE, Reason.CROWDED, str(error))
        except StalledError as error:
            # The status waits behind what the device does not take; this call does not.
            with suppress(TimeoutError):
                async with asyncio.timeout(STATUS_SECONDS):
                    await refuse(context, grpc.StatusCode.UNAVAILABLE, Reason.STALLED, str(error))

    async def UploadStatus(self, request: pb.UploadStatusRequest, context: Context) -> pb.UploadStatusReply:  # noqa: N802
        """Say how much of an upload has arrived."""
        session = await self._session(request.session, context)
        offset, outcome = self._exchange.status(session.name, request.task_id, request.sha256)
        if outcome is None:
            return pb.UploadStatusReply(offset=offset)
        if outcome is Answer.WAIT:
            await self._wait(context)
        return pb.UploadStatusReply(complete=True, outcome=ANSWERS[outcome])

    async def Upload(  # noqa: N802
        self, requests: AsyncIterator[pb.UploadRequest | memoryview], context: Context
    ) -> pb.UploadReply:
        """Take in an update."""
        try:
            first = await self._transfers.soon(anext(aiter(requests), None))
        except StalledError as error:
            await refuse(context, grpc.StatusCode.UNAVAILABLE, Reason.STALLED, str(error))
        if not isinstance(first, pb.UploadRequest) or not first.HasField("header"):
            await refuse(
                context, grpc.StatusCode.INVALID_ARGUMENT, Reason.UPLOAD_HEADER, "an upload begins with its header"
            )
        header = first.header
        session = await self._known(header.session, context)
        if session is None:
            self._fault("unknown", f"upload for task {header.task_id[:LONGEST_LABEL]!r} without a session")
            session = await self._session(header.session, context)
        report = Report(header.examples, header.loss, header.train_seconds, self._scores(header))
        try:
            upload = self._exchange.begin(
                session.name, header.task_id, header.update.sha256, header.update.size, header.offset, report, object()
            )
            if upload is Answer.WAIT:
                await self._wait(context)
            if isinstance(upload, Answer):
                if upload is Answer.UNKNOWN_TASK:
                    self._fault(session.name, f"update for unknown task {header.task_id[:LONGEST_LABEL]!r}")
                return pb.UploadReply(outcome=ANSWERS[upload])
            await self._transfers.take(session, upload, requests)
        except UploadError as error:
            # A transfer that broke off is nobody's fault; it is resumed.
            if error.reason != Reason.UPLOAD_OFFSET:
                self._fault(session.name, f"upload for {header.task_id[:LONGEST_LABEL]!r}: {error}")
            code = grpc.StatusCode.INVALID_ARGUMENT
            if error.reason == Reason.UPLOAD_SIZE:
                code = grpc.StatusCode.RESOURCE_EXHAUSTED
            await refuse(context, code, error.reason, str(error))
        except CrowdedError as error:
            await refuse(context, grpc.StatusCode.UNAVAILABLE, Reason.CROWDED, str(error))
        except StalledError as error:
            await refuse(context, grpc.StatusCode.UNAVAILABLE, Reason.STALLED, str(error))
        except OSError as error:
            text = f"the update cannot be stored now: {error.strerror}"
            await refuse(context, grpc.StatusCode.UNAVAILABLE, Reason.STORAGE, text)
        return pb.UploadReply(outcome=pb.UploadReply.OUTCOME_ACCEPTED)

    async def Decline(self, request: pb.DeclineRequest, context: Context) -> pb.DeclineReply:  # noqa: N802
        """Give up a task that the device will not do."""
        session = await self._session(request.session, context)
        if self._exchange.coming:
            await self._wait(context)
        why = DECLINED.get(request.why, Declined.TASK)
        if why is Declined.PAUSED:
            self._sessions.pause(session)
        self._exchange.decline(session.name, request.task_id, why, request.message or why)
        return pb.DeclineReply()

    async def Heartbeat(self, request: pb.HeartbeatRequest, context: Context) -> pb.HeartbeatReply:  # noqa: N802
        """Renew the lease."""
        await self._session(request.session, context)
        return pb.HeartbeatReply(lease_seconds=self._sessions.lease)

    async def Renew(self, request: pb.RenewRequest, context: Context) -> pb.RenewReply:  # noqa: N802
        """Certify a device anew."""
        proved = await self._proved(request.name, context)
        return await renewal(self._gate if proved else Gate(), request, context)

    async def Leave(self, request: pb.LeaveRequest, context: Context) -> pb.LeaveReply:  # noqa: N802
        """End the session and give up what the device owes."""
        session = await self._known(request.session, context)
        if session is not None:
            self._sessions.leave(session)
            reason = request.message or "left"
            self._exchange.give_up(session.name, reason)
            self._tell(DeviceLeft(session.name, Failure(session.name, reason, faulty=False).reason))
        return pb.LeaveReply()

    def _scores(self, header: pb.UploadHeader) -> Scores | None:
        """Return a device's own scores; None if there are none, or if they make no sense."""
        found = header.scores
        finite = math.isfinite(found.before) and math.isfinite(found.after)
        if not header.HasField("scores") or not self._metric or not finite or not 0 < found.examples <= MOST_EXAMPLES:
            return None
        return Scores(self._metric, found.examples, found.before, found.after)

    def _fault(self, device: str, reason: str) -> None:
        # A device may send as much nonsense as it likes; this must not fill the journal or the queue.
        if self._faults[device] < FAULTS and self._faults.total() < ALL_FAULTS:
            self._faults[device] += 1
            self._fail(Failure(device, reason, faulty=True, final=False))
        else:
            self._unlisted += 1

    async def _proved(self, name: str, context: Context) -> bool:
        """Return whether the caller has shown a certificate of the device `name`; refuse it if it shows another."""
        try:
            return self._gate.check(name, context.auth_context())
        except StrangerError as error:
            await refuse(context, grpc.StatusCode.PERMISSION_DENIED, error.reason, str(error))

    async def _known(self, token: str, context: Context) -> Session | None:
        """Return a token's session, its lease renewed; None if there is none. A token alone does not make a device."""
        session = self._sessions.find(token)
        if session is not None:
            await self._proved(session.name, context)
        return session and self._sessions.touch(token)

    async def _session(self, token: str, context: Context) -> Session:
        session = await self._known(token, context)
        if session is None:
            await refuse(
                context,
                grpc.StatusCode.UNAUTHENTICATED,
                Reason.UNKNOWN_SESSION,
                "this session is unknown or has lapsed; join again",
            )
        return session

    async def _wait(self, context: Context) -> NoReturn:
        text = "the coordinator has just been started, and opens the round again; ask again soon"
        await refuse(context, grpc.StatusCode.UNAVAILABLE, Reason.STARTING, text)

    def _message(self, order: OwedTask) -> pb.Task:
        remaining = None if self._deadline is None else self._deadline - asyncio.get_running_loop().time()
        return message(order, remaining, self._metric)
