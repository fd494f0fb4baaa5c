"""The device agent: join, and train whatever comes until the run is over."""

import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace

import torch

from diastole.client.budget import Watchman
from diastole.client.choices import ExecutionPlan
from diastole.client.coding import Codings, CodingsOfRuns
from diastole.client.connection import Connection
from diastole.client.current import Current
from diastole.client.errors import BudgetError, LinkError, PausedError, RefusedError, RunFailedError
from diastole.client.held import Held
from diastole.client.inbox import ReceivedTask
from diastole.client.keeper import Keeper, Step, key_of
from diastole.client.measured import Measured
from diastole.client.offer import cost_here, read_offer
from diastole.client.plans.plan import Plan
from diastole.client.plans.planned import plan_for
from diastole.client.scoring import inputs_of, score
from diastole.client.shift import LOOK_SECONDS, Shift
from diastole.client.sources.source import DataSource, Fixed
from diastole.client.speeds import known, told
from diastole.client.supply import Supply
from diastole.client.telling import tell
from diastole.client.terms import Progress, Summary, Terms
from diastole.client.training import CPU, train
from diastole.client.walls import growth, out_of_memory, room
from diastole.models.allocator import give_back
from diastole.models.errors import StateError, StoppedError
from diastole.models.networks.config import ModelConfig
from diastole.models.state import State
from diastole.models.task import Report, Task, Update
from diastole.models.training import Examples
from diastole.proto.about import about
from diastole.proto.errors import DiastoleError
from diastole.proto.payload import Payload, PayloadError, decode
from diastole.proto.words import Reason, plain
from diastole.v1 import device_pb2 as pb

ANSWERS = {
    pb.UploadReply.OUTCOME_ACCEPTED: "accepted",
    pb.UploadReply.OUTCOME_NOT_NEEDED: "not needed",
    pb.UploadReply.OUTCOME_UNKNOWN_TASK: "unknown task",
}
HOPELESS = {
    "REPLACED",
    Reason.DEVICE_CERTIFICATE,
    Reason.DEVICE_NAME,
    Reason.DEVICE_ONLINE,
    Reason.DEVICE_PROFILE,
    Reason.DEVICE_REVOKED,
    Reason.DEVICE_TIER,
    Reason.MODEL_SCHEMA,
    Reason.PROTOCOL_VERSION,
}
"""Refusals that meet an agent in every round."""


def run(
    connection: Connection,
    examples: Examples | DataSource,
    watch: Callable[[Progress], None] = lambda progress: None,
    plan: ExecutionPlan = "reference",
    place: torch.device = CPU,
    terms: Terms = Terms(),  # noqa: B008 (frozen)
) -> Summary:
    """Join and train until the coordinator says that the run is over.

    Args:
        connection: to the coordinator.
        examples: to train on; a source is asked anew for each task.
        watch: is told of every task.
        plan: how the arithmetic is run; under "fast" a sub-model's first task begins with a search of seconds.
        place: where it is run.
        terms: on which the agent works.

    Raises `DataError` if the examples do not fit the model, `LinkError` if the coordinator stays away for longer than
    the connection's patience, `RefusedError` if the coordinator refuses this device, and `RunFailedError` if it says
    that the run has failed. A task that makes no sense, or that is more than the device offers, is declined, and the
    agent waits for the next one.

    """
    message = "the agent failed"
    source = Fixed(examples) if isinstance(examples, Examples) else examples
    worker = _Worker(connection, source, watch, plan, place, terms)
    try:
        worker.await_leave()
        worker.look()
        connection.offered.fits, connection.offered.speeds = worker.fits, worker.speeds
        connection.join()
        worker.measure()
        # Plans keep what is freed, which is right while a device trains, but not while it waits.
        for received in connection.tasks(give_back):
            number = received.task.round
            with about(plain(received.task.run_id or received.task.task_id.rpartition(f"-r{number}-")[0]), number):
                worker.take_up(received)
            worker.measure()
        message = "the run is over"
    except RefusedError:
        # A call that the end of the run cut short.
        if not connection.over:
            raise
    except KeyboardInterrupt:
        message = "stopped on the device"
        raise
    finally:
        connection.close(message)
        worker.finish(over=connection.over)
    if connection.failed:
        raise RunFailedError(f"the run failed: {connection.failed}")
    return worker.summary


