"""Server optimisers: how the mean delta moves the global model (Reddi et al., ICLR 2021, algorithm 2)."""

from typing import Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as validated
from torch import Tensor

from diastole.models.spec import STRICT
from diastole.models.state import State


@validated(frozen=True, slots=True, config=STRICT)
class ServerOptimiserConfig:
    """How the global model moves along the mean delta.

    Attributes:
        name: "fedavg" (`x += lr * delta`), "fedavgm" (`m = beta1 * m + delta; x += lr * m`), "fedadam" or "fedyogi".
        learning_rate: the server's.
        beta1: momentum of all but "fedavg".
        beta2: of the second moment.
        tau: degree of adaptivity, added to the root of the second moment.

    """

    name: Literal["fedavg", "fedavgm", "fedadam", "fedyogi"] = "fedavg"
    learning_rate: float = Field(default=1.0, gt=0)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.99, ge=0, lt=1)
    tau: float = Field(default=1e-3, gt=0)


class ServerOptimiser:
    """Steps the global state; moments are float64 and move only at covered coordinates.

    Of a global state in 16 bits it keeps what rounding has taken away, as float32, and adds it to the next step: small
    steps then add up as they do in float32.
    """

    def __init__(self, config: ServerOptimiserConfig) -> None:
        self._config = config
        self._first: dict[str, Tensor] = {}
        self._second: dict[str, Tensor] = {}
        self._rest: dict[str, Tensor] = {}

    def memory(self) -> State:
        """Return the moments, float64, and what rounding has taken away, by name."""
        return {f"{kind}/{name}": tensor for kind, kept in self._kept().items() for name, tensor in kept.items()}

    def resume(self, memory: State) -> None:
        """Go on with another optimiser's `memory()`, and nothing else."""
        self._first, self._second, self._rest = {}, {}, {}
        for key, tensor in memory.items():
            kind, _, name = key.partition("/")
            self._kept()[kind][name] = tensor

    def _kept(self) -> dict[str, dict[str, Tensor]]:
        return {"first": self._first, "second": self._second, "rest": self._rest}

    def step(self, state: State, delta: State, covered: dict[str, Tensor]) -> State:
        """Return the new global state.

        `delta` is float64, `covered` boolean, both of the tensors' shapes. Coordinates that are not covered
        keep their value and their moments.
        """
        return {name: self._stepped(name, tensor, delta[name], covered[name]) for name, tensor in state.items()}

    def _stepped(self, name: str, tensor: Tensor, delta: Tensor, covered: Tensor) -> Tensor:
        exact = tensor.double() + self._move(name, delta, covered)
        if tensor.dtype.itemsize > 2:
            return torch.where(covered, exact, tensor).to(tensor.dtype)
        rest = self._rest.get(name, torch.zeros_like(tensor, dtype=torch.float32))
        exact += rest
        found = torch.where(covered, exact, tensor).to(tensor.dtype)
        self._rest[name] = torch.where(covered, exact - found, rest).float()
        return found

    def _move(self, name: str, delta: Tensor, covered: Tensor) -> Tensor:
        config = self._config
        if config.name == "fedavg":
            return config.learning_rate * delta
        first = self._first.get(name, torch.zeros_like(delta))
        if config.name == "fedavgm":
            first = torch.where(covered, config.beta1 * first + delta, first)
            self._first[name] = first
            return config.learning_rate * first
        first = torch.where(covered, config.beta1 * first + (1 - config.beta1) * delta, first)
        second = self._second.get(name, torch.full_like(delta, config.tau**2))
        square = delta.square()
        if config.name == "fedadam":
            moved = config.beta2 * second + (1 - config.beta2) * square
        else:
            moved = second - (1 - config.beta2) * square * (second - square).sign()
        second = torch.where(covered, moved, second)
        self._first[name], self._second[name] = first, second
        return config.learning_rate * first / (second.sqrt() + config.tau)
