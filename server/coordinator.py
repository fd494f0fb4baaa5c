"""The coordinator: plays the rounds of a federation over a link, evaluates, keeps snapshots, and tells observers."""

import logging
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing

from diastole.models.crossing import device_of
from diastole.models.method import Method
from diastole.models.proxy import Proxy
from diastole.models.seeds import reference_plan
from diastole.models.state import State
from diastole.models.task import Update
from diastole.models.training import Examples
from diastole.proto.about import about
from diastole.proto.coding import PLAIN, Coding
from diastole.server.evaluation import Evaluation
from diastole.server.events import (
    DeviceLost,
    DevicesAwaited,
    DevicesMoved,
    Event,
    Move,
    Observer,
    RoundClosed,
    RoundStarted,
    RoundTimed,
    RunFinished,
    RunStarted,
    TaskDeclined,
    UpdateAccepted,
    UpdateQuarantined,
)
from diastole.server.ledger import Ledger
from diastole.server.link import Failure, Link
from diastole.server.opened import Opened, named
from diastole.server.planner import Planner
from diastole.server.processors import Processor
from diastole.server.rest import Rest
from diastole.server.round import Rounds
from diastole.server.sampler import Sampler
from diastole.server.settings import Settings
from diastole.server.snapshot import Rollback, Snapshot
from diastole.server.stopping import early_end
from diastole.server.stopwatch import Stopwatch
from diastole.server.store.journal import Journal, Reopened
from diastole.server.suspensions import Suspensions
from diastole.server.waiting import Waiting

LOG = logging.getLogger(__name__)


