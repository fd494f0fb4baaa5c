"""The device agent: join, and train whatever comes until the run is over."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from diastole.client.coding import Codings
from diastole.client.connection import Connection
from diastole.client.data import check_tokens
from diastole.client.errors import BudgetError, DataError, LinkError, RefusedError
from diastole.client.held import Held
from diastole.client.inbox import ReceivedTask
from diastole.client.offer import read_offer
from diastole.client.plans.plan import ExecutionPlan
from diastole.client.profile import cores
from diastole.client.training import CPU, train
from diastole.models.errors import StoppedError
from diastole.models.networks.config import ModelConfig
from diastole.models.task import Report
from diastole.models.training import Examples
from diastole.proto.errors import DiastoleError
from diastole.proto.payload import Payload, PayloadError, decode
from diastole.proto.words import Reason, plain
from diastole.v1 import device_pb2 as pb


@dataclass(frozen=True, slots=True)
class Progress:
    """One thing the agent did, for an observer.

    Attributes:
        round: of the task.
        spec: label of its sub-model; the name of the task if it was declined.
        outcome: empty while the task is being trained.
        loss: mean training loss of the last epoch.
        seconds: of training.
        reason: why the task was declined.

    """

    round: int
    spec: str
    outcome: str = ""
    loss: float = 0.0
    seconds: float = 0.0
    reason: str = ""


@dataclass(slots=True)
class Summary:
    """What the agent did in its life: tasks delivered, and the seconds it trained."""

    delivered: int = 0
    seconds: float = 0.0


ANSWERS = {
    pb.UploadReply.OUTCOME_ACCEPTED: "accepted",
    pb.UploadReply.OUTCOME_NOT_NEEDED: "not needed",
    pb.UploadReply.OUTCOME_UNKNOWN_TASK: "unknown task",
}
HOPELESS = {
    "REPLACED",
    Reason.DEVICE_CERTIFICATE,
    Reason.DEVICE_NAME,
    Reason.DEVICE_PROFILE,
    Reason.DEVICE_TIER,
    Reason.MODEL_SCHEMA,
    Reason.PROTOCOL_VERSION,
}
"""Refusals that meet an agent in every round."""


def run(
    connection: Connection,
    examples: Examples,
    watch: Callable[[Progress], None] = lambda progress: None,
    plan: ExecutionPlan = "reference",
    place: torch.device = CPU,
) -> Summary:
    """Join and train until the coordinator says that the run is over.

    Args:
        connection: to the coordinator.
        examples: to train on.
        watch: is told of every task.
        plan: how the arithmetic is run; under "fast" a sub-model's first task begins with a search of seconds.
        place: where it is run.

    Raises `DataError` if the examples do not fit the model, `LinkError` if the coordinator stays away for longer than
    the connection's patience, and `RefusedError` if the coordinator refuses this device. A task that makes no sense, or
    that is more than the device offers, is declined, and the agent waits for the next one.

    """
    message = "the agent failed"
    summary = Summary()
    try:
        model = connection.join()
        _check_examples(examples, model)
        held, codings = Held(connection.download), Codings()
        for received in connection.tasks():
            if connection.model is not None and connection.model != model:
                # The coordinator has come back with another experiment.
                model = connection.model
                _check_examples(examples, model)
            try:
                _take_up(connection, model, received, held, codings, examples, summary, watch, plan, place)
            except DiastoleError as error:
                if connection.over or isinstance(error, LinkError) or _ends(error):
                    raise
                # The next task may make sense.
                words, why = plain(str(error)), pb.DeclineRequest.WHY_UNSPECIFIED
                if isinstance(error, BudgetError):
                    why = pb.DeclineRequest.WHY_MEMORY
                connection.decline(received.task.task_id, why, words)
                watch(Progress(received.task.round, plain(received.task.task_id, 80), "declined", reason=words))
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
    return summary


def _take_up(
    connection: Connection,
    model: ModelConfig,
    received: ReceivedTask,
    held: Held,
    codings: Codings,
    examples: Examples,
    summary: Summary,
    watch: Callable[[Progress], None],
    plan: ExecutionPlan,
    place: torch.device,
) -> None:
    """Download, train and deliver one task."""
    wanted = received.task

    def stopped() -> bool:
        return connection.over or connection.cancelled(wanted.task_id) or time.monotonic() > received.due

    def unneeded() -> str:
        told = connection.over or connection.cancelled(wanted.task_id)
        return "not needed" if told or time.monotonic() <= received.due else "too late"

    task, like = read_offer(wanted, connection.name, model, examples, connection.memory)
    state = codings.receive(wanted, lambda ref: held.model(ref, stopped), like)
    if state is not None and wanted.HasField("untrained"):
        still = held.untrained(wanted.untrained, stopped)
        state = None if still is None else state | decode(still)
    if state is None:
        watch(Progress(task.round, task.spec.label, unneeded()))
        return
    watch(Progress(task.round, task.spec.label))
    began = time.perf_counter()
    try:
        there = {name: tensor.to(place) for name, tensor in state.items()}
        those = Examples(examples.x.to(place, model.dtype), examples.y.to(place))
        update = train(model, task, there, those, plan, cores(), stopped)
    except StoppedError:
        outcome, loss, seconds = unneeded(), 0.0, time.perf_counter() - began
    else:
        loss, seconds = update.report.loss, update.report.seconds
        payload = codings.send(task, wanted, {name: tensor.cpu() for name, tensor in update.state.items()}, state)
        outcome = unneeded() if stopped() else _deliver(connection, wanted, payload, update.report, stopped)
    summary.seconds += seconds
    if outcome == "accepted":
        codings.residuals.taken()
        summary.delivered += 1
    watch(Progress(task.round, task.spec.label, outcome, loss, seconds))


def _deliver(
    connection: Connection, wanted: pb.TrainTask, payload: Payload, report: Report, stopped: Callable[[], bool]
) -> str:
    """Send an update and return how it was answered."""
    task_id, most = wanted.task_id, wanted.max_upload_bytes
    if 0 < most < len(payload.data):
        raise PayloadError(f"the update of {task_id} has {len(payload.data)} bytes; the coordinator accepts {most}")
    return ANSWERS.get(connection.upload(task_id, payload, report, stopped), "not answered")


def _ends(error: DiastoleError) -> bool:
    """Return whether an agent that meets this error in one task would meet it in every other."""
    return isinstance(error, RefusedError) and error.reason in HOPELESS


def _check_examples(examples: Examples, model: ModelConfig) -> None:
    shape = tuple(examples.x.shape[1:])
    if shape != model.input_shape:
        last = len(shape) == 3 and (shape[2], *shape[:2]) == model.input_shape
        hint = "; the channels seem to be last: x.transpose(0, 3, 1, 2) puts them first" if last else ""
        raise DataError(f"examples have the shape {list(shape)}; the model takes {list(model.input_shape)}{hint}")
    if not len(examples):
        raise DataError("there are no examples to train on; at least 1 is accepted")
    labels = examples.y.ndim == 1 and not examples.y.is_floating_point() and model.classes > 1
    if labels and int(examples.y.max()) >= model.classes:
        raise DataError(f"examples have the label {int(examples.y.max())}; the model has {model.classes} classes")
    check_tokens(examples.x, model)
