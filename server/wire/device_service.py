"""The gRPC service that devices call; proto/diastole/v1/device.proto is its contract."""

import asyncio
import math
import re
import time
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from contextlib import suppress
from typing import NoReturn

import grpc

from diastole.models.task import Report, Scores, Task
from diastole.proto.profile import Profile
from diastole.proto.words import PROTOCOL_VERSION, Reason, plain
from diastole.server.link import Declined
from diastole.server.wire.board import Board, LiveRun
from diastole.server.wire.bounds import TransferBounds
from diastole.server.wire.exchange import Answer, OwedTask, UploadError
from diastole.server.wire.faults import Faults
from diastole.server.wire.identity import Gate, StrangerError
from diastole.server.wire.joining import LONGEST_LABEL, NOTHING, VERSION, check_version, runs_of
from diastole.server.wire.orders import message
from diastole.server.wire.pace import CALLS, JOIN_CALLS
from diastole.server.wire.refusal import LONGEST_MESSAGE, Context, refuse
from diastole.server.wire.renewal import renewal
from diastole.server.wire.sessions import CrowdedError, Session, Sessions
from diastole.server.wire.transfers import StalledError, Transfers
from diastole.v1 import device_pb2 as pb
from diastole.v1 import device_pb2_grpc

OVER = "the run is over"
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
    """Answers devices from `board` and `sessions`, and tells the round loops what they must know."""

    def __init__(self, board: Board, sessions: Sessions, work: Executor, gate: Gate, bounds: TransferBounds) -> None:
        """Serve runs.

        Args:
            board: the runs.
            sessions: of the devices.
            work: does what touches the disk, or hashes.
            gate: holds callers' certificates against their names.
            bounds: of transfers.

        """
        self._board, self._sessions, self._gate = board, sessions, gate
        self.transfers = Transfers(sessions, work, bounds)
        self._faults = Faults()
        self._finished, self._failed = "", False
        self._streams: dict[str, asyncio.Queue[pb.Task | None]] = {}

    def open(self, run: LiveRun, deadline: float | None) -> None:
        """Begin a round of a run. `deadline` is a time of this event loop."""
        run.tell_moves()
        run.deadline = deadline
        run.given.clear()
        self._faults.renew(run.fail)

    def advance(self, device: str) -> Session | None:
        """Send a device its next task, if it is at none; return its session if that was done."""
        found = self._board.next(device)
        if found is None or device not in self._streams:
            return None
        self._streams[device].put_nowait(_message(*found))
        return self._sessions.give(device)

    def cancel(self, tasks: list[Task]) -> None:
        """Tell devices that tasks are not needed any more."""
        for task in tasks:
            stream = self._streams.get(task.device)
            if stream is not None:
                stream.put_nowait(pb.Task(cancel=pb.Cancel(task_id=task.task_id)))

    def change(self) -> None:
        """Tell every device that there are other runs."""
        for stream in self._streams.values():
            stream.put_nowait(pb.Task(changed=pb.Changed()))

    def release(self, text: str) -> None:
        """Tell the devices that can serve no other run that theirs are over."""
        for name, session in self._sessions.ready().items():
            if name in self._streams and self._board.over_for(session):
                self._finish(self._streams[name], text, session)

    def finish(self, text: str, failed: bool = False) -> None:
        """Tell every device that its runs are over, or have failed, and refuse those that still come."""
        self._finished, self._failed = text, failed
        for name, stream in self._streams.items():
            self._finish(stream, text, self._sessions.named(name))

    def dismiss(self, name: str, reason: str) -> None:
        """End a device's session and stream; what it owes is given up."""
        session = self._sessions.named(name)
        if session is None or not session.alive:
            return
        self._sessions.leave(session)
        self._board.leave(session, reason)
        if name in self._streams:
            self._streams[name].put_nowait(None)

    async def Hello(self, request: pb.HelloRequest, context: Context) -> pb.HelloReply:  # noqa: N802
        """Say what is trained here."""
        await check_version(list(request.protocol_versions), context)
        runs = [pb.OfferedRun(run_id=each.run_id, model_json=each.model_json) for each in self._board.offers.values()]
        if not runs and not self._board.keeps:
            await self._over(context)
        first = runs[0] if runs else pb.OfferedRun()
        return pb.HelloReply(
            protocol_version=PROTOCOL_VERSION,
            run_id=first.run_id,
            model_json=first.model_json,
            runs=runs,
            keeps=self._board.keeps,
            version=VERSION,
            clock_seconds=time.time(),
        )

    async def Join(self, request: pb.JoinRequest, context: Context) -> pb.JoinReply:  # noqa: N802
        """Open a session."""
        self.transfers.called()
        if self._finished:
            await self._over(context)
        if not NAME.fullmatch(request.name):
            await refuse(
                context,
                grpc.StatusCode.INVALID_ARGUMENT,
                Reason.DEVICE_NAME,
                f"device name {request.name!r}; use 1 to 64 characters of A-Z a-z 0-9 . _ -",
            )
        proved = await self._proved(request.name, context)
        await check_version([request.protocol_version], context)
        serves = await runs_of(request, self._board, context)
        profile = next(iter(serves.values()), Profile.from_message(request.profile))
        if not proved and not self._sessions.may_join(request.name, request.key):
            await refuse(
                context,
                grpc.StatusCode.ALREADY_EXISTS,
                Reason.DEVICE_ONLINE,
                f"another agent is online as {request.name!r}; give this one a name of its own, or wait for it to go",
            )
        before = self._sessions.named(request.name)
        if before is not None:
            await self._paced(before, context, JOIN_CALLS)
        try:
            version = request.profile.agent_version
            session = self._sessions.join(request.name, profile, version, request.key, serves)
        except CrowdedError as error:
            await refuse(context, grpc.StatusCode.UNAVAILABLE, Reason.CROWDED, str(error))
        earlier = self._streams.pop(request.name, None)
        if earlier is not None:
            earlier.put_nowait(None)
        self._board.join(session)
        return pb.JoinReply(session=session.token, lease_seconds=session.lease)

    async def Tasks(self, request: pb.TasksRequest, context: Context) -> AsyncIterator[pb.Task]:  # noqa: N802
        """Hand out tasks until the device goes away or the run ends."""
        session = await self._session(request.session, context)
        stream: asyncio.Queue[pb.Task | None] = asyncio.Queue()
        earlier = self._streams.get(session.name)
        if earlier is not None:
            earlier.put_nowait(None)
        self._streams[session.name] = stream
        current = self._board.current(session.name)
        if current is not None:
            stream.put_nowait(_message(*current))
        if self._finished or self._board.over_for(session):
            self._finish(stream, self._finished or OVER, session)
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
        found = self._board.find(session.name, request.sha256)
        if found is None and self._board.coming:
            await self._wait(context)
        if found is None:
            await refuse(
                context,
                grpc.StatusCode.NOT_FOUND,
                Reason.UNKNOWN_OBJECT,
                f"no object {request.sha256[:12]!r}...; its round is over",
            )
        run, payload = found
        if request.offset > len(payload.data):
            await refuse(
                context,
                grpc.StatusCode.OUT_OF_RANGE,
                Reason.DOWNLOAD_OFFSET,
                f"offset {request.offset}; the object has {len(payload.data)} bytes",
            )
        try:
            run.move(session.name, "downloading", number := run.exchange.round)
            await self.transfers.send(session, run.run_id, payload, request.offset, context)
            run.move(session.name, "training", number)
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
        run, outcome = self._board.owner(request.task_id), self._board.late(request.task_id, session.name)
        offset = 0
        if outcome is None and run is None:
            outcome = Answer.UNKNOWN_TASK
        elif outcome is None and run is not None:
            if request.sha256:
                await self.transfers.ready(session, run.exchange.left(request.task_id), context)
            offset, outcome = run.exchange.status(session.name, request.task_id, request.sha256)
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
            first = await self.transfers.soon(anext(aiter(requests), None))
        except StalledError as error:
            await refuse(context, grpc.StatusCode.UNAVAILABLE, Reason.STALLED, str(error))
        if not isinstance(first, pb.UploadRequest) or not first.HasField("header"):
            await refuse(
                context, grpc.StatusCode.INVALID_ARGUMENT, Reason.UPLOAD_HEADER, "an upload begins with its header"
            )
        header, name = first.header, first.header.task_id[:LONGEST_LABEL]
        run = self._board.owner(header.task_id)
        session = await self._known(header.session, context)
        if session is None:
            self._fault(run, "unknown", f"upload for task {name!r} without a session")
            session = await self._session(header.session, context)
        answer = self._board.late(header.task_id, session.name)
        if answer is not None or run is None:
            return pb.UploadReply(outcome=ANSWERS[answer or Answer.UNKNOWN_TASK])
        scores = _scores(header, run.offer.metric)
        report = Report(header.examples, header.loss, header.train_seconds, scores)
        try:
            upload = run.exchange.begin(
                session.name, header.task_id, header.update.sha256, header.update.size, header.offset, report, object()
            )
            if upload is Answer.WAIT:
                await self._wait(context)
            if isinstance(upload, Answer):
                if upload is Answer.UNKNOWN_TASK:
                    self._fault(run, session.name, f"update for unknown task {name!r}")
                return pb.UploadReply(outcome=ANSWERS[upload])
            run.move(session.name, "uploading", upload.task.round)
            await self.transfers.take(session, run, upload, requests)
            run.move(session.name, "delivered", upload.task.round)
        except UploadError as error:
            # A transfer that broke off is nobody's fault; it is resumed.
            if error.reason != Reason.UPLOAD_OFFSET:
                self._fault(run, session.name, f"upload for {name!r}: {error}")
            code = grpc.StatusCode.INVALID_ARGUMENT
            if error.reason == Reason.UPLOAD_SIZE:
                code = grpc.StatusCode.RESOURCE_EXHAUSTED
            await refuse(context, code, error.reason, str(error))
        except CrowdedError as error:
            await refuse(context, grpc.StatusCode.UNAVAILABLE, Reason.CROWDED, str(error))
        except StalledError as error:
            await refuse(context, grpc.StatusCode.UNAVAILABLE, Reason.STALLED, str(error))
        except OSError as error:
            self.transfers.unstored += 1
            text = f"the update cannot be stored now: {error.strerror}"
            await refuse(context, grpc.StatusCode.UNAVAILABLE, Reason.STORAGE, text)
        return pb.UploadReply(outcome=pb.UploadReply.OUTCOME_ACCEPTED)

    async def Decline(self, request: pb.DeclineRequest, context: Context) -> pb.DeclineReply:  # noqa: N802
        """Give up a task that the device will not do."""
        session = await self._session(request.session, context)
        run = self._board.owner(request.task_id)
        if run is not None and run.exchange.coming:
            await self._wait(context)
        why = DECLINED.get(request.why, Declined.TASK)
        if why is Declined.PAUSED:
            self._sessions.pause(session)
        if run is not None:
            run.exchange.decline(session.name, request.task_id, why, request.message or why)
        return pb.DeclineReply()

    async def Heartbeat(self, request: pb.HeartbeatRequest, context: Context) -> pb.HeartbeatReply:  # noqa: N802
        """Renew the lease."""
        session = await self._session(request.session, context)
        return pb.HeartbeatReply(lease_seconds=self._sessions.beat(session, request.lease_seconds))

    async def Renew(self, request: pb.RenewRequest, context: Context) -> pb.RenewReply:  # noqa: N802
        """Certify a device anew."""
        proved = await self._proved(request.name, context)
        return await renewal(self._gate if proved else Gate(), request, context)

    async def Leave(self, request: pb.LeaveRequest, context: Context) -> pb.LeaveReply:  # noqa: N802
        """End the session and give up what the device owes."""
        session = await self._known(request.session, context)
        if session is not None:
            self._sessions.leave(session)
            self._board.leave(session, request.message or "left")
        return pb.LeaveReply()

    def _finish(self, stream: asyncio.Queue[pb.Task | None], text: str, session: Session | None) -> None:
        """End a stream; a device whose run has failed learns why."""
        own = [why for run_id, why in self._board.failures.items() if session and run_id in session.serves]
        failed = self._failed or bool(own)
        text = "; ".join(own) if own and not self._failed else text
        stream.put_nowait(pb.Task(finish=pb.Finish(message=plain(text, LONGEST_MESSAGE), failed=failed)))
        stream.put_nowait(None)
        if session is not None:
            session.told = True

    def _fault(self, run: LiveRun | None, device: str, reason: str) -> None:
        if run is not None:
            self._faults.note(device, reason, run.fail)

    async def _proved(self, name: str, context: Context) -> bool:
        """Return whether the caller has shown a certificate of the device `name`; refuse it if it shows another."""
        try:
            return self._gate.check(name, context.auth_context())
        except StrangerError as error:
            await refuse(context, grpc.StatusCode.PERMISSION_DENIED, error.reason, str(error))

    async def _known(self, token: str, context: Context) -> Session | None:
        """Return a token's session, its lease renewed; None if there is none. A token alone does not make a device."""
        self.transfers.called()
        session = self._sessions.find(token)
        if session is not None:
            await self._proved(session.name, context)
            # It is there, whatever it is answered.
            self._sessions.touch(token)
            await self._paced(session, context)
        return session and self._sessions.touch(token)

    async def _paced(self, session: Session, context: Context, calls: int = 1) -> None:
        """Refuse a device that calls too often."""
        if seconds := self._sessions.pace(session, calls):
            text = f"{session.name} calls too often, more than {CALLS} times a minute; call again in {seconds:.2g} s"
            await refuse(context, grpc.StatusCode.RESOURCE_EXHAUSTED, Reason.TOO_OFTEN, text, seconds)

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

    async def _over(self, context: Context) -> NoReturn:
        """Refuse a device for which there is nothing to do, or not any more."""
        reason = Reason.FINISHED if self._finished else Reason.STARTING
        await refuse(context, grpc.StatusCode.UNAVAILABLE, reason, self._finished or NOTHING)

    async def _wait(self, context: Context) -> NoReturn:
        text = "the coordinator has just been started, and opens the round again; ask again soon"
        await refuse(context, grpc.StatusCode.UNAVAILABLE, Reason.STARTING, text)


def _message(run: LiveRun, order: OwedTask) -> pb.Task:
    remaining = None if run.deadline is None else run.deadline - asyncio.get_running_loop().time()
    return message(order, remaining, run.offer.metric, run.run_id)


def _scores(header: pb.UploadHeader, metric: str) -> Scores | None:
    """Return a device's own scores; None if there are none, or if they make no sense."""
    found = header.scores
    finite = math.isfinite(found.before) and math.isfinite(found.after)
    if not header.HasField("scores") or not metric or not finite or not 0 < found.examples <= MOST_EXAMPLES:
        return None
    return Scores(metric, found.examples, found.before, found.after)
