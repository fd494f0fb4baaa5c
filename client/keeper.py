"""What an agent keeps of its task, so that a new start goes on: the last saved step, and the finished update."""

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from diastole.client.errors import PlanError
from diastole.client.plans.plan import Plan
from diastole.client.statefolder import StateFolder
from diastole.models.task import Report, Scores
from diastole.models.training import Examples
from diastole.models.trainstate import TrainState
from diastole.proto.jsontext import from_json
from diastole.proto.payload import Payload, PayloadError, decode, encode
from diastole.v1 import device_pb2 as pb

SAVE_SECONDS = 15.0
MOST_SHARE = 0.02
"""Of the time of training that may go into saving."""


@dataclass(frozen=True, slots=True)
class Step:
    """A saved step.

    Attributes:
        tensors: of `TrainState.tensors`.
        seconds: of training until then.
        plan: under which it was trained.

    """

    tensors: Mapping[str, Tensor]
    seconds: float
    plan: Plan


def key_of(run_id: str, task: pb.TrainTask, examples: Examples) -> str:
    """Return what a task is known by: every word of the coordinator's that bits depend on, and the device's examples.

    How long a task may take is no part of it, because that is another number each time it is handed out.
    """
    same = pb.TrainTask()
    same.CopyFrom(task)
    same.ClearField("deadline_seconds")
    digest = hashlib.sha256(json.dumps([run_id, list(examples.y.shape)]).encode())
    digest.update(same.SerializeToString(deterministic=True))
    # Of the inputs, which may be many, the newest tells examples that change with the time from those of another time.
    for part in (examples.y, examples.part(len(examples) - 1, len(examples)).x):
        digest.update(part.cpu().contiguous().numpy().data)
    return digest.hexdigest()[:32]


class Keeper:
    """Keeps one task at a time in a folder; with no folder, nothing."""

    def __init__(self, folder: StateFolder | None, every: float = SAVE_SECONDS) -> None:
        """Save a step `every` so many seconds at most, and more rarely where saving takes long."""
        self._folder, self._every = folder, every
        self._key, self._plan = "", Plan()
        self._saved, self._pause = 0.0, every

    def begin(self, key: str) -> Step | None:
        """Forget every other task, and return the saved step of this one, if there is any."""
        self._key, self._saved, self._pause = key, time.monotonic(), self._every
        if self._folder is None:
            return None
        for name in self._folder.names("step", "update"):
            if key not in name:
                self._folder.remove(name)
        data = self._folder.read(f"step-{key}")
        if data is None:
            return None
        try:
            tensors = decode(data)
            plan = Plan.from_json(bytes(tensors.pop("plan").tolist()).decode())
            return Step(tensors, float(tensors.pop("seconds")), plan)
        except (PayloadError, PlanError, KeyError, ValueError, RuntimeError):
            # Of another version, or damaged.
            self._folder.remove(f"step-{key}")
            return None

    def due(self) -> bool:
        """Return whether it is time to save a step."""
        return self._folder is not None and time.monotonic() - self._saved >= self._pause

    def keep(self, state: TrainState, seconds: float, plan: Plan) -> None:
        """Save where training stands, after so many seconds of it."""
        if self._folder is None:
            return
        began = time.monotonic()
        words = {
            "seconds": torch.tensor(seconds, dtype=torch.float64),
            "plan": torch.tensor(list(plan.to_json().encode()), dtype=torch.uint8),
        }
        kept = self._folder.write(f"step-{self._key}", encode(state.tensors() | words))
        self._saved = time.monotonic()
        # A disk that is full now may have room later, but is not asked all the time.
        self._pause = max(self._every, (self._saved - began) / MOST_SHARE) if kept or not self._every else 60.0

    def finish(self, payload: Payload, report: Report) -> None:
        """Keep an update until it has been answered."""
        if self._folder is None:
            return
        words = json.dumps(asdict(report) | {"sha256": payload.sha256}).encode()
        # The words first: with the payload, the update is there.
        if self._folder.write(f"update-{self._key}.json", words):
            self._folder.write(f"update-{self._key}", payload.data)
        self._folder.remove(f"step-{self._key}")

    def finished(self) -> tuple[Payload, Report] | None:
        """Return the update of this task, if training is over."""
        if self._folder is None:
            return None
        words, data = (self._folder.read(f"update-{self._key}{end}") for end in (".json", ""))
        if words is None or data is None:
            return None
        payload = Payload.of(data)
        try:
            found = from_json(words)
            scores = found.pop("scores", None)
            if found.pop("sha256") == payload.sha256:
                return payload, Report(**found, scores=scores and Scores(**scores))
        except (ValueError, TypeError, KeyError, AttributeError):
            pass
        return None

    def forget(self) -> None:
        """Forget this task: it has been answered, or nobody needs it."""
        if self._folder is not None:
            for name in self._folder.names("step", "update"):
                self._folder.remove(name)
