"""One gRPC server for the runs of a coordinator: its devices' sessions and streams, in a thread of its own."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import grpc

from diastole.models.allocator import give_back, keep_pages, share_pages
from diastole.models.task import Task
from diastole.server.errors import StoreError
from diastole.server.store.attendance import Attendance
from diastole.server.wire.board import Board, LiveRun, RunOffer
from diastole.server.wire.bounds import TransferBounds, most_connections, raise_descriptors
from diastole.server.wire.device_service import OVER, DeviceService
from diastole.server.wire.exchange import Answer, OwedTask
from diastole.server.wire.identity import Gate
from diastole.server.wire.options import DEVICE_OPTIONS, add_devices, listen
from diastole.server.wire.sessions import Session, Sessions
from diastole.server.wire.spool import Spool
from diastole.server.wire.telling import tell
from diastole.server.wire.transfers import Transfers

WORKERS = 4
MAPPED_BYTES, FREE_BYTES = 4 << 20, 32 << 20
"""Pieces of transfers are smaller, and find pages that earlier ones have used; models give theirs back."""
HEAPS, GIVE_BACK_SECONDS = 2, 0.5
"""Of the threads that take part in transfers, and how often what lies free in them goes back while something moves."""
FAREWELL_SECONDS = 5.0
MOVES_SECONDS = 0.5
"""Between two words on how far devices are with their tasks."""
BETWEEN_CALLS_SECONDS, UNTOLD_SECONDS = 0.3, 2.0
"""A device that was heard of since then, and has no open stream, is about to leave, or to open one. One that has had a
stream, and has not been told that all is over, gets the longer time: it would wait for this coordinator for ever."""

T = TypeVar("T")


class Hub:
    """Serves devices, and every run's link, from an asyncio loop in its own thread.

    Uploads are spooled to files below `spool`, so memory does not grow with the cohort.

    Attributes:
        sessions: the devices that have joined.
        spool: the folder of uploads under way.
        port: where devices call, once it is `open`.

    """

    def __init__(
        self,
        *,
        lease: float = 10.0,
        spool: Path | None = None,
        gate: Gate = Gate(),  # noqa: B008 (has no state)
        bounds: TransferBounds | None = None,
        keeps: bool = False,
        over: Iterable[str] = (),
        attendance: Attendance | None = None,
    ) -> None:
        """Start the thread; nobody is served before `open`.

        Args:
            lease: seconds of silence after which a device is lost; more if there are very many.
            spool: the folder below which uploads under way are written.
            gate: holds devices' certificates against their names.
            bounds: of transfers.
            keeps: whether devices wait for more runs once all are over.
            over: runs of earlier processes that are over.
            attendance: keeps who is there, and says who was there when the last process ended.

        """
        keep_pages(MAPPED_BYTES, FREE_BYTES)
        share_pages(HEAPS)
        self.port = 0
        self.sessions = Sessions(lease)
        self._spool = Spool(spool)
        self.spool = self._spool.path
        self._bounds = bounds or TransferBounds()
        self._attendance, self._noter = attendance, ThreadPoolExecutor(1, "diastole-attendance")
        for name, (profile, key) in (attendance.there() if attendance else {}).items():
            self.sessions.expect(name, profile, key)
        self._board = Board(self._note, keeps=keeps, over=over)
        # Disk and hashing: neither the services nor the round loops wait for them.
        self._work = ThreadPoolExecutor(WORKERS, "diastole-transfers")
        self._service = DeviceService(self._board, self.sessions, self._work, gate, self._bounds)
        self._telling: dict[str, asyncio.Task[None]] = {}
        self._server: grpc.aio.Server | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="diastole-grpc", daemon=True)
        self._thread.start()

    def open(self, address: str, credentials: grpc.ServerCredentials | None = None) -> int:
        """Serve devices at `host:port`, port 0 for any free one, and return the port.

        What devices may have tasks of must have begun before. Raises `AddressError` if the address cannot be listened
        on.
        """
        self.port = self._call(self._start(address, credentials))
        return self.port

    @property
    def transfers(self) -> Transfers:
        """What moves; to be read, from any thread."""
        return self._service.transfers

    def offer(self, offer: RunOffer) -> None:
        """Let devices know of a run that will begin; those that have joined join again."""
        self._call(self._offer(offer))

    def begin(self, run: LiveRun) -> None:
        """Let a run have tasks, and tell it of the devices that are there."""
        self._call(self._begin(run))

    def end(self, run_id: str, failure: str = "") -> None:
        """Take a run down. Devices that can serve no other are told that theirs are over, and why if it failed."""
        if not self._loop.is_closed():
            self._call(self._end(run_id, failure))

    def hand_out(
        self, run: LiveRun, orders: Sequence[OwedTask], done: Mapping[tuple[str, str], Answer], closes: float | None
    ) -> None:
        """Open a round of a run, and send its tasks out, each when it is its run's turn on its device.

        Args:
            run: the run.
            orders: what is owed.
            done: what is settled already, by device and task.
            closes: when the round ends, by the monotonic clock; None without an end.

        """
        self._call(self._hand_out(run, orders, done, closes))

    def cancel(self, tasks: list[Task]) -> None:
        """Tell devices, soon, that tasks are not needed any more."""
        self._soon(self._service.cancel, tasks)

    def advance(self, device: str) -> None:
        """Send a device its next task, soon, if it is at none. May be called from any thread."""
        with suppress(RuntimeError):
            self._soon(self._service.advance, device)

    def dismiss(self, device: str, reason: str) -> None:
        """End a device's session; if its certificate counts no more, it cannot come back."""
        self._soon(self._service.dismiss, device, reason)

    def aside(self, work: Callable[[], None]) -> None:
        """Do what may take a while, and nobody waits for."""
        # When the hub is closed, all that is left over goes with its folder.
        with suppress(RuntimeError):
            self._work.submit(work)

    def close(self, message: str = OVER, failed: bool = False) -> None:
        """Tell every device that its runs are over, or have failed, give them a moment to leave, and stop serving.

        With an empty message devices are told nothing, and wait for the coordinator to come back.
        """
        if self._loop.is_closed():
            return
        self._call(self._stop(message, failed))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._work.shutdown()
        self._noter.shutdown()
        self._loop.close()
        self._spool.close()

    async def _start(self, address: str, credentials: grpc.ServerCredentials | None) -> int:
        most = most_connections(raise_descriptors(), self._bounds.places)
        server = grpc.aio.server(options=(*DEVICE_OPTIONS, ("grpc.max_allowed_incoming_connections", most)))
        add_devices(server, self._service)
        port = listen(server, address, credentials)
        await server.start()
        self._server, self._reaper = server, asyncio.create_task(self._reap())
        self._trimmer = asyncio.create_task(self._trim())
        self._mover = asyncio.create_task(self._move())
        return port

    async def _stop(self, message: str, failed: bool) -> None:
        if self._server is None:
            return
        if message:
            self._service.finish(message, failed)
        until = self._loop.time() + FAREWELL_SECONDS
        while message and self._present() and self._loop.time() < until:
            await asyncio.sleep(0.02)
        ending = [self._reaper, self._trimmer, self._mover, *self._telling.values()]
        for task in ending:
            task.cancel()
        await asyncio.wait(ending)
        await self._server.stop(grace=0.5)

    def _present(self) -> bool:
        """Return whether a device is there that has not been told that all is over, or has not left yet."""
        alive = (session for session in self.sessions.all().values() if session.alive and not session.expected)
        return any(each.stream or self.sessions.idle(each) < _patience(each) for each in alive)

    async def _offer(self, offer: RunOffer) -> None:
        self._board.offer(offer)
        if self._server is not None:
            self._service.change()

    async def _begin(self, run: LiveRun) -> None:
        self._board.begin(run)
        for session in self.sessions.all().values():
            if session.alive and not session.expected and run.run_id in session.serves:
                run.joined(session)

    async def _end(self, run_id: str, failure: str) -> None:
        self._stop_telling(run_id)
        self._board.end(run_id, failure)
        self.sessions.forget(run_id)
        self._service.release(OVER)

    async def _hand_out(
        self, run: LiveRun, orders: Sequence[OwedTask], done: Mapping[tuple[str, str], Answer], closes: float | None
    ) -> None:
        self._service.open(run, closes)
        run.exchange.open(orders, done)
        devices = dict.fromkeys(each.task.device for each in orders)
        self._stop_telling(run.run_id)
        self._telling[run.run_id] = asyncio.create_task(
            tell(devices, self._service.advance, lambda: self._service.transfers.crowded)
        )
        sessions = self.sessions.all()
        for device in devices:
            if device in sessions and not sessions[device].alive:
                run.exchange.give_up(device, "gone before its task went out")

    def _stop_telling(self, run_id: str) -> None:
        if run_id in self._telling:
            self._telling.pop(run_id).cancel()

    async def _reap(self) -> None:
        """End lapsed sessions, a few times a lease."""
        while True:
            await asyncio.sleep(self.sessions.least / 4)
            for session in self.sessions.lapse():
                self._board.leave(session, f"not heard of for {session.lease or self.sessions.lease:g} s")

    async def _move(self) -> None:
        """Tell how far devices are, now and then and not one by one."""
        while True:
            await asyncio.sleep(MOVES_SECONDS)
            for run in self._board.live:
                run.tell_moves()

    async def _trim(self) -> None:
        """Give memory back that transfers have left."""
        before = 0
        while True:
            await asyncio.sleep(GIVE_BACK_SECONDS)
            if (count := self._service.transfers.count) != before:
                before = count
                self._work.submit(give_back)

    def _note(self, name: str) -> None:
        if self._attendance is not None:
            self._noter.submit(self._keep, self._attendance, name)

    def _keep(self, attendance: Attendance, name: str) -> None:
        session = self.sessions.named(name)
        with suppress(StoreError):
            if session is not None and session.alive:
                attendance.meet(name, session.profile, session.key)
            else:
                attendance.part(name)

    def _soon(self, function: Callable[..., object], *arguments: object) -> None:
        self._loop.call_soon_threadsafe(function, *arguments)

    def _call(self, coroutine: Coroutine[object, object, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()


def _patience(session: Session) -> float:
    """Return the seconds of silence after which a device without a stream is not waited for at the end."""
    return UNTOLD_SECONDS if session.listens and not session.told else BETWEEN_CALLS_SECONDS
