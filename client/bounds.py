"""The most that a device believes of what a coordinator says; the wire's own comments say the same.

A coordinator may be broken or hostile, and the device is somebody else's. So every length, number and text that arrives
has a bound, which no honest coordinator meets, and memory and work of the device follow from these bounds alone.
"""

import math
import re

from diastole.client.errors import MessageError
from diastole.v1 import common_pb2
from diastole.v1 import device_pb2 as pb

MESSAGE_BYTES = 4 << 20
"""Of one message; the largest honest ones are chunks of 1 MiB, and tasks with a weight for each of 65,536 classes."""

HEADER_BYTES = 16 << 10
"""Of the metadata beside a message, the text of an error among them."""

LONGEST_NAME = 256
"""Characters of the name of a task, a session or a run."""

MOST_RUNS = 256
"""That a coordinator may offer at a time; each costs a look at its model."""

SHORTEST_LEASE, LONGEST_LEASE = 0.5, 3600.0
"""Seconds. A lease is renewed three times, so a shorter one is a storm, and a longer one hides that nobody is there."""

LONGEST_RETRY = 60.0
"""Seconds after which an agent calls again, whatever it was told."""

MESSAGE_PAUSE = 0.005
"""Seconds between messages of the task stream: a coordinator that talks without end does not keep a core busy."""

CALL_SECONDS = 30.0
"""That a call may take whose answer is short."""

IDLE_SECONDS = 30.0
"""That a transfer may go without a byte."""

IDLE_TRIES = 3
"""How often in a row that may happen to one object."""

PAYLOAD_HEADER, TENSOR_HEADER = 4096, 512
"""Bytes of a payload beside its values, and for each tensor: its name, its shape, and what a codec adds."""

CODEC_FACTOR = 2
"""How much larger than the values themselves a codec may make them; a place beside each value is the most."""

_DIGEST = re.compile(r"[0-9a-f]{64}")


def check_name(what: str, name: str) -> str:
    """Return a name of the coordinator's. Raises `MessageError` if it is empty, too long, or not printable."""
    if not 0 < len(name) <= LONGEST_NAME or not name.isprintable():
        raise MessageError(f"{what} {name[:40]!r}; 1 to {LONGEST_NAME} printable characters are accepted")
    return name


def lease_of(seconds: float) -> float:
    """Return the nearest lease, in seconds, that a device keeps; the shortest for what is no number."""
    return SHORTEST_LEASE if math.isnan(seconds) else min(max(seconds, SHORTEST_LEASE), LONGEST_LEASE)


def deadline_of(seconds: float) -> float:
    """Return the seconds that a task may take; infinite if it says 0. Raises `MessageError` for no time at all."""
    if not seconds >= 0:
        raise MessageError(f"deadline_seconds is {seconds:g}; seconds from now, or 0 for no deadline, are accepted")
    return seconds or math.inf


def check_task(task: pb.TrainTask) -> None:
    """Check what can be checked of a task before it is read further. Raises `MessageError`."""
    check_name("task", task.task_id)
    deadline_of(task.deadline_seconds)
    if not 0 <= task.progress <= 1:
        raise MessageError(f"progress is {task.progress:g}; a share from 0 to 1 is accepted")
    for ref in _objects(task):
        if not _DIGEST.fullmatch(ref.sha256):
            raise MessageError(f"object {ref.sha256[:70]!r}; the 64 hexadecimal digits of a SHA-256 are accepted")


def check_sizes(task: pb.TrainTask, tensors: int, most: int) -> None:
    """Raise `MessageError` if an object of a task announces more bytes than a sub-model's state can have.

    Args:
        task: as it came.
        tensors: of the state, how many.
        most: bytes of their values.

    """
    accepted = CODEC_FACTOR * most + PAYLOAD_HEADER + tensors * TENSOR_HEADER
    for ref in _objects(task):
        if not 0 < ref.size <= accepted:
            raise MessageError(f"an object is announced with {ref.size} bytes; 1 to {accepted} are accepted")


def _objects(task: pb.TrainTask) -> list[common_pb2.ObjectRef]:
    """Return every object that a task may have a device download."""
    still = [task.untrained] if task.HasField("untrained") else []
    return [task.model, *still, *(step.change for step in task.coding.steps)]
