"""The link to real devices: a gRPC server in a thread of its own."""

import asyncio
import errno
import logging
import queue
import threading
import time
from collections.abc import Callable, Coroutine, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import grpc

from diastole.models.allocator import keep_pages
from diastole.models.networks.config import ModelConfig
from diastole.models.spec import SubModelSpec
from diastole.models.state import State
from diastole.models.task import Report, Task, Update
from diastole.proto.coding import PLAIN, Coding
from diastole.proto.payload import PayloadError
from diastole.proto.profile import Profile
from diastole.server.errors import StoreError
from diastole.server.events import DeviceJoined, DeviceLeft
from diastole.server.link import Failure, Traffic
from diastole.server.outgoing import Outgoing, Sent
from diastole.server.store.journal import Journal, Kept
from diastole.server.tiers import Tiers
from diastole.server.wire.bounds import TransferBounds, most_connections, raise_descriptors
from diastole.server.wire.device_service import DeviceService
from diastole.server.wire.exchange import Answer, Exchange, OwedTask
from diastole.server.wire.identity import Gate
from diastole.server.wire.options import DEVICE_OPTIONS, add_devices, listen
from diastole.server.wire.orders import order
from diastole.server.wire.presence import Presence
from diastole.server.wire.sessions import Sessions
from diastole.server.wire.spool import Spool
from diastole.server.wire.upload import Upload

WORKERS = 4
FAREWELL_SECONDS = 5.0
IDLE_SECONDS = 1.0
READ_PAUSE = 1.0
MAPPED_BYTES, FREE_BYTES = 4 << 20, 32 << 20
"""Pieces of transfers are smaller, and find pages that earlier ones have used; models give theirs back."""

LOG = logging.getLogger(__name__)
T = TypeVar("T")


