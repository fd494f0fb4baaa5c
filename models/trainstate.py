"""Where training stands between two steps: all that it takes to go on from there with the same bits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from diastole.models.crossing import number
from diastole.models.errors import StateError


@dataclass(slots=True)
class TrainState:
    """What the steps of one task change.

    Attributes:
        module: that is trained.
        memory: of the optimiser, for each weight that learns.
        generators: of all draws.
        order: of the examples in this epoch, int64 `[n]`.
        epoch: epochs that are over.
        batch: batches of this epoch that are over; 0 if the next one begins an epoch.
        steps: that were taken.
        total: the losses of this epoch's examples, or of the last one's if `batch` is 0.

    """

    module: nn.Module
    memory: Sequence[Sequence[Tensor]]
    generators: Sequence[torch.Generator]
    order: Tensor
    epoch: int = 0
    batch: int = 0
    steps: int = 0
    total: float | Tensor = 0.0

    def tensors(self) -> dict[str, Tensor]:
        """Return everything as tensors by name. Those of the module and its optimiser are no copies."""
        found = {**self._standing(), "order": self.order}
        found |= {f"draws.{k}": generator.get_state() for k, generator in enumerate(self.generators)}
        found["count"] = torch.tensor([self.epoch, self.batch, self.steps])
        total = number(self.total) if isinstance(self.total, Tensor) else self.total
        found["total"] = torch.tensor([total], dtype=torch.float64)
        return found

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on where another state of the same task gave `tensors`.

        Raises `StateError` if they are of another task; then nothing has changed.
        """
        mine = {**self.tensors(), "order": self.order}
        for name in {*mine, *tensors}:
            found = [(t.shape, t.dtype) for t in (mine.get(name), tensors.get(name)) if t is not None]
            if len(found) < 2 or found[0] != found[1]:
                raise StateError(f"a saved step has another {name!r} than its task")
        with torch.no_grad():
            for name, tensor in self._standing().items():
                tensor.copy_(tensors[name])
        for k, generator in enumerate(self.generators):
            generator.set_state(tensors[f"draws.{k}"])
        self.order = tensors["order"]
        self.epoch, self.batch, self.steps = map(int, tensors["count"])
        self.total = float(tensors["total"])

    def _standing(self) -> dict[str, Tensor]:
        weights = {f"weights.{name}": p.detach() for name, p in self.module.named_parameters() if p.requires_grad}
        buffers = {f"buffers.{name}": buffer for name, buffer in self.module.named_buffers()}
        memory = {f"memory.{k}.{n}": t for k, tensors in enumerate(self.memory) for n, t in enumerate(tensors)}
        return {**weights, **buffers, **memory}
