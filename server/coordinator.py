"""The round loop: plan, compress, dispatch, admit and fold, close and step."""

import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing

from diastole.models.accumulator import Accumulator
from diastole.models.compressor import Compressor, Proxy, Return, Weight
from diastole.models.errors import StateError
from diastole.models.methods.registry import build
from diastole.models.moment import Moment
from diastole.models.seeds import derive_seed, reference_plan
from diastole.models.spec import SubModelSpec
from diastole.models.state import State
from diastole.models.training import Examples, evaluate
from diastole.proto.profile import Profile
from diastole.server.admission import check, expected_state
from diastole.server.errors import RoundError
from diastole.server.events import (
    DeviceLost,
    Event,
    Observer,
    RoundClosed,
    RoundStarted,
    RunFinished,
    RunStarted,
    UpdateAccepted,
    UpdateQuarantined,
)
from diastole.server.ledger import Ledger
from diastole.server.link import Failure, Link, Task, Traffic, Update
from diastole.server.optimisers import ServerOptimiser
from diastole.server.planner import Assignment, Planner
from diastole.server.settings import Settings
from diastole.server.snapshot import Snapshot
from diastole.server.stopwatch import Stopwatch


class Coordinator:
    """Runs the rounds of one federation.

    `offers` are the method's sizes, `state` is the global model, `last` the number of the last closed round and the
    model after it, `closed` what each round came to, and `ledger` what each device brought and spent. Observers are
    called in the coordinator's own thread. `clock` tells the seconds by which rounds are timed.
    """

    def __init__(
        self,
        settings: Settings,
        compressor: Compressor,
        link: Link,
        state: State,
        *,
        proxy: Proxy | None = None,
        test: Examples | None = None,
        observers: Sequence[Observer] = (),
        clock: Callable[[], float] = time.monotonic,
        run_id: str = "",
    ) -> None:
        self.settings = settings
        self.offers = compressor.specs()
        self.state = state
        self.last = (0, state)
        self.closed: list[RoundClosed] = []
        self.ledger = Ledger()
        self._compressor = compressor
        self._link = link
        self._proxy = proxy
        self._test = test
        self._observers = list(observers)
        self._clock = clock
        # Agents outlive a coordinator; a task of its next run must not pass for one of this run.
        self._run_id = f"{run_id}-" if run_id else ""
        self._optimiser = ServerOptimiser(settings.optimiser)
        self._planner = Planner(
            self.offers,
            settings.training,
            settings.seed,
            settings.rounds.cohort,
            settings.rounds.deadline,
            settings.ignore_budgets,
            settings.limits,
            compressor.assign,
        )
        self._by_spec = {offer.spec: offer for offer in self.offers}
        self._expected = {offer.spec: expected_state(settings.model, offer.spec) for offer in self.offers}
        self._resumed = False
        self._scores: dict[SubModelSpec, float] = {}
        self._stop = threading.Event()
        self._now = self._in_round = False
        self._watch = Stopwatch()

    def observe(self, observer: Observer) -> None:
        """Call `observer` with every event from now on."""
        self._observers.append(observer)

    def stop(self, *, now: bool = False) -> None:
        """End the run after the current round, or abandon that round too. May be called from any thread."""
        self._now = self._now or now
        self._stop.set()
        if now or not self._in_round:
            self._link.interrupt()

    @property
    def method(self) -> str:
        """The name of the method that makes sub-models."""
        return self._compressor.whole.method

    @property
    def stopping(self) -> bool:
        """True once `stop` was called."""
        return self._stop.is_set()

    def run(self) -> State:
        """Run every round and return the final global state.

        Raises `RoundError` when too few devices stay online for longer than the patience, and whatever the
        compressor raises when it cannot prepare.
        """
        with reference_plan():
            self._await_devices(self.settings.devices)
            names = tuple(sorted(self._link.devices()))
            self._tell(RunStarted(self.method, self.settings.rounds.count, names, len(self.closed)))
            if not self._resumed:
                self._prepare(1)
            for number in range(len(self.closed) + 1, self.settings.rounds.count + 1):
                if self._stop.is_set():
                    break
                self._round(number)
            self._tell(RunFinished(len(self.closed), self._stop.is_set()))
        return self.state

    def snapshot(self) -> Snapshot:
        """Return all that a new coordinator needs to go on behind the last closed round."""
        return Snapshot(
            state=self.state,
            compressor=self._compressor.memory(),
            optimiser=self._optimiser.memory(),
            planner=self._planner.memory(),
            closed=tuple(self.closed),
            accounts=dict(self.ledger),
        )

    def resume(self, snapshot: Snapshot) -> None:
        """Go on where `snapshot` was taken; to be called before `run`, on a coordinator of the same settings."""
        self.state, self.closed = snapshot.state, list(snapshot.closed)
        self.last = (len(self.closed), self.state)
        moment = self._moment(len(self.closed) + 1, "prepare")
        self._compressor.resume(self.state, self._proxy, moment, snapshot.compressor)
        self._optimiser.resume(snapshot.optimiser)
        self._planner.resume(snapshot.planner)
        self.ledger.update(snapshot.accounts)
        self._resumed = True

    def _round(self, number: int) -> None:
        """Plan, compress, dispatch, admit and fold; close, step, prepare the next round, evaluate."""
        began, before = self._clock(), self._link.traffic()
        self._watch = Stopwatch()
        with self._watch.waiting():
            self._await_devices(1)
        self._in_round = True
        profiles = self._link.devices()
        plan = self._planner.plan(self._moment(number, "plan"), profiles)
        states = {spec: self._compressor.compress(spec) for spec in {item.offer.spec for item in plan}}
        tasks = [self._task(number, assignment, states) for assignment in plan]
        self._tell(RoundStarted(number, {task.device: task.spec.label for task in tasks}))
        accumulator, macs = Accumulator(self.state), 0
        held: list[Update] = []
        with closing(self._admitted(number, tasks, profiles)) as updates:
            for update in updates:
                device = update.task.device
                self._planner.observe(device, profiles[device], self._by_spec[update.task.spec], update.seconds)
                if self._compressor.reconciles:
                    held.append(update)
                else:
                    macs += self._fold(accumulator, update, self._weight(update))
        if held and not self._abandoned(number, len(tasks), len(held)):
            held.sort(key=lambda update: update.task.device)
            seed = derive_seed(self.settings.seed, number, "reconcile")
            weights = self._compressor.reconcile([_as_return(update) for update in held], seed)
            for update, weight in zip(held, weights, strict=True):
                macs += self._fold(accumulator, update, weight)
        abandoned = self._abandoned(number, len(tasks), accumulator.count)
        if not abandoned:
            self.state = self._optimiser.step(self.state, *accumulator.mean())
            self._train_on_proxy(number)
            self._prepare(number + 1)
        self._close(number, accumulator.count, abandoned, began, before, macs)

    def _task(self, number: int, assignment: Assignment, states: Mapping[SubModelSpec, State]) -> Task:
        spec = assignment.offer.spec
        return Task(
            task_id=f"{self._run_id}r{number}-{assignment.device}",
            round=number,
            device=assignment.device,
            spec=spec,
            state=states[spec],
            training=self.settings.training,
            seed=derive_seed(self.settings.seed, number, assignment.device, "train"),
            progress=self._moment(number, "train").progress,
        )

    def _admitted(
        self, number: int, tasks: Sequence[Task], profiles: Mapping[str, Profile]
    ) -> Generator[Update, None, None]:
        """Dispatch the tasks and yield the updates that pass every check; tell of all others."""
        deadline = self.settings.rounds.deadline
        out = {task.device: task for task in tasks}
        with closing(self._link.dispatch(tasks, deadline)) as outcomes:
            for outcome in self._watch.awaited(outcomes):
                out.pop(outcome.device if isinstance(outcome, Failure) else outcome.task.device, None)
                if isinstance(outcome, Failure):
                    self._failed(number, outcome)
                    continue
                device = outcome.task.device
                try:
                    check(outcome, self._expected[outcome.task.spec], profiles[device].examples, len(tasks))
                except StateError as error:
                    self._failed(number, Failure(device, str(error), faulty=True))
                    continue
                yield outcome
        if deadline is not None and not self._stop.is_set():
            for task in out.values():
                self._planner.missed(task.device, profiles[task.device], self._by_spec[task.spec], deadline)

    def _fold(self, accumulator: Accumulator, update: Update, weight: Weight) -> int:
        """Take an update in and return the multiply-accumulates it cost; 0 if it was refused after all."""
        task = update.task
        try:
            accumulator.fold(self._compressor.dilate(update.state, task.spec), weight)
        except StateError as error:
            self._failed(task.round, Failure(task.device, str(error), faulty=True))
            return 0
        macs = self._by_spec[task.spec].cost.training_macs * update.examples * task.training.epochs
        self.ledger.accept(task.device, task.spec, update.seconds, macs)
        self._tell(
            UpdateAccepted(task.round, task.device, task.spec.label, update.examples, update.loss, update.seconds)
        )
        return macs

    def _weight(self, update: Update) -> Weight:
        return self._compressor.reconcile([_as_return(update)], 0)[0]

    def _failed(self, number: int, failure: Failure) -> None:
        if failure.faulty:
            self.ledger.quarantine(failure.device)
            self._tell(UpdateQuarantined(number, failure.device, failure.reason))
        else:
            self._tell(DeviceLost(number, failure.device, failure.reason))

    def _abandoned(self, number: int, cohort: int, updates: int) -> str:
        """Return why the round does not count, or an empty string."""
        if self._now:
            return "stopped by the operator"
        needed = max(1, -int(-self.settings.rounds.quorum * cohort // 1))
        if updates < needed:
            return f"{updates} of {cohort} devices delivered; the quorum is {needed}"
        return ""

    def _train_on_proxy(self, number: int) -> None:
        config = self.settings.proxy_training
        if self._proxy is not None and len(self._proxy.training) and config.epochs:
            moment = self._moment(number, "proxy")
            self.state = self._compressor.learn(self.state, self._proxy, config.training, moment)

    def _prepare(self, number: int) -> None:
        self._compressor.prepare(self.state, self._proxy, self._moment(number, "prepare"))

    def _moment(self, number: int, purpose: str) -> Moment:
        return Moment(number, self.settings.rounds.count, derive_seed(self.settings.seed, number, purpose))

    def _close(
        self, number: int, updates: int, abandoned: str, began: float, before: Mapping[str, Traffic], macs: int
    ) -> None:
        worked = self._watch.worked
        down, up = self.ledger.move(before, self._link.traffic())
        rounds = self.settings.rounds
        self._scores.clear()
        due = number % rounds.evaluate_every == 0 or number == rounds.count or self._stop.is_set()
        closed = RoundClosed(
            round=number,
            updates=updates,
            abandoned=abandoned,
            accuracy=self.accuracy() if due else None,
            tier_accuracy=self.tier_accuracy() if due else {},
            bytes_down=down,
            bytes_up=up,
            seconds=self._clock() - began,
            macs=macs,
            wall_seconds=self._watch.seconds,
            server_seconds=worked,
        )
        self.closed.append(closed)
        self.last = (number, self.state)
        self._in_round = False
        self._tell(closed)

    def accuracy(self) -> float | None:
        """Return the global model's accuracy on the test set, or None without one."""
        return self._accuracy(self._compressor.whole)

    def tier_accuracy(self) -> dict[str, float]:
        """Return the accuracy of each exported size's sub-model, as the next round would send it out, by label."""
        scores = {offer.spec.label: self._accuracy(offer.spec) for offer in self.offers if offer.exported}
        return {label: score for label, score in scores.items() if score is not None}

    def _accuracy(self, spec: SubModelSpec) -> float | None:
        if self._test is None:
            return None
        if spec not in self._scores:
            module = build(self.settings.model, spec)
            module.load_state_dict(self._compressor.compress(spec))
            self._scores[spec] = evaluate(module, self._test).accuracy
        return self._scores[spec]

    def _await_devices(self, count: int) -> None:
        patience = self.settings.rounds.patience
        if self.settings.rounds.count and not self._link.wait(count, patience) and not self._stop.is_set():
            online = len(self._link.devices())
            raise RoundError(f"{online} devices online after waiting {patience:g} s; needed {count}")

    def _tell(self, event: Event) -> None:
        for observer in self._observers:
            observer(event)


def _as_return(update: Update) -> Return:
    return Return(update.task.spec, update.state, update.examples)
