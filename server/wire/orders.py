"""A task as it goes out: its payloads, and how they are encoded."""

from diastole.models.task import Task
from diastole.proto.codecs.packing import shapes_of
from diastole.proto.coding import Coding
from diastole.server.outgoing import Sent
from diastole.server.wire.exchange import OwedTask
from diastole.v1 import device_pb2 as pb


def order(task: Task, coding: Coding, sent: Sent, most: int) -> OwedTask:
    """Return a task as it goes out.

    Args:
        task: what is to be done.
        coding: how payloads are encoded.
        sent: the task's sub-model.
        most: bytes that an exact update may have.

    """
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
