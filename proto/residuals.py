"""What a device's updates left out, which its next ones make up for: error feedback.

Residuals are in a sub-model's own coordinates, so there is one for each sub-model; that of another one waits until the
device is given that sub-model again, or is forgotten as the oldest of more than `MOST_KEPT`. A residual takes the place
of the last one only when the update was taken.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from diastole.proto.codec import Codec
from diastole.proto.coding import encode_update
from diastole.proto.kept import keep
from diastole.proto.versions import under

State = dict[str, Tensor]


@dataclass(slots=True)
class _Residual:
    """What the updates of a sub-model left out: before the last task that was taken, and after it."""

    seed: int
    before: State
    after: State


@dataclass(slots=True)
class Residuals:
    """The residuals of one device, by sub-model."""

    _kept: dict[str, _Residual] = field(default_factory=dict)
    _next: tuple[str, _Residual] | None = None

    def encode(self, codec: Codec, spec: str, trained: State, received: Mapping[str, Tensor], seed: int) -> bytes:
        """Return an update as it travels.

        Args:
            codec: of the way up.
            spec: the sub-model, as JSON.
            trained: the tensors that were trained.
            received: these and perhaps others, as they were received.
            seed: of what the codec draws, another one for each task. A task that is repeated, because the coordinator
                has lost the update, has the same seed, and its update is the same.

        """
        last = self._kept.get(spec)
        before = State() if last is None else last.before if last.seed == seed else last.after
        data, after = encode_update(codec, trained, received, seed, before)
        self._next = (spec, _Residual(seed, before, after)) if after else None
        return data

    def taken(self) -> bool:
        """Learn that the coordinator has taken the last update, and return whether it left anything out."""
        if self._next is None:
            return False
        keep(self._kept, *self._next)
        self._next = None
        return True

    def memory(self, prefix: str = "") -> tuple[list[Any], State]:
        """Return the residuals, one that waits for `taken` too, as JSON and tensors whose names begin with a prefix."""
        listed, tensors = [], State()
        waiting = [self._next] if self._next else []
        for number, (spec, residual) in enumerate([*self._kept.items(), *waiting]):
            listed.append([spec, residual.seed, number < len(self._kept)])
            for part, state in (("before", residual.before), ("after", residual.after)):
                tensors |= {f"{prefix}{number} {part}:{name}": tensor.clone() for name, tensor in state.items()}
        return listed, tensors

    @staticmethod
    def of(listed: list[Any], tensors: State, prefix: str = "") -> "Residuals":
        """Return the residuals of a `memory()`."""
        found = Residuals()
        for number, (spec, seed, taken) in enumerate(listed):
            before, after = (under(f"{prefix}{number} {part}:", tensors) for part in ("before", "after"))
            residual = _Residual(seed, before, after)
            if taken:
                found._kept[spec] = residual
            else:
                found._next = spec, residual
        return found