class Coordinator:
    """Runs the rounds of one federation.

    `sizes` are the method's sizes, `state` is the global model, `last` is the number of the last closed round and the
    model after it, `closed` has what each round came to, `evaluation` says how good the model is, and `ledger` what
    each device brought and spent. `failed` says why the run could not go on, or came to nothing; empty if it did
    not. `clock` gives the seconds by which rounds are timed. `rest` pauses it, and `rollbacks` has what was undone.

    The coordinator tells observers of every event, one at a time: in the link's thread when a device joins or leaves,
    otherwise in its own. The last event is that the run has finished. An observer that raises is logged and told
    nothing more; it cannot end a run. `keep`, which stores what must not be lost, is no observer: it is given a
    snapshot after every round, and ends the run if it raises. So does `journal`, which keeps the open round; with one,
    `keep` is given a snapshot before the first round too.
    """

    def __init__(
        self,
        settings: Settings,
        method: Method,
        link: Link,
        state: State,
        *,
        proxy: Proxy | None = None,
        test: Examples | None = None,
        observers: Sequence[Observer] = (),
        clock: Callable[[], float] = time.monotonic,
        run_id: str = "",
        keep: Callable[[Snapshot], None] | None = None,
        sampler: Sampler | None = None,
        coding: Coding = PLAIN,
        processors: Sequence[Processor] = (),
        journal: Journal | None = None,
        labels: Callable[[str], Mapping[str, str]] | None = None,
    ) -> None:
        self.settings, self.method = settings, method
        self.closed: list[RoundClosed] = []
        self.failed = ""
        self.ledger = Ledger()
        self._rounds = Rounds(
            settings,
            method,
            state,
            proxy,
            sampler=sampler,
            coding=coding,
            processors=processors,
            labels=labels,
        )
        self.sizes = self._rounds.sizes
        self.evaluation = Evaluation(settings, method, self.sizes, proxy, test)
        self.last = (0, state)
        self._link = link
        self._proxy = proxy
        self._observers = list(observers)
        self._telling = threading.RLock()
        self._clock = clock
        # Agents outlive a coordinator; a task of its next run must not pass for one of this run.
        self._run_id = run_id
        self._keep, self._journal = keep, journal
        self._resumed = False
        self._stop = threading.Event()
        self._now = self._in_round = self._suspended = self._left = False
        self.rest = Rest(self._tell)
        self.rollbacks: Sequence[Rollback] = ()
        self._watch = Stopwatch()
        self._waiting = Waiting(
            link,
            self._rounds.planner,
            settings.rounds.patience,
            settings.expected,
            clock,
            self._stop.is_set,
            lambda message: self._tell(DevicesAwaited(message)),
        )
        link.observe(self._tell)

    @property
    def state(self) -> State:
        """The global model."""
        return self._rounds.state

    @property
    def planner(self) -> Planner:
        """What finds the sizes that fit each device; to be asked, not told."""
        return self._rounds.planner

    @property
    def suspensions(self) -> Suspensions:
        """Who is kept out; operators may change it at any time."""
        return self._rounds.suspensions

    def observe(self, observer: Observer) -> None:
        """Call `observer` with every event from now on."""
        with self._telling:
            self._observers.append(observer)

    def say(self, event: Event) -> None:
        """Tell the observers of something that an operator has done."""
        self._tell(event)

    def stop(self, *, now: bool = False) -> None:
        """End the run after the current round, or abandon that round too. May be called from any thread."""
        self._now = self._now or now
        self._stop.set()
        self.rest.end()
        if now or not self._in_round:
            self._link.interrupt()

    def suspend(self) -> None:
        """End at once, and leave the round open: another process goes on with it. May be called from any thread.

        A round that is being closed is closed first.
        """
        self._suspended = True
        self.stop(now=True)

    def leave(self) -> None:
        """End at once, like `suspend`, and do not say that the run is over: another coordinator goes on with it."""
        self._left = True
        self.suspend()

    @property
    def stopping(self) -> bool:
        """True once `stop` was called."""
        return self._stop.is_set()

    @property
    def learned(self) -> bool:
        """Whether a round has counted, or none was to be run."""
        return not self.settings.rounds.count or any(not each.abandoned for each in self.closed)

    @property
    def early(self) -> str:
        """Why the run ends before its last round, behind those that are closed; empty if it does not."""
        short = len(self.closed) < self.settings.rounds.count
        return early_end(self.settings.stopping, self.closed) if short else ""

    def run(self) -> State:
        """Run every round and return the final global state.

        Raises `RoundError` when too few devices stay online for longer than the patience, and whatever the
        method raises when it cannot prepare.
        """
        count = self.settings.rounds.count
        with reference_plan():
            reopened = self._journal is not None and bool(self._journal.reopened.kept)
            if not reopened:
                self.rest.taken(len(self.closed))
            if not reopened and self.sizes and count:
                back = self._journal is not None and bool(self.closed)
                (self._waiting.until_back if back else self._waiting.until_able)(self.settings.devices)
            names = tuple(sorted(self._link.devices()))
            metric = self.settings.metrics[0]
            self._tell(RunStarted(self.method.whole.method, count, names, len(self.closed), metric))
            if not self._resumed:
                self._rounds.prepare(1)
                if self._journal is not None and self._keep is not None:
                    self._keep(self.snapshot())
            first = len(self.closed) + 1
            for number in range(first, count + 1):
                if not reopened or number > first:
                    self.rest.taken(len(self.closed))
                if self._stop.is_set() or self.early or self.failed:
                    break
                if reopened and number > first:
                    # The first round was planned before this process began; the next one is for all who come back.
                    self._link.wait(0, 0.0)
                    reopened = False
                self._watch = Stopwatch()
                with self._watch.running(), about(number=number):
                    self._round(number)
            if self.closed and not self.learned and not self._stop.is_set():
                self.failed = self.failed or f"no round counted; the last one: {self.closed[-1].abandoned}"
            if not self._left:
                self._tell(RunFinished(len(self.closed), self._stop.is_set(), self.early, self.failed))
        return self.state

    def snapshot(self) -> Snapshot:
        """Return all that a new coordinator needs to go on after the last closed round."""
        return Snapshot(
            state=self.state,
            method=self.method.memory(),
            optimiser=self._rounds.optimiser.memory(),
            planner=self._rounds.planner.memory(),
            closed=tuple(self.closed),
            accounts=dict(self.ledger),
            trust=self._rounds.memory(),
            good=self._rounds.good,
            rollbacks=self.rollbacks,
        )

    def resume(self, snapshot: Snapshot) -> None:
        """Go on where `snapshot` was taken; call this before `run`, on a coordinator of the same settings."""
        snapshot = snapshot.on(device_of(self.state))
        rounds, self.closed = self._rounds, list(snapshot.closed)
        self.last = (len(self.closed), snapshot.state)
        rounds.resume(snapshot.state, snapshot.method, snapshot.trust)
        rounds.good, self.rollbacks = snapshot.good, snapshot.rollbacks
        rounds.optimiser.resume(snapshot.optimiser)
        rounds.planner.resume(snapshot.planner)
        self.ledger.update(snapshot.accounts)
        self._resumed = True

    def _round(self, number: int) -> None:
        """Open a round with the devices that are online, hand out its tasks, close it, and tell what it came to."""
        began, before = self._clock(), self._link.traffic()
        reopened = self._journal.reopened if self._journal else Reopened()
        with self._watch.waiting():
            opened = self._rounds.reopen(reopened) if reopened.kept else self._opened(number)
        if opened is None:
            return
        self._in_round, macs = True, 0

        def accepted(update: Update) -> None:
            nonlocal macs
            macs += self._accept(update)

        def refused(failure: Failure) -> None:
            self._refuse(number, failure)

        if self._journal is not None and not reopened.kept:
            self._journal.open(number, self._rounds.planner.memory(), opened.tasks, opened.profiles)
        there = sum(each.update is not None for each in reopened.kept.values())
        self._tell(RoundStarted(number, {task.device: task.spec.label for task in opened.tasks}, there))
        with closing(self._gathered(opened)) as outcomes:
            out = self._clock()
            # Of a round that goes on, some trained before this process was there.
            before_it = max(0.0, time.time() - reopened.began) if reopened.kept else 0.0
            updates = self._rounds.admit(opened, outcomes, refused, lambda: before_it + self._clock() - out)
            ended = self._rounds.close(opened, updates, accepted, refused, lambda: self._now)
        if self._suspended and ended.abandoned:
            return
        self.failed = ended.abandoned if ended.failed else ""
        worked = self._watch.worked
        self.ledger.meet(self._link.seen())
        down, up = self.ledger.move(before, self._link.traffic())
        self.evaluation.forget()
        rounds = self.settings.rounds
        due = number % rounds.evaluate_every == 0 or number == rounds.count or self._stop.is_set()
        with self._watch.phase("evaluate"):
            scores = self.evaluation.whole() if due else None
            tier_scores = self.evaluation.sizes() if due else {}
            validation = self.evaluation.validation() if due else None
        closed = RoundClosed(
            round=number,
            updates=ended.updates,
            abandoned=ended.abandoned,
            scores=scores,
            tier_scores=tier_scores,
            validation=validation,
            bytes_down=down,
            bytes_up=up,
            seconds=self._clock() - began,
            macs=macs,
            wall_seconds=self._watch.seconds,
            server_seconds=worked,
            warnings=ended.warnings,
        )
        self.closed.append(closed)
        self.last = (number, self.state)
        self._in_round = False
        with self._watch.phase("checkpoint"):
            if self._keep is not None:
                self._keep(self.snapshot())
            if self._journal is not None:
                self._journal.close(closed)
        self._tell(closed)
        self._tell(RoundTimed(number, self._watch.phases))

    def _opened(self, number: int) -> Opened | None:
        """Open a round as soon as a device can be given a task; None if the run is to end before."""
        began = self._clock()
        self._waiting.done()
        while True:
            if self.sizes:
                self._waiting.until_online(1)
            if self._stop.is_set():
                return None
            if self.rest.taken(len(self.closed)):
                began = self._clock()
                continue
            opened = self._rounds.open(number, self._link.devices())
            if opened.tasks or not self.sizes:
                return opened
            self._waiting.again(began)

    def _gathered(self, opened: Opened) -> Generator[Update | Failure, None, None]:
        """Hand out the tasks and yield their outcomes; a device without one at the deadline was too slow."""
        deadline, tasks = self.settings.rounds.deadline, named(opened.tasks, self._run_id)
        out = {task.device: task for task in tasks}
        if not self.sizes:
            return
        with closing(self._link.dispatch(tasks, opened.states, deadline)) as outcomes:
            for outcome in self._watch.awaited(outcomes):
                out.pop(outcome.device, None)
                yield outcome
                if opened.enough and not self._link.enough():
                    break
        if deadline is not None and not self._stop.is_set() and not opened.enough:
            for task in out.values():
                self._rounds.missed(opened, task, deadline)
            if out:
                self._tell(DevicesMoved(opened.number, tuple(Move(device, "late", time.time()) for device in out)))

    def _accept(self, update: Update) -> int:
        task, report, macs = update.task, update.report, self._rounds.cost(update)
        self.ledger.accept(task.device, task.spec, report, macs)
        told = UpdateAccepted(task.round, task.device, task.spec.label, report.examples, report.loss, report.seconds)
        self._tell(told)
        return macs

    def _refuse(self, number: int, failure: Failure) -> None:
        if self._journal is not None and failure.final:
            self._journal.fail(number, failure)
        if failure.faulty:
            self.ledger.quarantine(failure.device)
            self._tell(UpdateQuarantined(number, failure.device, failure.reason))
        elif failure.declined:
            self._tell(TaskDeclined(number, failure.device, failure.declined, failure.reason))
        else:
            self._tell(DeviceLost(number, failure.device, failure.reason))

    def _tell(self, event: Event) -> None:
        with self._telling:
            for observer in tuple(self._observers):
                try:
                    observer(event)
                except Exception:
                    LOG.exception("%r failed and is told nothing more of this run", observer)
                    self._observers.remove(observer)
            if isinstance(event, RunFinished):
                self._observers.clear()
