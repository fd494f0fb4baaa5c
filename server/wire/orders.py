"""A task as it goes out: its payloads, and how they are encoded."""

from diastole.models.state import State, tensor_bytes
from diastole.models.task import Task
from diastole.proto.codecs.packing import shapes_of
from diastole.proto.coding import Coding
from diastole.server.outgoing import Sent
from diastole.server.wire.exchange import OwedTask
from diastole.v1 import device_pb2 as pb

HEADER_BYTES = 4096
HEADER_BYTES_PER_TENSOR = 256


def order(task: Task, coding: Coding, sent: Sent, state: State) -> OwedTask:
    """Return a task as it goes out.

    Args:
        task: what is to be done.
        coding: how payloads are encoded.
        sent: the task's sub-model.
        state: its tensors.

    """
    # An exact update: its tensors and a generous header.
    most = tensor_bytes(state) + HEADER_BYTES + HEADER_BYTES_PER_TENSOR * len(state)
    offer = sent.offer
    steps = tuple(step.change for step in offer.steps)
    coded = pb.Coding(
        update=coding.up.name,
        version=offer.version,
        change=coding.down.name if offer.version else "",
        steps=[pb.Step(base=step.base, change=step.change.ref()) for step in offer.steps],
    )
    return OwedTask(
        task,
        offer.whole,
        coding.bytes_up(shapes_of(sent.moving), most),
        sent.fixed,
        offer.codec.name,
        None if coding.plain else coded,
        steps,
    )


def message(owed: OwedTask, remaining: float | None, metric: str, run_id: str) -> pb.Task:
    """Return what a device is told of a task.

    Args:
        owed: the task.
        remaining: seconds that are left for it; None without a limit.
        metric: what the run is judged by first.
        run_id: of the run.

    """
    task = owed.task
    return pb.Task(
        train=pb.TrainTask(
            task_id=task.task_id,
            round=task.round,
            spec_json=task.spec.to_json(),
            model=owed.payload.ref(),
            # What a device is told is the rate of this round, whatever schedules it knows of.
            training_json=task.training.at(task.progress).to_json(),
            seed=task.seed,
            progress=task.progress,
            levers_json=task.levers.to_json(),
            deadline_seconds=max(remaining, 0.001) if remaining is not None else 0.0,
            max_upload_bytes=owed.most,
            codec=owed.codec,
            coding=owed.coding,
            untrained=owed.untrained.ref() if owed.untrained else None,
            metric=metric,
            run_id=run_id,
            threads=task.threads,
        )
    )
