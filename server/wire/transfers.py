"""Objects on their way to devices and from them: few move at a time, and none may stand still."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from concurrent.futures import Executor, Future
from typing import Any

import grpc

from diastole.proto.framing import write_chunk
from diastole.proto.payload import CHUNK_BYTES, Payload
from diastole.proto.words import Reason
from diastole.server.wire.board import LiveRun
from diastole.server.wire.bounds import TransferBounds
from diastole.server.wire.exchange import Exchange, UploadError
from diastole.server.wire.line import Line
from diastole.server.wire.refusal import Context, refuse
from diastole.server.wire.sessions import CrowdedError, Session, Sessions
from diastole.server.wire.upload import Upload
from diastole.v1 import device_pb2 as pb

HELD_BYTES = 2 * CHUNK_BYTES
"""Of an upload that wait in memory while what came before is written and hashed; of several at once, less each."""


class StalledError(TimeoutError):
    """A transfer that stood still for too long, or crept."""


class Transfers:
    """Moves objects between devices and the exchanges of runs; `work` does what touches the disk, or hashes.

    `count` is how many pieces have moved, `stalled` how many transfers stood still for too long, or crept, and
    `unstored` how many the disk did not take.
    """

    def __init__(self, sessions: Sessions, work: Executor, bounds: TransferBounds) -> None:
        self._sessions, self._work, self._bounds = sessions, work, bounds
        self._called = self.count = self.stalled = self.unstored = 0
        self.up, self.down = (Line(bounds, lambda: self._called) for _ in range(2))
        self._calls: dict[str, deque[asyncio.Task[Any] | None]] = {}
        self._writers: dict[str, asyncio.Task[Any] | None] = {}

    def called(self) -> None:
        """Note that somebody has called."""
        self._called += 1

    @property
    def crowded(self) -> bool:
        """Whether a transfer waits for its turn."""
        return self.up.waits or self.down.waits

    async def send(self, session: Session, run_id: str, payload: Payload, offset: int, context: Context) -> None:
        """Send an object of a run from an offset on, each chunk when the one before has gone out.

        Raises `CrowdedError`, and `StalledError` if the device does not take it, or takes too many at a time.
        """
        if session.stalls >= self._bounds.stalls:
            raise CrowdedError("this device has let too many downloads stand")
        calls = self._calls.setdefault(session.token, deque())
        calls.append(call := asyncio.current_task())
        if len(calls) > self._bounds.calls and (oldest := calls.popleft()) is not None:
            oldest.cancel()
        try:
            await self.down.ask(session.name, len(payload.data) - offset)
            async with self.down.place(session.name) as moved:
                for data in payload.chunks(offset):
                    self.count += 1
                    await self.soon(context.write(write_chunk(data)))
                    self._sessions.moved(session, run_id, bytes_down=len(data))
                    self._sessions.touch(session.token)
                    moved(len(data))
        except asyncio.CancelledError:
            if call is None or call in calls:
                raise
            call.uncancel()
            raise StalledError("this device has begun other downloads since") from None
        except StalledError:
            session.stalls += 1
            raise
        finally:
            if call in calls:
                calls.remove(call)
            if not calls:
                self._calls.pop(session.token, None)

    async def ready(self, session: Session, size: int, context: Context) -> None:
        """Wait until a device may begin an upload of so many bytes, or refuse it if too many wait."""
        try:
            await self.up.ask(session.name, size)
        except CrowdedError as error:
            await refuse(context, grpc.StatusCode.UNAVAILABLE, Reason.CROWDED, str(error))

    async def take(
        self, session: Session, run: LiveRun, upload: Upload, requests: AsyncIterator[pb.UploadRequest | memoryview]
    ) -> None:
        """Take in the rest of an upload to a run, whose writer is this call, and complete it.

        Raises `UploadError`, `CrowdedError`, `StalledError` if nothing comes, or too little, and `OSError` if it cannot
        be stored; what was stored is kept. Of an upload that creeps the task is given up.
        """
        exchange, writer, there, held = run.exchange, upload.writer, upload.received, list[memoryview]()
        # What comes while a piece is being written waits for that; nothing is written before what came earlier.
        job = Future[None]()
        job.set_result(None)
        task_id, call = upload.task.task_id, asyncio.current_task()
        earlier, self._writers[task_id] = self._writers.get(task_id), call
        if earlier is not None:
            earlier.cancel()
        try:
            async with self.up.place(session.name) as moved:
                while (request := await self._next(requests, upload, there)) is not None:
                    if not isinstance(request, memoryview):
                        raise UploadError(Reason.UPLOAD_HEADER, "a second header in one upload")
                    self._sessions.touch(session.token)
                    self._sessions.moved(session, run.run_id, bytes_up=len(request))
                    self.count += 1
                    held.append(request)
                    there += len(request)
                    # The last piece is written and completed in one go.
                    last = there == upload.size and len(request)
                    most = HELD_BYTES // max(1, self.up.moving // 2)
                    if not last and (job.done() or sum(map(len, held)) >= most):
                        await _ended(job)
                        job, held = self._work.submit(_write, exchange, upload, held, writer), []
                    if there < upload.size:
                        moved(len(request))
                await _ended(job)
                job, held = self._work.submit(_finish, exchange, upload, held, writer), []
                await _ended(job)
        except BaseException as error:
            if isinstance(error, StalledError) and upload.seconds >= self._allowed(there):
                words = f"its update comes at {there / upload.seconds:.0f} bytes a second"
                exchange.give_up(session.name, words)
            # A call that has broken off leaves what has come of it.
            self._work.submit(_rest, exchange, job, upload, held, writer)
            if isinstance(error, asyncio.CancelledError) and call and self._writers.get(task_id) is not call:
                call.uncancel()
                raise UploadError(Reason.UPLOAD_OFFSET, "another call has taken this upload over") from None
            raise
        finally:
            if self._writers.get(task_id) is call:
                del self._writers[task_id]

    async def _next(
        self, requests: AsyncIterator[pb.UploadRequest | memoryview], upload: Upload, there: int
    ) -> pb.UploadRequest | memoryview | None:
        """Return the next message of an upload of which so much is there, and book the seconds that it took."""
        clock = asyncio.get_running_loop().time
        began = clock()
        try:
            left = min(self._bounds.idle_seconds, self._allowed(there) - upload.seconds)
            request: pb.UploadRequest | memoryview | None = await self.soon(anext(requests, None), left)
            return request
        finally:
            upload.seconds += clock() - began

    def _allowed(self, there: int) -> float:
        """Return the seconds that an upload may take for so many bytes."""
        return self._bounds.grace_seconds + there / self._bounds.least_rate

    async def soon(self, call: Any, seconds: float | None = None) -> Any:
        """Return what a call returns. Raises `StalledError` if it takes longer than a transfer may stand still."""
        seconds = self._bounds.idle_seconds if seconds is None else seconds
        try:
            async with asyncio.timeout(seconds):
                return await call
        except TimeoutError:
            self.stalled += 1
            raise StalledError(f"nothing has moved for {max(seconds, 0):.3g} s") from None


def _write(exchange: Exchange, upload: Upload, parts: list[memoryview], writer: object) -> None:
    for data in parts:
        exchange.write(upload, data, writer)


def _finish(exchange: Exchange, upload: Upload, parts: list[memoryview], writer: object) -> None:
    _write(exchange, upload, parts, writer)
    exchange.finish(upload, writer)


def _rest(exchange: Exchange, job: Future[None], upload: Upload, parts: list[memoryview], writer: object) -> None:
    # The job was handed in before, so that some thread is at it.
    failed = job.exception()
    try:
        if failed is None:
            _write(exchange, upload, parts, writer)
    except (UploadError, OSError):
        return
    finally:
        exchange.rest(upload, writer)


async def _ended(job: Future[None]) -> None:
    """Wait for a job, which goes on even if its caller does not, and raise what it raises."""
    if job.done():
        job.result()
        return
    waiting = asyncio.wrap_future(job)
    # If the caller has gone by then, nobody asks what the job raised, and asyncio would complain of that.
    waiting.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
    await asyncio.shield(waiting)
