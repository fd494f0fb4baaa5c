"""The link of a run to real devices, over a gRPC server that serves several runs."""

import errno
import logging
import queue
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path

import grpc

from diastole.models.networks.config import ModelConfig
from diastole.models.spec import SubModelSpec
from diastole.models.state import State
from diastole.models.task import Report, Task, Update
from diastole.proto.coding import PLAIN, Coding
from diastole.proto.payload import PayloadError
from diastole.proto.profile import Profile
from diastole.server.errors import StoreError
from diastole.server.events import Change
from diastole.server.link import Failure, Traffic
from diastole.server.outgoing import Outgoing, Sent
from diastole.server.progress import Moving
from diastole.server.stopwatch import phase
from diastole.server.store.attendance import Attendance
from diastole.server.store.journal import Journal, Kept
from diastole.server.tiers import Tiers
from diastole.server.wire.board import LiveRun, RunOffer
from diastole.server.wire.bounds import TransferBounds
from diastole.server.wire.device_service import OVER
from diastole.server.wire.exchange import Answer, Exchange, OwedTask
from diastole.server.wire.hub import Hub
from diastole.server.wire.identity import Gate
from diastole.server.wire.moving import moving
from diastole.server.wire.orders import order
from diastole.server.wire.presence import Presence
from diastole.server.wire.sessions import Sessions
from diastole.server.wire.upload import Upload

IDLE_SECONDS = 1.0
READ_PAUSE = 1.0

LOG = logging.getLogger(__name__)


