"""A round: plan, compress, gather, weigh, fold, step, learn, prepare.

Nothing here knows how devices are reached, what time it is, or where files are. The coordinator plays rounds over a
link, and Flower's strategy over Flower's messages; both make the same bits of the same updates.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from diastole.models.accumulator import unit
from diastole.models.method import Method
from diastole.models.moment import Moment
from diastole.models.native import fold, library
from diastole.models.networks.custom.blame import blamed
from diastole.models.proxy import Proxy
from diastole.models.seeds import derive_seed
from diastole.models.start import held
from diastole.models.state import State
from diastole.models.task import Task, Update
from diastole.models.ways import ways_of
from diastole.proto.coding import PLAIN, Coding
from diastole.proto.profile import Profile
from diastole.server.admission import most_examples
from diastole.server.admitting import Admitting
from diastole.server.errors import StepError
from diastole.server.events import ROLLED_BACK
from diastole.server.labels import why_not
from diastole.server.link import Failure
from diastole.server.opened import Closed, Opened
from diastole.server.optimisers import ServerOptimiser
from diastole.server.overrides import Overrides
from diastole.server.planner import Assignment, Planner
from diastole.server.processors import Processor, finish
from diastole.server.robust.fold import folding
from diastole.server.robust.norms import Norms, magnitude
from diastole.server.sampler import SAMPLERS, Sampler
from diastole.server.settings import Settings
from diastole.server.settling import Settling
from diastole.server.steps import Kept, check_step
from diastole.server.stopwatch import phase
from diastole.server.store.journal import Reopened
from diastole.server.suspensions import Suspensions
from diastole.server.trust import Trust

LEAST_ALARM = 2
"""Quarantined devices of a round below which they are nobody's fault but their own."""