class GrpcLink:
    """Serves devices on `address` and turns their calls into updates for the round loop.

    The asyncio loop runs in its own thread; the round loop, in the caller's thread, only ever takes finished
    updates from a queue. Uploads are spooled to files below `spool`, so memory does not grow with the cohort.
    """

    def __init__(
        self,
        address: str,
        run_id: str,
        model: ModelConfig,
        schema: str,
        *,
        tiers: Tiers | None = None,
        coding: Coding = PLAIN,
        seed: int = 0,
        lease: float = 10.0,
        credentials: grpc.ServerCredentials | None = None,
        spool: Path | None = None,
        metric: str = "",
        journal: Journal | None = None,
        gate: Gate = Gate(),  # noqa: B008 (has no state)
        bounds: TransferBounds | None = None,
        longest: float | None = None,
    ) -> None:
        """Start serving.

        Args:
            address: `host:port`, port 0 for any free one.
            run_id: of the run.
            model: the global model.
            schema: hash of its tensors' names, shapes and dtypes (`models.state.schema_hash`).
            tiers: which tier a device belongs to; None takes every device at its word.
            coding: how payloads are encoded, for devices that know how; all others send and are sent them exactly.
            seed: of the run.
            lease: seconds of silence after which a device is lost.
            credentials: for TLS; None for plain text.
            spool: the folder below which uploads under way are written.
            metric: what the run is judged by first; devices whose owners share scores score themselves by it.
            journal: of the run; None for one that need not go on after a kill.
            gate: holds devices' certificates against their names.
            bounds: of transfers.
            longest: seconds after which a round without a deadline ends all the same; None for no limit. A device that
                is heard of and never delivers would hold it for ever.

        Raises `AddressError` if the address cannot be listened on.

        """
        keep_pages(MAPPED_BYTES, FREE_BYTES)
        self._outgoing = Outgoing(model, coding, seed)
        self._exactly = Outgoing(model, PLAIN, seed)
        self._out: dict[str, tuple[Outgoing, Sent]] = {}
        self._spool = Spool(spool)
        self._sessions = Sessions(lease)
        self._presence = Presence(self._sessions, journal)
        self._outcomes: queue.SimpleQueue[Upload | Failure | None] = queue.SimpleQueue()
        self._journal = journal
        # Disk and hashing: neither the services nor the round loop wait for them.
        self._work = ThreadPoolExecutor(WORKERS, "diastole-transfers")
        self._exchange = Exchange(self._spool.path, self._outcomes.put, self._aside, self._keep)
        self._bounds = bounds or TransferBounds()
        if journal is not None:
            self._resume(journal)
        self._longest, self._enough = longest, False
        self._interrupted, self._suspended = threading.Event(), threading.Event()
        self._service = DeviceService(
            run_id,
            model,
            schema,
            self._sessions,
            self._exchange,
            tiers,
            coding,
            self._outcomes.put,
            self._presence.announce,
            self._work,
            metric,
            gate,
            self._bounds,
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="diastole-grpc", daemon=True)
        self._thread.start()
        try:
            self.port = self._call(self._start(address, credentials))
        except BaseException:
            self._end_thread()
            raise

    @property
    def outgoing(self) -> Outgoing:
        """What goes out for the run's tasks."""
        return self._outgoing

    @property
    def sessions(self) -> Sessions:
        """The devices that have joined."""
        return self._sessions

    def owes(self, device: str) -> bool:
        """Return whether a device has a task that it has not delivered."""
        return bool(self._exchange.owed(device))

    def devices(self) -> Mapping[str, Profile]:
        """Return the devices with an open task stream."""
        return {name: session.profile for name, session in self._sessions.ready().items()}

    def seen(self) -> Mapping[str, Profile]:
        """Return every device that has ever joined."""
        return {name: session.profile for name, session in self._sessions.all().items()}

    def observe(self, tell: Callable[[DeviceJoined | DeviceLeft], None]) -> None:
        """Call `tell`, in a thread of its own, for each device that has joined or left so far, or does so later."""
        self._presence.observe(tell)

    def wait(self, count: int, seconds: float) -> bool:
        """Wait until `count` devices have an open task stream, or for `interrupt`."""
        return self._sessions.wait(count, seconds, self._interrupted.is_set)

    def dispatch(
        self, tasks: Sequence[Task], states: Mapping[SubModelSpec, State], deadline: float | None
    ) -> Generator[Update | Failure, None, None]:
        """Send the tasks out and yield what comes back; see `Link.dispatch`."""
        self._out, self._enough = {}, False
        kept = self._journal.reopened.kept if self._journal else {}
        orders = [self._order(task, states[task.spec], kept.get(task.device)) for task in tasks]
        deadline = self._longest if deadline is None else deadline
        closes = None if deadline is None else time.monotonic() + deadline
        if not tasks:
            # No device could be given a task; one that can may join.
            self._interrupted.wait(IDLE_SECONDS)
            return
        # On the loop, so that a device whose stream opens meanwhile is not handed its task twice.
        settled = [task for task in tasks if task.device in kept and not kept[task.device].owed]
        answers = {False: Answer.NOT_NEEDED, True: Answer.ACCEPTED}
        done = {(task.device, task.task_id): answers[kept[task.device].taken] for task in settled}
        owed = [each for each in orders if (each.task.device, each.task.task_id) not in done]
        self._call(self._hand_out(owed, done, closes))
        try:
            for task in settled:
                yield self._again(task, kept[task.device])
            while self._exchange.open_tasks() and not self._interrupted.is_set() and not self._enough:
                remaining = None if closes is None else closes - time.monotonic()
                if remaining is not None and remaining <= 0:
                    break
                try:
                    outcome = self._outcomes.get(timeout=remaining)
                except queue.Empty:
                    break
                yield from self._outcome(outcome)
            if self._suspended.is_set():
                return
            late = self._exchange.close()
            # An update that was accepted before the close counts, even if it is still in the queue.
            for _ in range(self._outcomes.qsize()):
                yield from self._outcome(self._outcomes.get())
            self._soon(self._service.cancel, late)
        finally:
            if not self._suspended.is_set():
                self._soon(self._service.cancel, self._exchange.close())
            self._drain()

    def enough(self) -> bool:
        """End the dispatch that is going on with what has been accepted; what comes later is not needed."""
        self._enough = True
        return True

    def interrupt(self) -> None:
        """End the dispatch or the wait that is going on, for good."""
        self._interrupted.set()
        self._outcomes.put(None)
        self._sessions.wake()

    def suspend(self) -> None:
        """From now on, leave the round open: devices go on with their tasks, and what they deliver is kept."""
        self._suspended.set()

    def dismiss(self, device: str, reason: str) -> None:
        """End a device's session; if its certificate counts no more, it cannot come back."""
        self._soon(self._service.dismiss, device, reason)

    def traffic(self) -> Mapping[str, Traffic]:
        """Return the payload bytes each device has moved, what was sent twice included."""
        return {name: Traffic(session.bytes_down, session.bytes_up) for name, session in self._sessions.all().items()}

    def close(self, message: str = "the run is over", failed: bool = False) -> None:
        """Tell every device that the run is over, or has failed, give them a moment to leave, and stop serving.

        With an empty message devices are told nothing, and wait for the coordinator to come back.
        """
        if self._loop.is_closed():
            return
        self._call(self._stop(message, failed))
        self._end_thread()

    async def _start(self, address: str, credentials: grpc.ServerCredentials | None) -> int:
        most = most_connections(raise_descriptors(), self._bounds.places)
        self._server = grpc.aio.server(options=(*DEVICE_OPTIONS, ("grpc.max_allowed_incoming_connections", most)))
        add_devices(self._server, self._service)
        port = listen(self._server, address, credentials)
        await self._server.start()
        self._reaper = asyncio.create_task(self._reap())
        return port

    async def _stop(self, message: str, failed: bool) -> None:
        if message:
            self._service.finish(message, failed)
        until = self._loop.time() + FAREWELL_SECONDS
        while message and self._sessions.ready() and self._loop.time() < until:
            await asyncio.sleep(0.02)
        self._reaper.cancel()
        await asyncio.wait([self._reaper])
        await self._server.stop(grace=0.5)

    def _resume(self, journal: Journal) -> None:
        """Be to the devices what the process before was."""
        number, prefix = journal.number, f"{journal.run_id}-"
        answers = {False: Answer.NOT_NEEDED, True: Answer.ACCEPTED}
        past = {(name, f"{prefix}r{number - 1}-{name}"): answers[taken] for name, taken in journal.past().items()}
        self._exchange.resume(prefix, number if journal.reopened.kept else 0, past)
        for name, (profile, key) in journal.expected().items():
            self._sessions.expect(name, profile, key)

    def _keep(self, upload: Upload) -> None:
        """Make a complete upload last. Raises `OSError`."""
        if self._journal is None:
            return
        try:
            upload.path = self._journal.accept(upload.task, upload.path, upload.sha256, upload.size, upload.report)
        except StoreError as error:
            raise OSError(errno.EIO, str(error)) from None

    def _again(self, task: Task, kept: Kept) -> Update | Failure:
        """Return what had come of a task before the coordinator was started again."""
        if kept.update is not None:
            return self._read(task, *kept.update)
        return kept.failure or Failure(task.device, "lost", faulty=False)

    async def _hand_out(
        self, orders: list[OwedTask], done: Mapping[tuple[str, str], Answer], closes: float | None
    ) -> None:
        self._exchange.open(orders, done)
        self._service.push(orders, closes)
        sessions = self._sessions.all()
        for device in {each.task.device for each in orders}:
            if device in sessions and not sessions[device].alive:
                self._exchange.give_up(device, "gone before its task went out")

    async def _reap(self) -> None:
        """End lapsed sessions, a few times a lease."""
        while True:
            await asyncio.sleep(self._sessions.lease / 4)
            for session in self._sessions.lapse():
                silent = f"not heard of for {self._sessions.lease:g} s"
                self._exchange.give_up(session.name, silent)
                self._presence.announce(DeviceLeft(session.name, silent))

    def _aside(self, work: Callable[[], None]) -> None:
        # When the link is closed, all that is left over goes with its folder.
        with suppress(RuntimeError):
            self._work.submit(work)

    def _outcome(self, outcome: Upload | Failure | None) -> Generator[Update | Failure, None, None]:
        if isinstance(outcome, Upload):
            yield self._read(outcome.task, outcome.path, outcome.report)
        elif outcome is not None:
            yield outcome

    def _read(self, task: Task, path: Path, report: Report) -> Update | Failure:
        outgoing, sent = self._out[task.task_id]
        try:
            while True:
                try:
                    return Update(task, outgoing.read(sent, path, task), report)
                except PayloadError as error:
                    return Failure(task.device, str(error), faulty=True)
                except OSError as error:
                    # Never the device's fault, and mostly over soon: too many files are open, for example.
                    LOG.warning("%s cannot be read: %s", path, error)
                    if not path.exists() or self._interrupted.wait(READ_PAUSE):
                        return Failure(task.device, "its update could not be read", faulty=False)
        finally:
            # What a journal knows of stays until the round is closed.
            if self._journal is None:
                path.unlink(missing_ok=True)

    def _order(self, task: Task, state: State, kept: Kept | None) -> OwedTask:
        """Return a task as it goes out, in codecs that its device knows, or knew when it was first sent out."""
        session = kept or self._sessions.named(task.device)
        able = session is not None and self._outgoing.coding.needs <= set(session.profile.codecs)
        outgoing = self._outgoing if able else self._exactly
        sent = outgoing.send(task.spec, state, task.round)
        self._out[task.task_id] = outgoing, sent
        return order(task, outgoing.coding, sent, state)

    def _drain(self) -> None:
        """Drop outcomes that no dispatch will yield."""
        while not self._outcomes.empty():
            outcome = self._outcomes.get()
            if isinstance(outcome, Upload) and self._journal is None:
                outcome.path.unlink(missing_ok=True)

    def _soon(self, function: Callable[..., None], *arguments: object) -> None:
        self._loop.call_soon_threadsafe(function, *arguments)

    def _call(self, coroutine: Coroutine[object, object, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def _end_thread(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._presence.close()
        self._work.shutdown()
        self._loop.close()
        self._spool.close()
