"""A round: plan, compress, gather, weigh, fold, step, learn, prepare.

Nothing here knows how devices are reached, what time it is, or where files are. The coordinator plays rounds over a
link, and Flower's strategy over Flower's messages; both make the same bits of the same updates.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from diastole.models.accumulator import Accumulator
from diastole.models.errors import StateError
from diastole.models.method import Method
from diastole.models.moment import Moment
from diastole.models.native import library
from diastole.models.networks.custom.blame import blamed
from diastole.models.proxy import Proxy
from diastole.models.seeds import derive_seed
from diastole.models.spec import SubModelSpec
from diastole.models.start import held
from diastole.models.state import State
from diastole.models.task import Task, Update
from diastole.models.ways import ways_of
from diastole.proto.coding import PLAIN, Coding
from diastole.proto.profile import Profile
from diastole.server.admission import check, expected_state
from diastole.server.link import Declined, Failure
from diastole.server.optimisers import ServerOptimiser
from diastole.server.planner import Assignment, Planner
from diastole.server.processors import Processor, finish, process
from diastole.server.sampler import Sampler, Uniform
from diastole.server.settings import Settings


@dataclass(frozen=True, slots=True)
class Opened:
    """A round that has begun.

    Attributes:
        number: counted from 1.
        tasks: what each device of the cohort is to do.
        states: the state that is sent for each spec; devices with one spec share it.
        profiles: what each device says of itself.

    """

    number: int
    tasks: Sequence[Task]
    states: Mapping[SubModelSpec, State]
    profiles: Mapping[str, Profile]


@dataclass(frozen=True, slots=True)
class Closed:
    """What a round came to: how many updates were folded in, and why it does not count; empty if it counts."""

    updates: int
    abandoned: str


class Rounds:
    """The global model, and what rounds make of it.

    `state` is the global model that the next round starts from. `sizes` are the sizes on offer.
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
    ) -> None:
        """Start from a global state; `prepare` comes before the first round.

        Args:
            settings: of the run.
            method: makes sub-models and brings them back.
            state: the global model to start from.
            proxy: the server's own examples.
            sampler: draws the cohort; by default uniformly, as many as `settings.rounds.cohort`.
            coding: how payloads are encoded, which decides how long a transfer takes.
            processors: what is done to each contribution, in this order, and to their mean, in the reverse order.

        """
        self.settings, self.method, self.state, self.sizes = settings, method, state, tuple(method.offers())
        self.planner = Planner(
            self.sizes,
            settings.training,
            settings.rounds.deadline,
            settings.ignore_budgets,
            settings.limits,
            method.assign,
            coding,
            lambda size: ways_of(settings.model, size.spec, settings.training),
        )
        # A device is told its levers, not which ones there were.
        self._training = replace(settings.training, levers=())
        self.optimiser = ServerOptimiser(settings.optimiser)
        self._proxy, self._processors = proxy, processors
        self._sampler = sampler or Uniform(settings.seed, settings.rounds.cohort)
        self._by_spec = {size.spec: size for size in self.sizes}
        self._expected = {size.spec: expected_state(method, size.spec) for size in self.sizes}
        self._held = held(settings.model, method)
        # Folding is faster with it, and comes to the same bits without.
        library.ready()

    def moment(self, number: int, *purpose: str) -> Moment:
        """Return where the run stands in a round, with a seed that derives from the purpose."""
        return Moment(number, self.settings.rounds.count, derive_seed(self.settings.seed, number, *purpose))

    def prepare(self, number: int) -> None:
        """Let the method do the server's own work for a round."""
        with blamed(self.settings.model, "in the server's own work"):
            self.state = self.method.prepare(self.state, self._proxy, self.moment(number, "prepare"))

    def open(self, number: int, devices: Mapping[str, Profile]) -> Opened:
        """Plan who does what, and compress each distinct sub-model once."""
        plan = self.planner.plan(self.moment(number, "plan"), devices, self._sampler)
        states = {spec: self.method.compress(spec) for spec in {item.size.spec for item in plan}}
        tasks = [self._task(number, item) for item in plan]
        return Opened(number, tasks, states, devices)

    def admit(
        self, opened: Opened, outcomes: Iterable[Update | Failure], refused: Callable[[Failure], None]
    ) -> Iterator[Update]:
        """Yield the updates that pass every check; call `refused` for the others.

        The planner learns how long each took, and what a device has too little memory for.
        """
        tasks = {task.device: task for task in opened.tasks}
        for outcome in outcomes:
            if isinstance(outcome, Failure):
                if outcome.declined is Declined.MEMORY:
                    task = tasks[outcome.device]
                    size, profile = self._by_spec[task.spec], opened.profiles[outcome.device]
                    self.planner.declined(outcome.device, profile, size, task.levers)
                refused(outcome)
                continue
            device, spec = outcome.device, outcome.spec
            profile = opened.profiles[device]
            try:
                check(outcome, opened.states[spec], self._expected[spec], profile.examples, len(opened.tasks))
            except StateError as error:
                refused(Failure(device, str(error), faulty=True))
                continue
            seconds, levers = outcome.report.seconds, outcome.task.levers
            self.planner.observe(device, profile, self._by_spec[spec], seconds, levers)
            # Methods see whole sub-models; what a device does not train, it need not have sent back.
            yield replace(outcome, state={**opened.states[spec], **outcome.state})

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
        number, method, cohort = opened.number, self.method, len(opened.tasks)
        open_ = {name: tensor for name, tensor in self.state.items() if name not in self._held}
        moment, accumulator = self.moment(number, "reconcile"), Accumulator(open_)
        if method.needs_all(moment):
            updates = sorted(updates, key=lambda update: update.device)
            if why := self._short(cohort, len(updates), stopped()):
                return Closed(0, why)
        for update, weight in method.weigh(updates, moment):
            try:
                dilated = method.dilate(update.state, update.spec)
                contribution = {name: patch for name, patch in dilated.items() if name not in self._held}
                draws = self.moment(number, update.device, "process")
                accumulator.fold(process(self._processors, contribution, weight, self.state, draws), weight)
            except StateError as error:
                refused(Failure(update.device, str(error), faulty=True))
            else:
                accepted(update)
        if why := self._short(cohort, accumulator.count, stopped()):
            return Closed(accumulator.count, why)
        delta, covered = accumulator.mean()
        delta = finish(self._processors, delta, covered, self.moment(number, "process"))
        self.state = {**self.state, **self.optimiser.step(open_, delta, covered)}
        self._learn(number)
        self.prepare(number + 1)
        return Closed(accumulator.count, "")

    def cost(self, update: Update) -> int:
        """Return the multiply-accumulates of the training behind an update."""
        cost = self.planner.cost(self._by_spec[update.spec], update.task.levers)
        return cost.training_macs * update.examples * update.task.training.epochs

    def _task(self, number: int, item: Assignment) -> Task:
        device, spec, training = item.device, item.size.spec, self._training
        seed = derive_seed(self.settings.seed, number, device, "train")
        progress = self.moment(number, "train").progress
        return Task(f"r{number}-{device}", number, device, spec, training, seed, progress, item.levers)

    def _short(self, cohort: int, updates: int, stopped: bool) -> str:
        """Return why a round does not count, or an empty string."""
        if stopped:
            return "stopped by the operator"
        if not self.sizes:
            return ""
        needed = max(1, -int(-self.settings.rounds.quorum * cohort // 1))
        if updates < needed:
            return f"{updates} of {cohort} devices delivered; the quorum is {needed}"
        return ""

    def _learn(self, number: int) -> None:
        config = self.settings.proxy_training
        if self._proxy is not None and len(self._proxy.training) and config.epochs:
            moment, training = self.moment(number, "proxy"), config.training(self.settings.training)
            with blamed(self.settings.model, "in the server's own training"):
                learned = self.method.learn(self.state, self._proxy, training, moment)
            self.state = {**learned, **{name: self.state[name] for name in self.state if name in self._held}}


def named(tasks: Sequence[Task], run_id: str) -> list[Task]:
    """Return the tasks with the run in their names, because agents may have had tasks of other runs."""
    return [replace(task, task_id=f"{run_id}-{task.task_id}") for task in tasks] if run_id else list(tasks)