class Rounds:
    """The global model, and what rounds make of it.

    `state` is the global model that the next round starts from. `sizes` are the sizes on offer. `good` is what the last
    round that counted began with.
    """

    def __init__(
        self,
        settings: Settings,
        method: Method,
        state: State,
        proxy: Proxy | None = None,
        *,
        sampler: Sampler | None = None,
        coding: Coding = PLAIN,
        processors: Sequence[Processor] = (),
        labels: Callable[[str], Mapping[str, str]] | None = None,
    ) -> None:
        """Start from a global state; `prepare` comes before the first round.

        Args:
            settings: of the run.
            method: makes sub-models and brings them back.
            state: the global model to start from.
            proxy: the server's own examples.
            sampler: draws the cohort; by default that of `settings.rounds`.
            coding: how payloads are encoded, which decides how long a transfer takes.
            processors: what is done to each contribution, in this order, and to their mean, in the reverse order.
            labels: returns those of a device; None: all may take part, whatever `settings.rounds.labels` says.

        """
        self.settings, self.method, self.state, self.sizes = settings, method, state, tuple(method.offers())
        training = settings.training if method.partial else replace(settings.training, parts=())
        self.planner = Planner(
            self.sizes,
            training,
            settings.rounds.deadline,
            settings.ignore_budgets,
            settings.limits,
            method.assign,
            coding,
            lambda size: ways_of(settings.model, size.spec, training),
        )
        self._trust = Trust(settings.admission)
        self.planner.suspended, self.planner.overrides = self.suspensions.why, Overrides(settings.overrides)
        wanted = settings.rounds.labels
        if wanted and labels is not None:
            self.planner.unlabelled = lambda device: why_not(wanted, labels(device))
        self._training = training.told
        self.optimiser = ServerOptimiser(settings.optimiser)
        self._proxy, self._processors = proxy, processors
        self._sampler = sampler or SAMPLERS[settings.rounds.sampler].make(settings.seed, settings.rounds.cohort)
        self._by_spec = {size.spec: size for size in self.sizes}
        self._admitting = Admitting(method, self.planner)
        self._held = held(settings.model, method)
        # Folding is faster with it, and comes to the same bits without.
        library.ready(fold.PART)
        self._prepared = 0
        self.good: Kept | None = None

    @property
    def suspensions(self) -> Suspensions:
        """Who is kept out."""
        return self._trust.suspensions

    def moment(self, number: int, *purpose: str) -> Moment:
        """Return where the run stands in a round, with a seed that derives from the purpose."""
        return Moment(number, self.settings.rounds.count, derive_seed(self.settings.seed, number, *purpose))

    def prepare(self, number: int) -> None:
        """Let the method do the server's own work for a round. Raises `StepError` if nothing usable comes of it."""
        with blamed(self.settings.model, "in the server's own work"):
            state = self.method.prepare(self.state, self._proxy, self.moment(number, "prepare"))
        # What a round has left was checked when it closed.
        if number == 1 or any(tensor is not self.state.get(name) for name, tensor in state.items()):
            check_step(state, self.state, f"method {self.method.whole.method}'s own work for round {number}")
        self.state, self._prepared = state, number

    def memory(self) -> dict[str, Any]:
        """Return what was learned of whom to trust, as JSON."""
        return {"prepared": self._prepared, **self._trust.memory()}

    def resume(self, state: State, method: State, memory: Mapping[str, Any]) -> None:
        """Go on from a global state, with the method's `memory()` and that of other rounds."""
        self._trust.resume(memory)
        self._go_on(state, method, memory["prepared"])

    def open(self, number: int, devices: Mapping[str, Profile]) -> Opened:
        """Plan who does what, and compress each distinct sub-model once."""
        self.suspensions.begin(number)
        with phase("plan"):
            plan = self.planner.plan(self.moment(number, "plan"), devices, self._sampler, self._trust.history.of)
        return self._opened(number, plan, devices)

    def reopen(self, reopened: Reopened) -> Opened:
        """Return a round as an earlier process had opened it; nothing is planned anew."""
        self.planner.resume(reopened.planner)
        self.suspensions.begin(reopened.number)
        plan = [Assignment(name, self._by_spec[each.spec], each.levers) for name, each in reopened.kept.items()]
        return self._opened(reopened.number, plan, {name: each.profile for name, each in reopened.kept.items()})

    def admit(
        self,
        opened: Opened,
        outcomes: Iterable[Update | Failure],
        refused: Callable[[Failure], None],
        elapsed: Callable[[], float] = lambda: math.inf,
    ) -> Iterator[Update]:
        """Yield the updates that pass every check; see `Admitting.admit`."""
        return self._admitting.admit(opened, outcomes, refused, elapsed)

    def missed(self, opened: Opened, task: Task, deadline: float) -> None:
        """Learn that a device had not delivered by the deadline."""
        profile = opened.profiles[task.device]
        self.planner.missed(task.device, profile, self._by_spec[task.spec], deadline, task.levers)

    def close(
        self,
        opened: Opened,
        updates: Iterable[Update],
        accepted: Callable[[Update], None],
        refused: Callable[[Failure], None],
        stopped: Callable[[], bool] = lambda: False,
    ) -> Closed:
        """Weigh and fold the updates as they come, step, let the server learn, and prepare the next round.

        Args:
            opened: the round.
            updates: what was admitted.
            accepted: told of every update that was folded in.
            refused: told of every update that could not be folded.
            stopped: returns whether the round is to be abandoned, even if enough updates have come.

        """
        number, method = opened.number, self.method
        open_, admission, past = self._open(), self.settings.admission, self._trust.norms
        moment, fold = self.moment(number, "reconcile"), folding(admission.fold, open_, admission.trim)
        norms = Norms(admission.norm, past, 0.0 if past else magnitude(open_), self._trust.highest)
        if method.needs_all(moment):
            with phase("fold"):
                updates = sorted(updates, key=lambda update: update.device)
            if ended := self._ended(opened, len(updates), stopped()):
                return replace(ended, updates=0)
        settling = Settling(
            opened,
            method,
            self.state,
            self._held,
            fold,
            norms,
            self._processors,
            unit(opened.examples),
            lambda device: self.moment(number, device, "process"),
            accepted,
            refused,
        )
        with phase("fold"):
            settling.settle(method.weigh(updates, moment))
        if ended := self._ended(opened, fold.count, stopped()):
            return ended
        with phase("step"):
            delta, covered = fold.mean()
            delta = finish(self._processors, delta, covered, self.moment(number, "process"))
        before = Kept.of(self.state, self._prepared, method, self.optimiser)
        try:
            with phase("step"):
                state = {**self.state, **self.optimiser.step(open_, delta, covered)}
                rate = self.settings.optimiser.learning_rate
                self.state = check_step(state, self.state, f"the server's step (server.learning_rate = {rate:g})")
            with phase("learn"):
                self._learn(number)
            with phase("prepare"):
                self.prepare(number + 1)
        except StepError as error:
            self._return(before)
            return Closed(fold.count, str(error), failed=True)
        self.good = before
        return Closed(fold.count, "", warnings=self._trust.count(opened, norms))

    def _open(self) -> State:
        """Return what of the global state devices may change."""
        return {n: tensor for n, tensor in self.state.items() if n not in self._held} if self._held else self.state

    def cost(self, update: Update) -> int:
        """Return the multiply-accumulates of the training behind an update."""
        cost = self.planner.cost(self._by_spec[update.spec], update.task.levers)
        return cost.training_macs * update.examples * update.task.training.epochs

    def _opened(self, number: int, plan: Sequence[Assignment], profiles: Mapping[str, Profile]) -> Opened:
        """Compress each distinct sub-model of a plan once."""
        with phase("encode"):
            states = {spec: self.method.compress(spec) for spec in {item.size.spec for item in plan}}
        tasks = [self._task(number, item, profiles[item.device]) for item in plan]
        most = most_examples((profiles[item.device].examples for item in plan), self.settings.admission.share)
        return Opened(number, tasks, states, profiles, most, self.settings.rounds.goal or math.inf)

    def _task(self, number: int, item: Assignment, profile: Profile) -> Task:
        device, spec, training = item.device, item.size.spec, self._training
        seed = derive_seed(self.settings.seed, number, device, "train")
        progress = self.moment(number, "train").progress
        threads = self.planner.threads(device, profile)
        return Task(f"r{number}-{device}", number, device, spec, training, seed, progress, item.levers, threads)

    def _ended(self, opened: Opened, updates: int, stopped: bool) -> Closed | None:
        """Return what a round came to that does not count, or None."""
        cohort, faulty = len(opened.tasks), len(opened.faulty)
        if stopped:
            return Closed(updates, "stopped by the operator")
        if not self.sizes:
            return None
        # Of those that were still out when enough had come nobody knows.
        delivered = updates + faulty if opened.enough else cohort
        if faulty >= LEAST_ALARM and 2 * faulty > delivered:
            return Closed(updates, *self._alarm(f"the updates of {faulty} of {delivered} devices were quarantined"))
        cohort = min(cohort, self.settings.rounds.goal or cohort)
        needed = max(1, -int(-self.settings.rounds.quorum * cohort // 1))
        if updates < needed:
            return Closed(updates, f"{updates} of {cohort} devices delivered; the quorum is {needed}")
        return None

    def _alarm(self, what: str) -> tuple[str, bool]:
        """Go back to the last good model, because most devices cannot be wrong at once; return why, and whether to end.

        If devices that are trusted bring nothing usable, the model that they were sent is at fault: it was poisoned by
        an update that passed, or by the server's own settings.
        """
        self._trust.alarms += 1
        if self._trust.alarms >= self.settings.admission.rollbacks:
            return f"{what}, {self._trust.alarms} rounds in a row; check the training's settings and the devices", True
        if self.good is None:
            return what, False
        good, self.good = self.good, None
        self._return(good)
        self._trust.history.undo()
        return f"{what}; {ROLLED_BACK}", False

    def _return(self, kept: Kept) -> None:
        """Go on from what was kept."""
        self._go_on(kept.state, kept.method, kept.number)
        self.optimiser.resume(kept.optimiser)

    def _go_on(self, state: State, method: State, prepared: int) -> None:
        """Take a state that was prepared for a round, with the method's memory of that time."""
        self.state, self._prepared = state, prepared
        self.method.resume(state, self._proxy, self.moment(prepared, "prepare"), method)

    def _learn(self, number: int) -> None:
        config = self.settings.proxy_training
        if self._proxy is not None and len(self._proxy.training) and config.epochs:
            moment, training = self.moment(number, "proxy"), config.training(self.settings.training)
            with blamed(self.settings.model, "in the server's own training"):
                learned = self.method.learn(self.state, self._proxy, training, moment)
            state = {**learned, **{name: self.state[name] for name in self.state if name in self._held}}
            step = f"the server's own training (proxy.learning_rate = {config.learning_rate:g})"
            self.state = check_step(state, self.state, step)