class RunLink:
    """A run's link: turns the calls of a hub's devices into updates for the run's round loop.

    The round loop, in the caller's thread, only ever takes finished updates from a queue.
    """

    def __init__(
        self,
        hub: Hub,
        offer: RunOffer,
        model: ModelConfig,
        *,
        seed: int = 0,
        journal: Journal | None = None,
        longest: float | None = None,
    ) -> None:
        """Begin a run, so that it may have tasks.

        Args:
            hub: serves the devices.
            offer: what devices are told of the run.
            model: the global model.
            seed: of the run.
            journal: of the run; None for one that need not go on after a kill.
            longest: seconds after which a round without a deadline ends all the same; None for no limit. A device that
                is heard of and never delivers would hold it for ever.

        """
        self.hub, self._run_id, self._sessions = hub, offer.run_id, hub.sessions
        self._outgoing = Outgoing(model, offer.coding, seed)
        self._exactly = Outgoing(model, PLAIN, seed)
        self._out: dict[str, tuple[Outgoing, Sent]] = {}
        self._presence = Presence()
        self._outcomes: queue.SimpleQueue[Upload | Failure | None] = queue.SimpleQueue()
        self._journal, self._longest, self._enough = journal, longest, False
        self._before: Mapping[str, Traffic] = {}
        self._interrupted, self._suspended = threading.Event(), threading.Event()
        self._exchange = Exchange(hub.spool, self._outcomes.put, hub.aside, self._keep, hub.advance)
        if journal is not None:
            self._resume(journal)
        self._run = LiveRun(offer, self._exchange, self._outcomes.put, self._presence.announce)
        hub.begin(self._run)

    @property
    def outgoing(self) -> Outgoing:
        """What goes out for the run's tasks."""
        return self._outgoing

    @property
    def sessions(self) -> Sessions:
        """The devices that have joined."""
        return self._sessions

    @property
    def tiers(self) -> Tiers | None:
        """Which tier a device belongs to; None if every device is taken at its word."""
        return self._run.offer.tiers

    def owes(self, device: str) -> bool:
        """Return whether a device has a task that it has not delivered."""
        return bool(self._exchange.owed(device))

    def devices(self) -> Mapping[str, Profile]:
        """Return the devices with an open task stream."""
        ready = self._sessions.ready(self._run_id)
        return {name: session.serves.get(self._run_id, session.profile) for name, session in ready.items()}

    def seen(self) -> Mapping[str, Profile]:
        """Return every device of the run that has ever joined."""
        joined, run_id = self._sessions.all(), self._run_id
        return {name: session.serves[run_id] for name, session in joined.items() if run_id in session.serves}

    def observe(self, tell: Callable[[Change], None]) -> None:
        """Call `tell`, in a thread of its own, for each device that has joined or left so far, or does so later."""
        self._presence.observe(tell)

    def wait(self, count: int, seconds: float) -> bool:
        """Wait until `count` devices have an open task stream, or for `interrupt`."""
        return self._sessions.wait(count, seconds, self._interrupted.is_set, self._run_id)

    def dispatch(
        self, tasks: Sequence[Task], states: Mapping[SubModelSpec, State], deadline: float | None
    ) -> Generator[Update | Failure, None, None]:
        """Send the tasks out and yield what comes back; see `Link.dispatch`."""
        self._out, self._enough, self._before = {}, False, self.traffic()
        kept = self._journal.reopened.kept if self._journal else {}
        with phase("encode"):
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
        self.hub.hand_out(self._run, owed, done, closes)
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
            given = set(self._run.given)
            late = self._exchange.close()
            # An update that was accepted before the close counts, even if it is still in the queue.
            for _ in range(self._outcomes.qsize()):
                yield from self._outcome(self._outcomes.get())
            self.hub.cancel(late)
            for task in late:
                if task.task_id not in given and not self._interrupted.is_set():
                    yield Failure(task.device, "its turn had not come when the round ended", faulty=False)
        finally:
            if not self._suspended.is_set():
                self.hub.cancel(self._exchange.close())
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

    def traffic(self) -> Mapping[str, Traffic]:
        """Return the payload bytes each device has moved for the run, what was sent twice included."""
        joined, run_id, none = self._sessions.all(), self._run_id, Traffic()
        return {name: each.moved.get(run_id, none) for name, each in joined.items() if run_id in each.serves}

    def moving(self) -> Mapping[str, Moving]:
        """Return the transfers that are under way, by device."""
        return moving(self._run, self._sessions.all(), self._before)

    def leave(self) -> None:
        """Let go of the run without a word to the devices, which wait for the next process."""
        self._presence.close()

    def close(self, failure: str = "") -> None:
        """Take the run down; `failure` says why it came to nothing. Devices that can serve no other learn of it."""
        self.hub.end(self._run_id, failure)
        self._presence.close()

    def _resume(self, journal: Journal) -> None:
        """Be to the devices what the process before was."""
        (name, *before), number = journal.names, journal.number
        prefix = f"{name}-"
        answers = {False: Answer.NOT_NEEDED, True: Answer.ACCEPTED}
        past = {(name, f"{prefix}r{number - 1}-{name}"): answers[taken] for name, taken in journal.past().items()}
        self._exchange.resume(prefix, number if journal.reopened.kept else 0, past, before)
        for name, profile in journal.expected().items():
            self._sessions.expect(name, profile, run_id=self._run_id)

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
                    with phase("decode"):
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


class GrpcLink(RunLink):
    """The link of the only run of a hub of its own."""

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
        metric: str = "",
        gate: Gate = Gate(),  # noqa: B008 (has no state)
        bounds: TransferBounds | None = None,
        longest: float | None = None,
        attendance: Attendance | None = None,
    ) -> None:
        """Start serving; see `RunOffer`, `RunLink` and `Hub`. Raises `AddressError`."""
        hub = Hub(lease=lease, gate=gate, bounds=bounds, attendance=attendance)
        offer = RunOffer(run_id, model.to_json(), schema, tiers, coding, metric)
        super().__init__(hub, offer, model, seed=seed, longest=longest)
        try:
            self.port = hub.open(address, credentials)
        except BaseException:
            self.close("")
            raise

    def close(self, message: str = OVER, failed: bool = False) -> None:
        """Tell every device that the run is over, or has failed, and stop serving; see `Hub.close`."""
        self.hub.close(message, failed)
        self._presence.close()