class _Worker:
    """Does one task after another, and keeps what the next one can use."""

    def __init__(
        self,
        connection: Connection,
        source: DataSource,
        watch: Callable[[Progress], None],
        plan: ExecutionPlan,
        place: torch.device,
        terms: Terms,
    ) -> None:
        self.summary = Summary()
        self._connection, self._observer = connection, watch
        self._supply = Supply(source)
        self._current = Current(terms.folder, terms.personal, terms.save_seconds)
        self._plan, self._place, self._terms = plan, place, terms
        self._held, self._codings = Held(connection.download, terms.folder), CodingsOfRuns(terms.folder)
        self._keeper, self._watchman = Keeper(terms.folder, terms.save_seconds), Watchman(terms.budget)
        self._measures = terms.measures
        self._measured: tuple[ModelConfig, ...] | None = None

    def _watch(self, progress: Progress) -> None:
        tell(progress)
        self._observer(progress)

    def finish(self, *, over: bool) -> None:
        """Keep what the device itself uses from now on."""
        self._current.finish(over=over)

    def look(self) -> None:
        """Look at the examples, before any model is met."""
        self._supply.look()

    def await_leave(self) -> None:
        """Do nothing for as long as the owner wants; what is free then is announced at the next join."""
        told = ""
        while (why := self._watchman.obstacle()) and not self._connection.over:
            if why != told:
                self._watch(Progress(0, "", "paused", reason=why))
            told = why
            threading.Event().wait(LOOK_SECONDS)
        if told:
            self._announce()

    def speeds(self, models: Iterable[ModelConfig]) -> Measured | None:
        """Return this device's speeds at training models, if they have been measured."""
        return known(self._plan, self._terms.budget.most_threads, self._place.type, models) if self._measures else None

    def measure(self) -> None:
        """Measure this device's speeds at training what it is offered, unless they are known, and say them.

        That lasts for as long as there is nothing else to do, and is tried again later.
        """
        connection, threads = self._connection, self._terms.budget.most_threads
        models = tuple(connection.offered.models.values())
        if not self._measures or connection.over or models == self._measured:
            return
        with suppress(StoppedError):
            found = told(
                self._plan,
                threads,
                self._place.type,
                lambda: connection.over or connection.inbox.waits,
                models,
                connection.memory,
            )
            self._measured = models
            if connection.tell(found):
                connection.rejoin()
        give_back()

    def fits(self, model: ModelConfig) -> None:
        """Raise `DataError` if the examples do not fit a model."""
        self._supply.check(model)

    def _announce(self) -> None:
        memory = self._terms.memory
        counts = self._supply.class_counts() if self._terms.share_classes else ()
        examples = sum(counts) or self._supply.seen
        self._connection.announce(memory() if memory else self._connection.memory, examples, counts)

    def take_up(self, received: ReceivedTask) -> None:
        """Do a task, or decline it. Raises what would meet this agent in every other task as well."""
        connection, task_id = self._connection, received.task.task_id
        try:
            self._do(received)
        except (DiastoleError, RuntimeError, MemoryError) as error:
            if connection.over or isinstance(error, LinkError) or _ends(error):
                raise
            words, why = plain(str(error)), pb.DeclineRequest.WHY_UNSPECIFIED
            if wanted := out_of_memory(error):
                words, why = f"there was no memory for {wanted}", pb.DeclineRequest.WHY_MEMORY
            elif isinstance(error, BudgetError):
                why = pb.DeclineRequest.WHY_MEMORY
            elif isinstance(error, PausedError):
                why = pb.DeclineRequest.WHY_PAUSED
            elif not isinstance(error, DiastoleError):
                raise
        else:
            self._current.leave(connection.offered.models)
            # Before it joins anew: the next task may have been planned already, by what was known until now.
            if self._supply.grown(connection.examples):
                self._announce()
                connection.rejoin()
            return
        # The next task may make sense, or be smaller. What this one took is free by now.
        give_back()
        self._keeper.forget()
        connection.decline(task_id, why, words)
        self._watch(Progress(received.task.round, plain(task_id, 80), "declined", reason=words))
        if why == pb.DeclineRequest.WHY_PAUSED:
            self.await_leave()
            connection.rejoin()

    def _do(self, received: ReceivedTask) -> None:
        """Download, train and deliver one task."""
        connection, wanted = self._connection, received.task
        run_id, model = connection.offered.run_of(wanted)
        if received.again and connection.settled(wanted.task_id):
            return

        def stopped() -> bool:
            return connection.over or connection.cancelled(wanted.task_id) or time.monotonic() > received.due

        def unneeded() -> str:
            told = connection.over or connection.cancelled(wanted.task_id)
            return "not needed" if told or time.monotonic() <= received.due else "too late"

        if obstacle := self._watchman.obstacle():
            raise PausedError(obstacle)
        examples = self._supply.newest(model, connection.examples)
        task, like = read_offer(wanted, connection.name, model, examples, connection.memory, self._room())
        step = self._keeper.begin(key_of(run_id, wanted, examples))
        done, codings = self._keeper.finished(), self._codings.of(run_id, connection.offered.models)
        if done is None:
            state = self._received(codings, wanted, like, stopped)
            if state is None:
                self._note(task, unneeded(), 0.0, 0.0)
                return
            self._watch(Progress(task.round, task.spec.label))
            memory = self._memory(model, task, examples)
            plan = step.plan if step else self._planned(model, task, memory)
            shift = self._shift(task, plan, step, stopped, memory)
            try:
                update = self._train(model, task, state, examples, plan, shift, step)
            except StoppedError:
                self._note(task, unneeded(), 0.0, shift.seconds)
                return
            trained = {name: tensor.cpu() for name, tensor in update.state.items()}
            payload = codings.send(task, wanted, trained, state)
            whole = state | trained
            self._current.take(run_id, model, task, whole, examples)
            shared, kept = self._terms.share_scores, self._terms.kept()
            x = inputs_of(examples)
            scores = score(model, task, wanted.metric, (state, whole), kept, x) if shared else None
            done = payload, replace(update.report, seconds=shift.seconds, scores=scores)
            if shift.seconds >= self._terms.save_seconds:
                self._keeper.finish(*done)
        payload, report = done
        outcome = unneeded() if stopped() else _deliver(connection, wanted, payload, report, stopped)
        if outcome == "accepted":
            codings.taken()
            self.summary.delivered += 1
        self._note(task, outcome, report.loss, report.seconds)

    def _note(self, task: Task, outcome: str, loss: float, seconds: float) -> None:
        """Say what came of a task, of which nothing needs to be kept any more."""
        self._keeper.forget()
        self.summary.seconds += seconds
        self._watch(Progress(task.round, task.spec.label, outcome, loss, seconds))

    def _memory(self, model: ModelConfig, task: Task, examples: Examples) -> int | None:
        """Return the bytes that training may count; beside what an owner has given for tensors, what passes counts."""
        memory = self._connection.memory if self._place.type == "cpu" else None
        if memory is None or self._terms.memory is not None:
            return memory
        return memory + cost_here(model, task.spec, task.training, task.levers, len(examples)).passing

    def _planned(self, model: ModelConfig, task: Task, memory: int | None) -> Plan:
        threads, place = self._terms.budget.within(task.threads), self._place.type
        limit = growth(memory) if place == "cpu" else None
        return plan_for(self._plan, model, task.spec, task.training, threads, place, limit)

    def _room(self) -> int | None:
        return room() if self._place.type == "cpu" else None

    def _received(
        self, codings: Codings, wanted: pb.TrainTask, like: State, stopped: Callable[[], bool]
    ) -> State | None:
        """Download a sub-model; None if nobody needs it any more."""
        state = codings.receive(wanted, lambda ref: self._held.model(ref, stopped), like)
        if state is None or not wanted.HasField("untrained"):
            return state
        still = self._held.untrained(wanted.untrained, stopped)
        return None if still is None else state | decode(still)

    def _shift(
        self, task: Task, plan: Plan, step: Step | None, stopped: Callable[[], bool], memory: int | None
    ) -> Shift:
        def tell(why: str) -> None:
            self._watch(Progress(task.round, task.spec.label, "paused" if why else "going on", reason=why))

        return Shift(
            self._keeper,
            plan,
            self._watchman,
            cpu=self._terms.budget.cpu,
            memory=memory,
            seconds=step.seconds if step else 0.0,
            given_up=stopped,
            tell=tell,
        )

    def _train(
        self,
        model: ModelConfig,
        task: Task,
        state: State,
        examples: Examples,
        plan: Plan,
        shift: Shift,
        step: Step | None,
    ) -> Update:
        """Train a sub-model, from a saved step on if it fits."""
        there = {name: tensor.to(self._place) for name, tensor in state.items()}
        examples = examples.to(model.dtype)
        if self._place.type != "cpu" or task.training.fit:
            # All of them at once: a file larger than memory serves this project's own loop on the processor alone.
            examples = examples.part(0, len(examples))
            examples = Examples(examples.x.to(self._place), examples.y.to(self._place))
        arguments = (model, task, there, examples, plan, plan.threads, shift.stopped, shift.between)
        if step is not None:
            with suppress(StateError):
                return train(*arguments, step.tensors)
        return train(*arguments)


def _deliver(
    connection: Connection, wanted: pb.TrainTask, payload: Payload, report: Report, stopped: Callable[[], bool]
) -> str:
    """Send an update and return how it was answered."""
    task_id, most = wanted.task_id, wanted.max_upload_bytes
    if 0 < most < len(payload.data):
        raise PayloadError(f"the update of {task_id} has {len(payload.data)} bytes; the coordinator accepts {most}")
    return ANSWERS.get(connection.upload(task_id, payload, report, stopped), "not answered")


def _ends(error: Exception) -> bool:
    """Return whether an agent that meets this error in one task would meet it in every other."""
    return isinstance(error, RefusedError) and error.reason in HOPELESS
