"""The server's own step: checked as an update is, and taken back if nothing usable comes of it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import torch

from diastole.models.accumulator import MAX_DELTA, magnitudes
from diastole.models.crossing import number, send_all
from diastole.models.method import Method
from diastole.models.state import State
from diastole.server.errors import StepError
from diastole.server.optimisers import ServerOptimiser


@dataclass(frozen=True, slots=True)
class Kept:
    """What a round began with, to go back to.

    Attributes:
        state: the global model, prepared.
        number: the round that it was prepared for.
        method: what the method had learned beside it.
        optimiser: moments of the server's optimiser.

    """

    state: State
    number: int
    method: State
    optimiser: State

    @classmethod
    def of(cls, state: State, number: int, method: Method, optimiser: ServerOptimiser) -> Self:
        """Return what there is now; a method may change its tensors in place, so they are copied."""
        learned = {name: tensor.clone() for name, tensor in method.memory().items()}
        return cls(state, number, learned, optimiser.memory())

    def on(self, device: torch.device) -> Self:
        """Return it with the global model and the optimiser's moments on a device."""
        return replace(self, state=send_all(self.state, device), optimiser=send_all(self.optimiser, device))

    def parts(self) -> Mapping[str, State]:
        """Return all tensors, by part."""
        return {"state": self.state, "method": self.method, "optimiser": self.optimiser}

    def apart(self, now: Mapping[str, State]) -> tuple[dict[str, State], Mapping[str, Any]]:
        """Return the tensors, by part, that are not those of `now`, and what `again` needs beside them, as JSON."""
        own, shared = dict[str, State](), dict[str, list[str]]()
        for part, state in self.parts().items():
            shared[part] = sorted(name for name, tensor in state.items() if _same(tensor, now[part].get(name)))
            # A file takes no two tensors of one memory.
            own[part] = {name: tensor.clone() for name, tensor in state.items() if name not in set(shared[part])}
        return own, {"number": self.number, "shared": shared}

    @classmethod
    def again(cls, own: Mapping[str, State], now: Mapping[str, State], said: Mapping[str, Any]) -> Self:
        """Return what `apart` has taken apart."""
        parts = {
            part: own[part] | {name: now[part][name] for name in said["shared"][part]}
            for part in ("state", "method", "optimiser")
        }
        return cls(number=said["number"], **parts)


def _same(one: torch.Tensor, other: torch.Tensor | None) -> bool:
    """Return whether two tensors are one in memory."""
    return other is not None and one.data_ptr() == other.data_ptr() and one.shape == other.shape


def check_step(after: State, before: State, what: str) -> State:
    """Return the global state `after` a step from `before`.

    Raises `StepError` if a value is not finite, or further from what it was than an update may bring it; `what` names
    the step.
    """
    moving = {name: tensor for name, tensor in after.items() if tensor.is_floating_point() and tensor.numel()}
    # The largest magnitudes usually settle this, in one pass and without memory.
    tops = magnitudes([*moving.values(), *(before.get(name, tensor) for name, tensor in moving.items())])
    for (name, tensor), top, largest in zip(moving.items(), tops, tops[len(moving) :], strict=False):
        if top + largest <= MAX_DELTA:
            continue
        earlier = before.get(name, tensor)
        if not number(torch.isfinite(tensor).all()):
            raise StepError(f"{what} makes tensor {name!r} something that is not finite; the model before it is kept")
        moved = number((tensor.double() - earlier.double()).abs().max())
        if not moved <= MAX_DELTA:
            raise StepError(
                f"{what} moves tensor {name!r} by {moved:.3g}; at most {MAX_DELTA:g} is accepted, and the model before "
                "it is kept"
            )
    return after
