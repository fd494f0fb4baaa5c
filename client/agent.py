"""The device agent: join, and train whatever comes until the run is over."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from diastole.client.coding import Codings, expected
from diastole.client.connection import Connection, ReceivedTask
from diastole.client.data import check_tokens
from diastole.client.errors import DataError, RefusedError
from diastole.client.plans.plan import ExecutionPlan
from diastole.client.profile import cores
from diastole.client.training import CPU, train
from diastole.models.augment import check_augment
from diastole.models.losses import check_targets
from diastole.models.methods.registry import read_spec
from diastole.models.networks.config import ModelConfig
from diastole.models.spec import SubModelSpec
from diastole.models.state import State
from diastole.models.task import Task
from diastole.models.training import Examples, TrainConfig
from diastole.proto.kept import keep
from diastole.proto.payload import PayloadError, decode
from diastole.v1 import common_pb2
from diastole.v1 import device_pb2 as pb


@dataclass(frozen=True, slots=True)
class Progress:
    """One thing the agent did, for an observer; `outcome` is empty while a task is being trained."""

    round: int
    spec: str
    outcome: str = ""
    loss: float = 0.0
    seconds: float = 0.0


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
    the connection's patience, `RefusedError` if the coordinator refuses this device, and `PayloadError`, `SpecError` or
    `StateError` for a task that makes no sense.

    """
    message = "the agent failed"
    summary = Summary()
    try:
        model = connection.join()
        _check_examples(examples, model)
        cached, kept, codings = dict[str, bytes](), dict[str, bytes](), Codings()

        def fetch(ref: common_pb2.ObjectRef) -> bytes | None:
            data = cached.get(ref.sha256) or connection.download(ref)
            if data is not None:
                keep(cached, ref.sha256, data, 1)
            return data

        for received in connection.tasks():
            if connection.model is not None and connection.model != model:
                # The coordinator has come back with another experiment.
                model = connection.model
                _check_examples(examples, model)
            spec = read_spec(received.task.spec_json)
            state = codings.receive(received.task, fetch, expected(model, spec))
            if state is None:
                continue
            more = received.task.untrained if received.task.HasField("untrained") else None
            if more is not None:
                still = kept.get(more.sha256) or connection.download(more)
                if still is None:
                    continue
                keep(kept, more.sha256, still)
                state |= decode(still)
            _train(connection, model, received, spec, state, codings, examples, summary, watch, plan, place)
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


def _train(
    connection: Connection,
    model: ModelConfig,
    received: ReceivedTask,
    spec: SubModelSpec,
    state: State,
    codings: Codings,
    examples: Examples,
    summary: Summary,
    watch: Callable[[Progress], None],
    plan: ExecutionPlan,
    place: torch.device,
) -> None:
    wanted = received.task
    training = TrainConfig.from_json(wanted.training_json)
    task = Task(wanted.task_id, wanted.round, connection.name, spec, training, wanted.seed, wanted.progress)
    watch(Progress(task.round, task.spec.label))
    check_targets("examples", training.criterion, examples.y, model.gives, model.classes)
    tokens = model.vocabulary > 0
    check_augment("training", training.augment, training.criterion, model.input_shape, examples.y, tokens)
    examples = Examples(examples.x.to(place, model.dtype), examples.y.to(place))
    there = {name: tensor.to(place) for name, tensor in state.items()}
    update = train(model, task, there, examples, plan, cores())
    report = update.report
    summary.seconds += report.seconds
    payload = codings.send(task, wanted, {name: tensor.cpu() for name, tensor in update.state.items()}, state)
    if connection.cancelled(task.task_id):
        outcome = "not needed"
    elif time.monotonic() > received.due:
        outcome = "too late"
    elif 0 < wanted.max_upload_bytes < len(payload.data):
        raise PayloadError(
            f"the update of {task.task_id} has {len(payload.data)} bytes; the coordinator accepts "
            f"{wanted.max_upload_bytes}"
        )
    else:
        outcome = ANSWERS.get(connection.upload(task.task_id, payload, report), "not answered")
    if outcome == "accepted":
        codings.residuals.taken()
        summary.delivered += 1
    watch(Progress(task.round, task.spec.label, outcome, report.loss, report.seconds))


def _check_examples(examples: Examples, model: ModelConfig) -> None:
    shape = tuple(examples.x.shape[1:])
    if shape != model.input_shape:
        raise DataError(f"examples have the shape {list(shape)}; the model takes {list(model.input_shape)}")
    if not len(examples):
        raise DataError("there are no examples to train on; at least 1 is accepted")
    labels = examples.y.ndim == 1 and not examples.y.is_floating_point() and model.classes > 1
    if labels and int(examples.y.max()) >= model.classes:
        raise DataError(f"examples have the label {int(examples.y.max())}; the model has {model.classes} classes")
    check_tokens(examples.x, model)
