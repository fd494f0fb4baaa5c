"""The round loop: plan, compress, dispatch, admit and fold, close and step."""

import math
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as validated

from diastole.models.accumulator import MAX_TOTAL_WEIGHT, Accumulator, check_change
from diastole.models.compressor import Compressor, Proxy, Return
from diastole.models.errors import StateError
from diastole.models.networks import ModelConfig, build
from diastole.models.seeds import derive_seed, reference_plan
from diastole.models.spec import SubModelSpec
from diastole.models.state import State, check_state
from diastole.models.training import Examples, TrainConfig, evaluate
from diastole.proto.profile import Profile
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
from diastole.server.link import Failure, Link, Task, Update
from diastole.server.optimisers import ServerOptimiser, ServerOptimiserConfig
from diastole.server.planner import Assignment, Planner
from diastole.server.proxy import ProxyConfig, train_on_proxy


@validated(frozen=True, slots=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class RoundConfig:
    """When a round begins and when it closes.

    Attributes:
        count: rounds in the run.
        cohort: devices a round; None for every device that something fits.
        quorum: share of the cohort whose updates a round needs to count, in (0, 1].
        deadline: seconds a round may take; None for no limit. Simulated devices do not mind it.
        patience: seconds to wait for enough devices to be online before the run is given up.
        evaluate_every: rounds between two evaluations; the last round is always evaluated.

    """

    count: int = Field(default=10, ge=0)
    cohort: int | None = Field(default=None, ge=1)
    quorum: float = Field(default=0.5, gt=0, le=1)
    deadline: float | None = Field(default=None, gt=0)
    patience: float = Field(default=60.0, ge=0)
    evaluate_every: int = Field(default=1, ge=1)


@dataclass(frozen=True, slots=True)
class Settings:
    """What a run is, apart from its devices.

    Attributes:
        model: the global model.
        training: how devices train.
        rounds: when rounds begin and close.
        seed: every draw of the run derives from it.
        optimiser: the server's.
        proxy_training: the server's own training after each round.
        devices: online before the first round; the smallest cohort a quorum is counted of.
        ignore_budgets: give every device the largest size.

    """

    model: ModelConfig
    training: TrainConfig
    rounds: RoundConfig
    seed: int
    optimiser: ServerOptimiserConfig = field(default_factory=ServerOptimiserConfig)
    proxy_training: ProxyConfig = field(default_factory=ProxyConfig)
    devices: int = 1
    ignore_budgets: bool = False


class Coordinator:
    """Runs the rounds of one federation.

    `state` is the global model after the last closed round, `closed` what each round came to, and `ledger` what
    each device brought and spent. Observers are called in the coordinator's own thread.
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
    ) -> None:
        self.settings = settings
        self.state = state
        self.closed: list[RoundClosed] = []
        self.ledger = Ledger()
        self._compressor = compressor
        self._link = link
        self._proxy = proxy
        self._test = test
        self._observers = list(observers)
        self._offers = compressor.specs()
        self._optimiser = ServerOptimiser(settings.optimiser)
        self._planner = Planner(
            self._offers,
            settings.training,
            settings.seed,
            settings.rounds.cohort,
            settings.rounds.deadline,
            settings.ignore_budgets,
        )
        self._expected = {offer.spec: _shapes(settings.model, offer.spec) for offer in self._offers}
        self._stop = threading.Event()
        self._now = False

    def observe(self, observer: Observer) -> None:
        """Call `observer` with every event from now on."""
        self._observers.append(observer)

    def stop(self, *, now: bool = False) -> None:
        """End the run after the current round, or abandon that round too. May be called from any thread."""
        self._now = self._now or now
        self._stop.set()
        if now:
            self._link.interrupt()

    @property
    def method(self) -> str:
        """The name of the method that makes sub-models."""
        return self._offers[0].spec.method

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
            self._tell(RunStarted(self.method, self.settings.rounds.count, names))
            self._prepare(0)
            for number in range(1, self.settings.rounds.count + 1):
                if self._stop.is_set():
                    break
                self._round(number)
            self._tell(RunFinished(len(self.closed), self._stop.is_set()))
        return self.state

    def _round(self, number: int) -> None:
        """Plan, compress, dispatch, admit and fold; close, step, prepare the next round, evaluate."""
        began, before = time.monotonic(), self._moved()
        self._await_devices(1)
        profiles = self._link.devices()
        plan = self._planner.plan(number, profiles)
        tasks = [self._task(number, assignment) for assignment in plan]
        self._tell(RoundStarted(number, {task.device: task.spec.label for task in tasks}))
        accumulator = Accumulator(self.state)
        held: list[Update] = []
        with closing(self._admitted(number, tasks, profiles)) as updates:
            for update in updates:
                offer = next(item.offer for item in plan if item.device == update.task.device)
                self._planner.observe(update.task.device, profiles[update.task.device], offer, update.seconds)
                if self._compressor.reconciles:
                    held.append(update)
                else:
                    self._fold(accumulator, update, self._weight(update))
        if held and not self._abandoned(number, len(tasks), len(held)):
            held.sort(key=lambda update: update.task.device)
            seed = derive_seed(self.settings.seed, number, "reconcile")
            weights = self._compressor.reconcile([_as_return(update) for update in held], seed)
            for update, weight in zip(held, weights, strict=True):
                self._fold(accumulator, update, weight)
        abandoned = self._abandoned(number, len(tasks), accumulator.count)
        if not abandoned:
            self.state = self._optimiser.step(self.state, *accumulator.mean())
            self._train_on_proxy(number)
            self._prepare(number)
        self._close(number, accumulator.count, abandoned, began, before)

    def _task(self, number: int, assignment: Assignment) -> Task:
        spec = assignment.offer.spec
        return Task(
            task_id=f"r{number}-{assignment.device}",
            round=number,
            device=assignment.device,
            spec=spec,
            state=self._compressor.compress(spec),
            training=self.settings.training,
            seed=derive_seed(self.settings.seed, number, assignment.device, "train"),
        )

    def _admitted(
        self, number: int, tasks: Sequence[Task], profiles: Mapping[str, Profile]
    ) -> Generator[Update, None, None]:
        """Dispatch the tasks and yield the updates that pass every check; tell of all others."""
        with closing(self._link.dispatch(tasks, self.settings.rounds.deadline)) as outcomes:
            for outcome in outcomes:
                if isinstance(outcome, Failure):
                    self._failed(number, outcome)
                    continue
                device = outcome.task.device
                try:
                    check_state(outcome.state, self._expected[outcome.task.spec])
                    check_change(outcome.state, outcome.task.state)
                    _check_report(outcome, profiles[device].examples, len(tasks))
                except StateError as error:
                    self._failed(number, Failure(device, str(error), faulty=True))
                    continue
                yield outcome

    def _fold(self, accumulator: Accumulator, update: Update, weight: float) -> None:
        task = update.task
        try:
            accumulator.fold(self._compressor.dilate(update.state, task.spec), weight)
        except StateError as error:
            self._failed(task.round, Failure(task.device, str(error), faulty=True))
            return
        cost = next(offer.cost for offer in self._offers if offer.spec == task.spec)
        macs = cost.training_macs * update.examples * task.training.epochs
        self.ledger.accept(task.device, task.spec, update.seconds, macs)
        self._tell(
            UpdateAccepted(task.round, task.device, task.spec.label, update.examples, update.loss, update.seconds)
        )

    def _weight(self, update: Update) -> float:
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
        if self._proxy is not None:
            seed = derive_seed(self.settings.seed, number, "proxy")
            self.state = train_on_proxy(
                self.settings.model, self.state, self._proxy.training, self.settings.proxy_training, seed
            )

    def _prepare(self, number: int) -> None:
        self._compressor.prepare(self.state, self._proxy, derive_seed(self.settings.seed, number, "prepare"))

    def _close(self, number: int, updates: int, abandoned: str, began: float, before: tuple[int, int]) -> None:
        down, up = self._moved()
        self.ledger.move(self._link.traffic())
        rounds = self.settings.rounds
        due = number % rounds.evaluate_every == 0 or number == rounds.count or self._stop.is_set()
        closed = RoundClosed(
            round=number,
            updates=updates,
            abandoned=abandoned,
            accuracy=self.accuracy() if due else None,
            tier_accuracy=self.tier_accuracy() if due else {},
            bytes_down=down - before[0],
            bytes_up=up - before[1],
            seconds=time.monotonic() - began,
        )
        self.closed.append(closed)
        self._tell(closed)

    def accuracy(self) -> float | None:
        """Return the global model's accuracy on the test set, or None without one."""
        return self._accuracy(None, self.state)

    def tier_accuracy(self) -> dict[str, float]:
        """Return the accuracy of each size's sub-model, as the next round would send it out, by label."""
        scores = {o.spec.label: self._accuracy(o.spec, self._compressor.compress(o.spec)) for o in self._offers}
        return {label: score for label, score in scores.items() if score is not None}

    def _accuracy(self, spec: SubModelSpec | None, state: State) -> float | None:
        if self._test is None:
            return None
        module = build(self.settings.model, spec)
        module.load_state_dict(state)
        return evaluate(module, self._test).accuracy

    def _await_devices(self, count: int) -> None:
        patience = self.settings.rounds.patience
        if self.settings.rounds.count and not self._link.wait(count, patience) and not self._stop.is_set():
            online = len(self._link.devices())
            raise RoundError(f"{online} devices online after waiting {patience:g} s; needed {count}")

    def _moved(self) -> tuple[int, int]:
        traffic = self._link.traffic().values()
        return sum(item.down for item in traffic), sum(item.up for item in traffic)

    def _tell(self, event: Event) -> None:
        for observer in self._observers:
            observer(event)


def _as_return(update: Update) -> Return:
    return Return(update.task.spec, update.state, update.examples)


def _shapes(model: ModelConfig, spec: SubModelSpec) -> State:
    with torch.device("meta"):
        return dict(build(model, spec).named_parameters())


def _check_report(update: Update, announced: int, cohort: int) -> None:
    """Check what a device says of its own training. Raises `StateError`."""
    if not 1 <= update.examples <= announced:
        raise StateError(f"update counts {update.examples} examples; the device announced {announced}")
    # So that no device can use up the weight that all of them together may have.
    if update.examples > MAX_TOTAL_WEIGHT / cohort:
        most = int(MAX_TOTAL_WEIGHT / cohort)
        raise StateError(f"update counts {update.examples} examples; in a cohort of {cohort}, {most} are accepted")
    if not (0 <= update.loss < math.inf and 0 <= update.seconds < math.inf):
        raise StateError(
            f"update reports loss {update.loss} and {update.seconds} seconds; both must be finite and at least 0"
        )
