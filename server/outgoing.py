"""What goes out for a round's tasks, the same over gRPC and in a simulation, and how what comes back is read."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diastole.models.crossing import CPU, send_all
from diastole.models.methods.registry import apart, untrained
from diastole.models.networks.config import ModelConfig
from diastole.models.seeds import derive_seed
from diastole.models.spec import SubModelSpec
from diastole.models.state import State
from diastole.models.task import Task
from diastole.proto.coding import Coding, decode_update
from diastole.proto.payload import Payload, encode, load
from diastole.proto.versions import Offer, Versions


@dataclass(frozen=True, slots=True)
class Sent:
    """What goes out for a sub-model in a round.

    Attributes:
        moving: what devices train of it, as the coordinator has it.
        still: what they do not train.
        fixed: its payload, exact, which devices keep from round to round; None if they train everything.
        offer: what they may download of what they train.

    """

    moving: State
    still: State
    fixed: Payload | None
    offer: Offer

    @property
    def received(self) -> State:
        """The whole state, as devices receive it."""
        return {**self.still, **self.offer.received}


class Outgoing:
    """Makes what goes out in a run, and reads what comes back."""

    def __init__(self, model: ModelConfig, coding: Coding, seed: int) -> None:
        """Start a run of a global model; `seed` is the run's."""
        self.coding = coding
        self._model, self._seed = model, seed
        self._versions = Versions(coding)
        self._sent: dict[SubModelSpec, tuple[int, Sent]] = {}

    def send(self, spec: SubModelSpec, state: State, number: int) -> Sent:
        """Return what goes out for a sub-model in a round; a round has one state for each, and one answer.

        It is encoded on the CPU, where it then is.
        """
        last = self._sent.get(spec)
        if last is not None and last[0] == number:
            return last[1]
        moving, still = apart(self._model, spec, send_all(state, CPU))
        text = spec.to_json()
        offer = self._versions.offer(text, moving, derive_seed(self._seed, number, text, "codec"))
        found = Sent(moving, still, Payload.of(encode(still)) if still else None, offer)
        # Of earlier rounds nothing is needed any more.
        self._sent = {each: it for each, it in self._sent.items() if it[0] == number} | {spec: (number, found)}
        return found

    def read(self, sent: Sent, data: bytes | Path, task: Task) -> State:
        """Return the state that a task's update, or a file of one, makes of what was sent. Raises `PayloadError`."""
        if self.coding.plain and isinstance(data, Path):
            # Memory-mapped, so that a round's updates need no memory before they are folded.
            return load(data)
        still = untrained(self._model, task.spec, task.levers.part)
        moving = {name: tensor for name, tensor in sent.moving.items() if name not in still}
        received = moving if self.coding.down.exact else sent.offer.received
        data = data.read_bytes() if isinstance(data, Path) else data
        return decode_update(self.coding.up, data, moving, received)

    def memory(self) -> tuple[dict[str, Any], State]:
        """Return what must not be lost, as JSON and tensors."""
        return self._versions.memory()

    def resume(self, memory: Mapping[str, Any], tensors: State) -> None:
        """Go on with another's `memory()`."""
        self._versions.resume(memory, tensors)
